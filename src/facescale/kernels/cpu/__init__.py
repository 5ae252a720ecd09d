"""Kernels in C++ for what torch's operations leave slow on a CPU.

A kernel is one `.cpp` file here with C functions, built on first use. Whoever calls one has the
same work in torch's operations too, for other devices and for machines without a compiler.
"""

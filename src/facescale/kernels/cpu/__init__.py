"""C++ kernels for operations that are slow on a CPU in torch.

A kernel is one `.cpp` file with C functions, built on first use. Every caller also has the same
computation in torch's operations, for other devices and for machines without a compiler.
"""

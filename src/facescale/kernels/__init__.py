"""Operators on plain tensors, in C++ for CPUs. They know no network."""

"""Triton kernels, one module an operator; installed as `tfkd_fast.kernels`."""

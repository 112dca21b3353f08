"""Triton kernels, one module an operator; imported as `tfkd_fast.kernels`, a link to this folder."""

"""Triton kernels, one module for each operator; imported as `tfkd_fast.kernels`, a link to this folder."""

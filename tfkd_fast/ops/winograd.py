"""3x3 convolution in bfloat16 by Winograd's minimal filtering, on processors with AVX512-BF16."""

from collections.abc import Sequence

import torch

from tfkd_fast.ops import convolution
from tfkd_fast.ops.convolution import TrainingPass

convolution.define("winograd")


def serves(
    pass_name: TrainingPass,
    x: Sequence[int],
    weight: Sequence[int],
    dtype: torch.dtype,
    stride: int = 1,
) -> bool:
    """Return whether `winograd` computes a pass.

    It computes 2x2 outputs from 4x4 inputs with 16 multiplications instead of 36, F(2x2,3x3) of Lavin and Gray, "Fast
    Algorithms for Convolutional Neural Networks" (2016), and the gradients by the adjoint of that. Inputs and weights
    are transformed in float32, rounded to bfloat16, and their products summed in float32; weights in float32 are not
    rounded before. Each sum has one order, by any number of threads.

    The error, relative in L2, is 1.3 to 1.9 times that of a convolution in bfloat16 in each pass, if it is measured
    from numbers in float32 that both are given rounded: about 0.0045 instead of 0.0029. Measured from the rounded
    numbers, the gradient of the weights has up to 3 times the error, 0.004 to 0.005 instead of 0.0017: the transformed
    gradients and inputs are rounded, where a direct convolution rounds nothing but the result.

    Sums of up to four inputs, or gradients, are in between, so that numbers above a quarter of the largest bfloat16 can
    overflow. Infinity and NaN reach all outputs of the tiles that they touch, as infinity or NaN, also those that they
    do not reach by the definition. Subnormal numbers count as zero.

    Args:
        pass_name: the result, the gradient of x, or that of the weight.
        x: shape (B,C,H,W) of x.
        weight: shape (K,C,3,3).
        dtype: of x.
        stride: of the convolution.
    """
    return convolution.multiplies_pairs(dtype) and tuple(weight[2:]) == (3, 3) and stride == 1

"""Which projection computes with a weight."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from typing import Final

import torch

from gptj_predictor.model.linear import FloatProjection, Int8Projection, Projection
from gptj_predictor.model.row_quantization import Inputs

#: Of weights that Triton kernels multiply.
KERNEL_DTYPES: Final = (torch.int8, torch.float16, torch.bfloat16)

#: Makes a projection of a weight, its bias, its scales if it is int8, and the parts of its inputs.
MakeProjection = Callable[
    [torch.Tensor, torch.Tensor, torch.Tensor | None, Sequence[Inputs] | None], Projection
]


def make_projection(
    weight: torch.Tensor,
    bias: torch.Tensor,
    scales: torch.Tensor | None,
    parts: Sequence[Inputs] | None = None,
) -> Projection:
    """The projection for a weight, which has scales if it is int8.

    ``parts`` describes the inputs, if they are not all alike.

    On a GPU Triton kernels can multiply int8 weights, with activations as they are, and 16-bit
    ones. Which products they compute is chosen later, see :mod:`triton_linear.choice`.
    """
    if (
        weight.is_cuda
        and weight.dtype in KERNEL_DTYPES
        and importlib.util.find_spec("triton") is not None
    ):
        from gptj_predictor.model.triton_linear.projection import TritonProjection

        return TritonProjection(weight, bias, scales)
    if scales is None:
        return FloatProjection(weight, bias)
    return Int8Projection(weight, scales, bias, parts)

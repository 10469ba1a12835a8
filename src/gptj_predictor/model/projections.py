"""Which projection computes with a weight."""

from __future__ import annotations

import importlib.util

import torch

from gptj_predictor.model.linear import FloatProjection, Int8Projection, Projection


def make_projection(
    weight: torch.Tensor, bias: torch.Tensor, scales: torch.Tensor | None
) -> Projection:
    """The projection for a weight, which has scales if it is int8.

    On a GPU int8 weights are multiplied by Triton kernels, with activations as they are.
    """
    if scales is None:
        return FloatProjection(weight, bias)
    if weight.is_cuda and importlib.util.find_spec("triton") is not None:
        from gptj_predictor.model.triton_linear.projection import TritonProjection

        return TritonProjection(weight, bias, scales)
    return Int8Projection(weight, scales, bias)

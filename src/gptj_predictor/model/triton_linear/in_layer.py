"""A layer's two products with what surrounds them, in as few launches as their ways allow.

A kernel does the norm before a product, and GELU, bias and residual after it, in its one launch.
Around cuBLAS the norm is a launch, which also adds the second product's bias to the residual if
cuBLAS computes that too: it can then add to the residual. Importing it needs Triton.
"""

from __future__ import annotations

import torch

from gptj_predictor.model.layer import GELU, GPTJLayer
from gptj_predictor.model.linear import Projection
from gptj_predictor.model.triton.norm import normalize_and_add
from gptj_predictor.model.triton_linear.cuts import CUBLAS
from gptj_predictor.model.triton_linear.projection import TritonProjection


def project_in(layer: GPTJLayer, residual: torch.Tensor) -> torch.Tensor:
    """Norm and first product, and GELU if :func:`activates`.

    Args:
        layer: Whose.
        residual: ``[T, H]`` contiguous; :func:`project_out`'s bias may be added to it.

    Returns:
        ``[T, 3 H + I]``.
    """
    rows, norm, product = len(residual), layer.norm, layer.project_in
    if not _is_kernel(product, rows):
        return product(_normed(layer, residual))
    assert isinstance(product, TritonProjection)
    gelu_from = 3 * layer.hidden if activates(layer, rows) else None
    if product.norms(rows):
        return product.apply(residual, norm=norm, gelu_from=gelu_from)
    return product.apply(_normed(layer, residual), gelu_from=gelu_from)


def activates(layer: GPTJLayer, rows: int) -> bool:
    """Whether the first product's kernel does the activation of so many rows."""
    return layer.activation == GELU and _is_kernel(layer.project_in, rows)


def project_out(layer: GPTJLayer, residual: torch.Tensor, mixed: torch.Tensor) -> torch.Tensor:
    """Second product, its bias, and the residual that :func:`project_in` has left.

    Args:
        layer: Whose.
        residual: ``[T, H]``, whose memory the result is in.
        mixed: ``[T, H + I]``, what attention and MLP gave.
    """
    if _norm_adds_bias(layer, len(residual)):
        return layer.project_out.accumulate(residual, mixed)
    return layer.project_out.add_to(residual, mixed)


def _normed(layer: GPTJLayer, residual: torch.Tensor) -> torch.Tensor:
    norm = layer.norm
    if not _norm_adds_bias(layer, len(residual)):
        return norm(residual)
    bias = layer.project_out.bias
    return normalize_and_add(residual, norm.weight, norm.bias, norm.epsilon, bias)


def _norm_adds_bias(layer: GPTJLayer, rows: int) -> bool:
    """Whether the norm is a launch of its own, and the second product leaves the bias to it."""
    product = layer.project_in
    if isinstance(product, TritonProjection) and product.norms(rows):
        return False
    return not _is_kernel(layer.project_out, rows)


def _is_kernel(product: Projection, rows: int) -> bool:
    return isinstance(product, TritonProjection) and product.way(rows) is not CUBLAS

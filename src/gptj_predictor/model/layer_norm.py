"""A layer norm with its weights."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn import functional


@dataclass(frozen=True)
class LayerNorm:
    """Over the last dimension.

    Attributes:
        weight: ``[H]``.
        bias: ``[H]``.
        epsilon: Added to the variance.
    """

    weight: torch.Tensor
    bias: torch.Tensor
    epsilon: float

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """``[..., H]`` in and out."""
        return functional.layer_norm(x, self.weight.shape, self.weight, self.bias, self.epsilon)

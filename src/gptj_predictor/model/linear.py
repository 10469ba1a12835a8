"""Matrix products, whose weights a CPU reads faster once they are repacked for it."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch.nn import functional

#: oneDNN chooses the blocks of a packed weight for an expected number of rows. Measured on an AMX
#: Xeon with huge pages: packed for 1 row, bfloat16 is read 15 percent faster at 1 to 16 rows than
#: packed for 16, and takes as much longer at 64 to 256; float32 is best, or close to it, with 16.
_EXPECTED_ROWS = {torch.bfloat16: 1, torch.float16: 16, torch.float32: 16}


def can_pack(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether weights can be packed there: on a CPU whose oneDNN computes in the dtype."""
    if device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    if dtype is torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    if dtype is torch.float16:
        return bool(torch.ops.mkldnn._is_mkldnn_fp16_supported())
    return dtype is torch.float32


def pack(weight: torch.Tensor) -> torch.Tensor:
    """A copy of a weight ``[outputs, inputs]`` in oneDNN's blocked layout."""
    return torch.ops.mkldnn._reorder_linear_weight(weight, _EXPECTED_ROWS[weight.dtype])


class Projection:
    """``x W^T + b`` with a weight ``[outputs, inputs]``, plain or packed, and a bias."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor) -> None:
        self._weight, self.bias = weight, bias
        self._packed = weight.is_mkldnn

    @classmethod
    def of(cls, weights: Mapping[str, torch.Tensor], name: str) -> Projection:
        """By its name among a network's weights."""
        return cls(weights[f"{name}.weight"], weights[f"{name}.bias"])

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """``[T, inputs]`` to ``[T, outputs]``."""
        if self._packed:
            return torch.ops.mkldnn._linear_pointwise(x, self._weight, self.bias, "none", [], "")
        return functional.linear(x, self._weight, self.bias)

    def add_to(self, residual: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """``residual + x W^T + b``; may use ``residual``'s memory for the result."""
        if self._packed:
            return torch.ops.mkldnn._linear_pointwise.binary(
                x, residual, self._weight, self.bias, "add"
            )
        return residual.add_(self.bias).addmm_(x, self._weight.t())

    def accumulate(self, residual: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """``residual + x W^T`` where the residual has the bias; may use its memory."""
        if self._packed:
            return torch.ops.mkldnn._linear_pointwise.binary(x, residual, self._weight, None, "add")
        return residual.addmm_(x, self._weight.t())

    def write(self, x: torch.Tensor, out: torch.Tensor) -> None:
        """``x W^T + b`` to ``out``, ``[T, outputs]``."""
        if self._packed:
            out.copy_(self(x))
        else:
            torch.addmm(self.bias, x, self._weight.t(), out=out)

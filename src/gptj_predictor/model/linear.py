"""Matrix products whose weights are repacked once for the processor that reads them."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

#: oneDNN chooses the blocks of a packed weight for an expected number of rows. Measured on an AMX
#: Xeon with huge pages: packed for 1 row, bfloat16 is read 15 percent faster at 1 to 16 rows than
#: packed for 16, and takes as much longer at 64 to 256; float32 is best, or close to it, with 16.
_EXPECTED_ROWS = {torch.bfloat16: 1, torch.float16: 16, torch.float32: 16}


class Projection(nn.Linear):
    """``x W^T + b``.

    After :meth:`pack` the weight lies in oneDNN's blocked layout and the plain one is gone.
    """

    def __init__(self, inputs: int, outputs: int, dtype: torch.dtype) -> None:
        super().__init__(inputs, outputs, dtype=dtype)
        self.requires_grad_(False)
        self._packed: torch.Tensor | None = None

    @property
    def packs(self) -> bool:
        """Whether :meth:`pack` has something to do: on a CPU whose oneDNN computes in the dtype."""
        weight = self.weight
        return (
            weight is not None and weight.device.type == "cpu" and _onednn_computes_in(weight.dtype)
        )

    def pack(self) -> None:
        """Repack the weight if it :attr:`packs`."""
        if not self.packs:
            return
        weight = self.weight
        self._packed = torch.ops.mkldnn._reorder_linear_weight(
            weight.data, _EXPECTED_ROWS[weight.dtype]
        )
        # Only this reference goes: a tied embedding keeps its own.
        self.register_parameter("weight", None)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``[T, inputs]`` to ``[T, outputs]``."""
        if self._packed is None:
            return functional.linear(x, self.weight, self.bias)
        return torch.ops.mkldnn._linear_pointwise(x, self._packed, self.bias, "none", [], "")

    def add_to(self, residual: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """``residual + x W^T + b``; may use ``residual``'s memory for the result."""
        if self._packed is None:
            return residual.add_(self.bias).addmm_(x, self.weight.t())
        return torch.ops.mkldnn._linear_pointwise.binary(
            x, residual, self._packed, self.bias, "add"
        )


def _onednn_computes_in(dtype: torch.dtype) -> bool:
    if not torch.backends.mkldnn.is_available():
        return False
    if dtype is torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    if dtype is torch.float16:
        return bool(torch.ops.mkldnn._is_mkldnn_fp16_supported())
    return dtype is torch.float32

"""Matrix products, whose weights a CPU reads faster once they are repacked for it.

Operations are called by their overload, such as ``default``: to find it takes torch some 15 to 50
us where the weights of every layer drive all else out of the processor's caches.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cache

import torch
from torch.nn import functional

from gptj_predictor.common.threads import alone
from gptj_predictor.model.int8_packing import Int8Packer
from gptj_predictor.model.layer_norm import LayerNorm
from gptj_predictor.model.row_quantization import FINE_STEPS, SIGNED, Inputs, RowQuantizer

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


@cache
def can_multiply_int8() -> bool:
    """Whether the CPU multiplies int8 weights fast, and right.

    oneDNN takes processors without VNNI as well (``avx512_vnni``, which AMX comes with). There it
    adds two products in 16 bits, which overflows (its developer guide, "Nuances of int8
    computations"). So a product of the largest values has to come out exactly.
    """
    if not torch.backends.mkldnn.is_available():
        return False
    if not torch.cpu.get_capabilities().get("avx512_vnni"):
        return False
    weight = torch.full((64, 64), 127, dtype=torch.int8)
    values = torch.full((1, 64), 255, dtype=torch.uint8)
    ones = torch.ones(64)
    zeros = ones.int().zero_()
    # Who asks may stay, and is to have no workers.
    product = alone(lambda: _multiply_packed(values, Int8Packer().pack(weight), ones, zeros, None))
    return bool((product == 64 * 255 * 127).all())


class Projection(ABC):
    """``x W^T + b`` with a weight ``[outputs, inputs]`` and a bias ``[outputs]``.

    Attributes:
        bias: In the dtype of the residual and of what lies between products.
    """

    bias: torch.Tensor

    @abstractmethod
    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """``[T, inputs]`` to ``[T, outputs]`` of the bias's dtype."""

    @abstractmethod
    def add_to(self, residual: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """``residual + x W^T + b``; may use the memory of both."""

    @abstractmethod
    def accumulate(self, residual: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """``residual + x W^T``, for a residual that has the bias; may use the memory of both."""

    def write(self, x: torch.Tensor, out: torch.Tensor, norm: LayerNorm | None = None) -> None:
        """``x W^T + b`` to ``out``, ``[T, outputs]``, of a normed ``x`` if there is a norm."""
        out.copy_(self(x if norm is None else norm(x)))


class FloatProjection(Projection):
    """With a weight in the dtype of the activations, plain or packed."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor) -> None:
        self._weight, self.bias = weight, bias
        self._packed = weight.is_mkldnn

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """See :meth:`Projection.__call__`."""
        if self._packed:
            return torch.ops.mkldnn._linear_pointwise.default(
                x, self._weight, self.bias, "none", [], ""
            )
        return functional.linear(x, self._weight, self.bias)

    def add_to(self, residual: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """See :meth:`Projection.add_to`."""
        if self._packed:
            return torch.ops.mkldnn._linear_pointwise.binary(
                x, residual, self._weight, self.bias, "add"
            )
        return residual.add_(self.bias).addmm_(x, self._weight.t())

    def accumulate(self, residual: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """See :meth:`Projection.accumulate`."""
        if self._packed:
            return torch.ops.mkldnn._linear_pointwise.binary(x, residual, self._weight, None, "add")
        return residual.addmm_(x, self._weight.t())

    def write(self, x: torch.Tensor, out: torch.Tensor, norm: LayerNorm | None = None) -> None:
        """See :meth:`Projection.write`."""
        if self._packed:
            super().write(x, out, norm)
        else:
            x = x if norm is None else norm(x)
            torch.addmm(self.bias, x, self._weight.t(), out=out)


class Int8Projection(Projection):
    """With int8 weights, and activations that are rounded to 8 bits row by row.

    What it makes is fp32, in which the activation and the next rounding compute anyway.

    Packed weights are multiplied by oneDNN, in integers. Others are converted to fp32 each time:
    right on every device, and slow.
    """

    def __init__(
        self,
        weight: torch.Tensor,
        scales: torch.Tensor,
        bias: torch.Tensor,
        parts: Sequence[Inputs] | None = None,
    ) -> None:
        """Take a weight and its scales.

        Args:
            weight: int8.
            scales: ``[outputs]`` fp32, those of :func:`scales_of`.
            bias: See :class:`Projection`.
            parts: Of the inputs, if they are not all of both signs.
        """
        self._weight, self._scales, self.bias = weight, scales, bias.float()
        self._zero_points = torch.zeros_like(scales, dtype=torch.int32)
        inputs = weight.shape[0 if weight.is_mkldnn else 1]  # packed ones say it in this order
        self._quantize = RowQuantizer(parts or [Inputs(inputs)], scales.device)
        # What zero points add to a product is taken off again; fine rows have other ones.
        points = self._quantize.zero_points
        added, fine = self._multiply(torch.stack([points, torch.full_like(points, SIGNED)]))
        self._offsets, self._fine_offsets = added.neg(), added - fine

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """See :meth:`Projection.__call__`; fp32."""
        return self._product(x).add_(self.bias)

    def add_to(self, residual: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """See :meth:`Projection.add_to`."""
        return residual.add_(self._product(x).add_(self.bias))

    def accumulate(self, residual: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """See :meth:`Projection.accumulate`."""
        return residual.add_(self._product(x))

    def _product(self, x: torch.Tensor) -> torch.Tensor:
        """``x W^T`` in fp32."""
        rows = self._quantize(x)
        product = self._multiply(rows.values, self._offsets)
        count = len(rows.scales)
        if len(product) > count:
            product, fine = product.tensor_split([count])
            fine.add_(self._fine_offsets)
            if rows.fine is None:
                product.add_(fine, alpha=1 / FINE_STEPS)
            else:
                product.index_add_(0, rows.fine, fine, alpha=1 / FINE_STEPS)
        return product.mul_(rows.scales)

    def _multiply(self, values: torch.Tensor, offsets: torch.Tensor | None = None) -> torch.Tensor:
        """Of uint8 values with the weights that are held, and offsets ``[outputs]``; in fp32."""
        if self._weight.is_mkldnn:
            return _multiply_packed(values, self._weight, self._scales, self._zero_points, offsets)
        product = functional.linear(values.float(), self._weight.float()).mul_(self._scales)
        return product if offsets is None else product.add_(offsets)


def _multiply_packed(
    values: torch.Tensor,
    weight: torch.Tensor,
    scales: torch.Tensor,
    zero_points: torch.Tensor,
    offsets: torch.Tensor | None,
) -> torch.Tensor:
    # With another zero point of the values than 0 it takes up to a tenth longer for a few rows.
    return torch.ops.onednn.qlinear_pointwise.default(
        values, 1.0, 0, weight, scales, zero_points, offsets, 1.0, 0, torch.float32, "none", [], ""
    )

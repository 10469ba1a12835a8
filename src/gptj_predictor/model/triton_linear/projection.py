"""Projections that choose between Triton kernels and cuBLAS. Importing it needs Triton."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

import torch

from gptj_predictor.model.layer_norm import LayerNorm
from gptj_predictor.model.linear import Projection
from gptj_predictor.model.triton_linear.cuts import (
    CUBLAS,
    MAX_ROWS_NORM,
    Card,
    ProductShape,
    Way,
    choose,
    max_rows,
    padded_rows,
    scratch_size,
)
from gptj_predictor.model.triton_linear.kernels import SplitScratch, dequantize, multiply

#: Bytes of weights that are dequantized for cuBLAS at a time. Hopper's and later caches hold them
#: until cuBLAS reads them. Not measured yet.
_DEQUANTIZED_BYTES = 32 * 2**20


class Workspace:
    """What the products of one device share, as it computes one after the other.

    Attributes:
        card: The device.
        scratch: Where splits meet.
    """

    def __init__(self, card: Card, device: torch.device) -> None:
        self.card = card
        self.scratch = SplitScratch(*scratch_size(card.processors), device)
        self._dequantized = torch.empty(0, device=device)

    def dequantized(self, outputs: int, inputs: int, dtype: torch.dtype) -> torch.Tensor:
        """Memory ``[outputs, inputs]``, good until the next call."""
        values = outputs * inputs
        if self._dequantized.dtype is not dtype or self._dequantized.numel() < values:
            self._dequantized = torch.empty(values, dtype=dtype, device=self._dequantized.device)
        return self._dequantized[:values].view(outputs, inputs)


@lru_cache
def workspace(device: torch.device) -> Workspace:
    """The one of a CUDA device."""
    properties = torch.cuda.get_device_properties(device)
    capability = 10 * properties.major + properties.minor
    card = Card(properties.name, capability, properties.multi_processor_count)
    return Workspace(card, device)


class TritonProjection(Projection):
    """``x W^T + b`` with a weight ``[outputs, inputs]`` of the bias's dtype, or of int8.

    Attributes:
        weight: ``[outputs, inputs]``, contiguous.
        bias: ``[outputs]``.
        scale: ``[outputs]`` fp32 for an int8 weight: what one step of it means.
    """

    def __init__(
        self,
        weight: torch.Tensor,
        bias: torch.Tensor,
        scale: torch.Tensor | None = None,
        shared: Workspace | None = None,
    ) -> None:
        """Choose every way without a measurement; see :func:`choice.choose_products`.

        Args:
            weight: See the attributes.
            bias: See the attributes.
            scale: See the attributes.
            shared: The device's workspace, by default :func:`workspace`.

        Raises:
            ValueError: the weight is int8 and has no scale, or it is not and has one.
        """
        if (scale is None) is (weight.dtype is torch.int8):
            raise ValueError(f"a weight of {weight.dtype} has a scale if, and only if, it is int8")
        self.weight, self.bias, self.scale = weight, bias, scale
        self._shared = shared or workspace(weight.device)
        self._ways = {shape.rows: choose(shape, self.card, None) for shape in self.shapes()}

    @property
    def card(self) -> Card:
        """Where the weight lies."""
        return self._shared.card

    def way(self, rows: int) -> Way:
        """How products of so many rows are computed."""
        return self._ways.get(padded_rows(rows), CUBLAS)

    def choose(self, rows: int, way: Way) -> None:
        """Compute products of so many rows, a power of two, in this way from now on."""
        self._ways[rows] = way

    def norms(self, rows: int) -> bool:
        """Whether a kernel computes so many rows, and their layer norm in the same launch."""
        return rows <= MAX_ROWS_NORM and self.way(rows) is not CUBLAS

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """See :meth:`Projection.__call__`."""
        return self.apply(x)

    def add_to(self, residual: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """See :meth:`Projection.add_to`; the result is in ``residual``'s memory."""
        return self.apply(x, residual=residual)

    def accumulate(self, residual: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """``residual + x W^T`` where the residual has the bias, in its memory."""
        return self.apply(x, residual=residual, add_bias=False)

    def write(self, x: torch.Tensor, out: torch.Tensor, norm: LayerNorm | None = None) -> None:
        """See :meth:`Projection.write`."""
        self.apply(x, out=out, norm=norm)

    def apply(
        self,
        x: torch.Tensor,
        *,
        norm: LayerNorm | None = None,
        gelu_from: int | None = None,
        residual: torch.Tensor | None = None,
        add_bias: bool = True,
        out: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """The product with what comes before and after it; in one launch if a kernel computes it.

        Args:
            x: ``[T, inputs]``.
            norm: Done to ``x`` first.
            gelu_from: The first output whose value goes through GELU; all later ones do too.
            residual: ``[T, outputs]``, added at the end.
            add_bias: Whether the bias is added, which GELU follows.
            out: ``[T, outputs]`` for the result: by default the residual's memory, or new one.

        Returns:
            ``out``.
        """
        if out is None:
            out = x.new_empty(len(x), len(self.weight)) if residual is None else residual
        way = self.way(len(x))
        if norm is not None and not self.norms(len(x)):
            x, norm = norm(x), None
        bias = self.bias if add_bias else None
        if way is CUBLAS:
            self._by_cublas(x, out, bias, gelu_from, residual)
            return out
        with torch.cuda.device_of(x):  # Triton launches on the current device
            multiply(
                *(x, self.weight, out, way),
                scale=self.scale,
                bias=bias,
                norm=norm,
                gelu_from=gelu_from,
                residual=residual,
                scratch=self._shared.scratch,
            )
        return out

    def _by_cublas(
        self,
        x: torch.Tensor,
        out: torch.Tensor,
        bias: torch.Tensor | None,
        gelu_from: int | None,
        residual: torch.Tensor | None,
    ) -> None:
        # GELU lies between the product and the residual, so these cannot be one then.
        adds = residual is not None and gelu_from is None
        product = torch.empty_like(out) if residual is not None and not adds else out
        if adds and residual is not None and out is not residual:
            out.copy_(residual)
        for part, weight in self._plain_weights(x.dtype):
            columns = product[:, part]
            if adds:
                if bias is not None:
                    columns.add_(bias[part])
                columns.addmm_(x, weight.t())
            elif bias is not None:
                torch.addmm(bias[part], x, weight.t(), out=columns)
            else:
                torch.mm(x, weight.t(), out=columns)
        if gelu_from is not None:
            torch.ops.aten.gelu_(product[:, gelu_from:], approximate="tanh")
        if residual is not None and not adds:
            torch.add(product, residual, out=out)

    def _plain_weights(self, dtype: torch.dtype) -> Iterator[tuple[slice, torch.Tensor]]:
        """The weight in parts that cuBLAS can read: which outputs, and their weights.

        Each is good until the next is asked for.
        """
        outputs, inputs = self.weight.shape
        if self.scale is None:
            yield slice(outputs), self.weight
            return
        step = max(_DEQUANTIZED_BYTES // (inputs * dtype.itemsize), 1)
        for first in range(0, outputs, step):
            part = slice(first, min(first + step, outputs))
            memory = self._shared.dequantized(part.stop - first, inputs, dtype)
            with torch.cuda.device_of(memory):
                dequantize(self.weight[part], self.scale[part], memory)
            yield part, memory

    def shapes(self) -> Iterator[ProductShape]:
        """For every number of rows that there is a choice for."""
        outputs, inputs = self.weight.shape
        rows = 1
        while rows <= max_rows(self.weight.dtype):
            yield ProductShape(rows, outputs, inputs, self.bias.dtype, self.weight.dtype)
            rows *= 2

"""Projections that choose between Triton kernels and cuBLAS. Importing it needs Triton."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache, partial

import torch
from torch.nn import functional

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
from gptj_predictor.model.triton_linear.kernels import Norm, SplitScratch, dequantize, multiply

#: Bytes of weights that are dequantized for cuBLAS at a time. Hopper's and later caches hold them
#: until cuBLAS reads them. Not measured yet.
_DEQUANTIZED_BYTES = 32 * 2**20

#: Takes seconds for calls, one after the other, on the device: the seam to the GPU's clock.
CallTimer = Callable[[list[Callable[[], object]]], float]


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
        """Choose every way without a measurement; see :func:`measure`.

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
        self._ways = {
            shape.rows: choose(shape, self._shared.card, None) for shape in self._shapes()
        }

    def way(self, rows: int) -> Way:
        """How products of so many rows are computed."""
        return self._ways.get(padded_rows(rows), CUBLAS)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """See :meth:`Projection.__call__`."""
        return self.apply(x)

    def add_to(self, residual: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """See :meth:`Projection.add_to`; the result is in ``residual``'s memory."""
        return self.apply(x, residual=residual)

    def accumulate(self, residual: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """``residual + x W^T`` where the residual has the bias, in its memory."""
        return self.apply(x, residual=residual, add_bias=False)

    def write(self, x: torch.Tensor, out: torch.Tensor) -> None:
        """``x W^T + b`` to ``out``, ``[T, outputs]``."""
        self.apply(x, out=out)

    def apply(
        self,
        x: torch.Tensor,
        *,
        norm: Norm | None = None,
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
        if norm is not None and (way is CUBLAS or len(x) > MAX_ROWS_NORM):
            x = functional.layer_norm(x, x.shape[1:], norm.weight, norm.bias, norm.epsilon)
            norm = None
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

    def _shapes(self) -> Iterator[ProductShape]:
        """For every number of rows that there is a choice for."""
        outputs, inputs = self.weight.shape
        rows = 1
        while rows <= max_rows(self.weight.dtype):
            yield ProductShape(rows, outputs, inputs, self.bias.dtype, self.weight.dtype)
            rows *= 2


def measure(projections: Iterable[TritonProjection], timer: CallTimer) -> None:
    """Choose the ways of projections anew, by measurements of those that have the same shape.

    Those of all layers are measured one after the other, as a step computes them, so that no cache
    holds what a step would have to read.

    Args:
        projections: All of one device.
        timer: Measures.
    """
    alike: dict[tuple[object, ...], list[TritonProjection]] = defaultdict(list)
    for projection in projections:
        alike[*projection.weight.shape, projection.weight.dtype].append(projection)
    for group in alike.values():
        for shape in group[0]._shapes():
            x = group[0].bias.new_zeros(shape.rows, shape.inputs)

            def seconds(
                way: Way, group: list[TritonProjection] = group, x: torch.Tensor = x
            ) -> float:
                for projection in group:
                    projection._ways[len(x)] = way
                return timer([partial(projection, x) for projection in group])

            way = choose(shape, group[0]._shared.card, seconds)
            for projection in group:
                projection._ways[shape.rows] = way


def seconds_on_gpu(calls: list[Callable[[], object]]) -> float:
    """The least time of three that a GPU takes for calls, replayed from a graph.

    Launched one by one, short kernels would wait for Python.
    """
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        calls[0]()  # Triton compiles, and cuBLAS takes its memory
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    graph.replay()
    milliseconds = []
    for _ in range(3):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        milliseconds.append(begin.elapsed_time(end))
    return min(milliseconds) / 1e3

"""Which products the kernels compute: a measurement at the start. Importing it needs Triton."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from gptj_predictor.model.layer import GPTJLayer
from gptj_predictor.model.layer_norm import LayerNorm
from gptj_predictor.model.linear import Projection
from gptj_predictor.model.product_choice import CallTimer, ProductChoice
from gptj_predictor.model.triton_linear.cuts import CUBLAS, Way, choose
from gptj_predictor.model.triton_linear.in_layer import project_in, project_out
from gptj_predictor.model.triton_linear.projection import TritonProjection

#: Computes with so many rows, for every layer that has such a product.
_Calls = Callable[[int], list[Callable[[], object]]]


@dataclass(frozen=True)
class _Group:
    """Products of one shape and device that a step computes one after the other.

    They are measured in this order, so that no cache holds what a step would have to read.
    """

    name: str
    products: list[TritonProjection]
    calls: _Calls


def choose_products(
    layers: Sequence[GPTJLayer], norm: LayerNorm, head: Projection, timer: CallTimer
) -> list[ProductChoice]:
    """Choose how the products of a network are computed, each with what surrounds it in a step.

    Args:
        layers: All.
        norm: Before the head.
        head: The last product.
        timer: Measures.

    Returns:
        One for each shape and number of rows that there is a choice for.
    """
    return [made for group in _groups(layers, norm, head) for made in _choose_group(group, timer)]


def _choose_group(group: _Group, timer: CallTimer) -> Iterator[ProductChoice]:
    first = group.products[0]
    for shape in first.shapes():
        seconds: dict[str, float] = {}
        calls = group.calls(shape.rows)

        def measure(
            way: Way,
            rows: int = shape.rows,
            calls: list[Callable[[], object]] = calls,
            seconds: dict[str, float] = seconds,
        ) -> float:
            for product in group.products:
                product.choose(rows, way)
            with torch.cuda.device_of(first.weight):
                seconds[_name(way)] = timer(calls)
            return seconds[_name(way)]

        way = choose(shape, first.card, measure)
        for product in group.products:
            product.choose(shape.rows, way)
        yield ProductChoice(
            product=group.name,
            device=str(first.weight.device),
            card=first.card.name,
            outputs=shape.outputs,
            inputs=shape.inputs,
            rows=shape.rows,
            way=_name(way),
            seconds=seconds,
        )


def _groups(layers: Sequence[GPTJLayer], norm: LayerNorm, head: Projection) -> Iterator[_Group]:
    """Of each device the first products before the second, whose bias is added where those say."""
    by_device: dict[torch.device, list[GPTJLayer]] = defaultdict(list)
    for layer in layers:
        by_device[layer.norm.weight.device].append(layer)
    for own in by_device.values():
        first = [
            layer.project_in for layer in own if isinstance(layer.project_in, TritonProjection)
        ]
        if first:
            yield _Group("project_in", first, partial(_calls_in, own))
        second = [
            layer.project_out for layer in own if isinstance(layer.project_out, TritonProjection)
        ]
        if second:
            yield _Group("project_out", second, partial(_calls_out, own))
    if isinstance(head, TritonProjection):
        yield _Group("head", [head], partial(_calls_head, norm, head))


def _calls_in(layers: list[GPTJLayer], rows: int) -> list[Callable[[], object]]:
    residual = layers[0].norm.weight.new_zeros(rows, layers[0].hidden)
    return [partial(project_in, layer, residual) for layer in layers]


def _calls_out(layers: list[GPTJLayer], rows: int) -> list[Callable[[], object]]:
    weight, hidden = layers[0].norm.weight, layers[0].hidden
    residual = weight.new_zeros(rows, hidden)
    # As wide as a step's, which begins behind queries and keys.
    projected = weight.new_zeros(rows, 3 * hidden + layers[0].inner)
    return [partial(project_out, layer, residual, projected[:, 2 * hidden :]) for layer in layers]


def _calls_head(norm: LayerNorm, head: TritonProjection, rows: int) -> list[Callable[[], object]]:
    x = head.bias.new_zeros(rows, norm.weight.shape[0])
    out = head.bias.new_zeros(rows, len(head.bias))
    return [partial(head.write, x, out, norm)]


def _name(way: Way) -> str:
    return "cuBLAS" if way is CUBLAS else str(way)

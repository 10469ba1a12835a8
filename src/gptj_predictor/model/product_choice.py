"""What came of choosing how products are computed: plain data, for logs and records."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

#: Takes seconds for calls, one after the other, on the device: the seam to a GPU's clock.
CallTimer = Callable[[list[Callable[[], object]]], float]


@dataclass(frozen=True)
class ProductChoice:
    """One product's, with one number of rows.

    Attributes:
        product: ``project_in``, ``project_out`` or ``head``.
        device: By torch's name.
        card: What CUDA calls the device.
        outputs: Of its weight.
        inputs: Of its weight.
        rows: The most of it; fewer down to the next choice's are computed alike.
        way: ``cuBLAS``, or which kernel.
        seconds: What each way took for all layers on the device; empty if the card's table knew.
    """

    product: str
    device: str
    card: str
    outputs: int
    inputs: int
    rows: int
    way: str
    seconds: dict[str, float]


def describe(choices: Iterable[ProductChoice]) -> str:
    """One line: which products the kernels compute, by their rows."""
    rows: dict[tuple[str, str], dict[str, list[str]]] = {}
    for choice in choices:
        ways = rows.setdefault((choice.device, choice.product), {})
        kind = "cuBLAS" if choice.way == "cuBLAS" else "kernel"
        ways.setdefault(kind, []).append(str(choice.rows))
    return "; ".join(
        f"{device} {product}: "
        + ", ".join(f"{kind} for {'/'.join(some)} rows" for kind, some in ways.items())
        for (device, product), ways in rows.items()
    )

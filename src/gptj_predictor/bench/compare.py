"""Two results, cell by cell."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import geometric_mean
from typing import Any

from gptj_predictor.bench.errors import PlanError
from gptj_predictor.bench.results import Cell, Results

UNKNOWN = "unknown"


@dataclass(frozen=True)
class Pair:
    """One cell of both."""

    before: Cell
    after: Cell

    @property
    def ratio(self) -> float:
        """Seconds after to seconds before: above 1 is slower."""
        assert self.before.seconds is not None
        assert self.after.seconds is not None
        return self.after.seconds / self.before.seconds

    def slower(self, threshold: float) -> bool:
        """Above the threshold, and not for noise: each round took longer than each before."""
        fastest = min(one.seconds for one in self.after.rounds)
        return self.ratio > threshold and fastest > max(one.seconds for one in self.before.rounds)


@dataclass(frozen=True)
class Comparison:
    """What :func:`compare` found."""

    pairs: list[Pair]
    notes: list[str]
    threshold: float

    @property
    def mean(self) -> float:
        """Geometric mean of all ratios."""
        return geometric_mean(pair.ratio for pair in self.pairs)

    @property
    def slower(self) -> str | None:
        """What is slower, in one line, if something is."""
        cells = [pair for pair in self.pairs if pair.slower(self.threshold)]
        if cells:
            worst = max(cells, key=lambda pair: pair.ratio)
            return (
                f"{len(cells)} of {len(self.pairs)} cells are slower by more than "
                f"{self.threshold:g}, the worst (batch {worst.before.batch}, "
                f"{worst.before.tokens} tokens) {worst.ratio:.3f} times"
            )
        if self.mean > self.threshold:
            return f"the geometric mean {self.mean:.3f} is above {self.threshold:g}"
        return None

    def lines(self) -> list[str]:
        """For people."""
        lines = [*self.notes, f"{'batch':>5} {'tokens':>6} {'A, s':>10} {'B, s':>10} {'B/A':>7}"]
        for pair in self.pairs:
            mark = "  slower" if pair.slower(self.threshold) else ""
            lines.append(
                f"{pair.before.batch:5} {pair.before.tokens:6} {pair.before.seconds:10.3f} "
                f"{pair.after.seconds:10.3f} {pair.ratio:7.3f}{mark}"
            )
        return [*lines, f"geometric mean of B/A over {len(self.pairs)} cells: {self.mean:.3f}"]


def compare(before: Results, after: Results, threshold: float) -> Comparison:
    """Pair the cells that both have.

    Raises:
        PlanError: there are none.
    """
    notes = _differences(before, after)
    cells = {cell.key: cell for cell in before.cells}, {cell.key: cell for cell in after.cells}
    pairs = []
    for key in sorted({*cells[0], *cells[1]}):
        one, other = (side.get(key) for side in cells)
        if one and other and one.seconds is not None and other.seconds is not None:
            pairs.append(Pair(one, other))
        else:
            states = ", ".join(
                f"{side} {'missing' if cell is None else cell.status.replace('_', ' ')}"
                for side, cell in (("A", one), ("B", other))
            )
            notes.append(f"batch {key[0]}, {key[1]} tokens: {states}")
    if not pairs:
        raise PlanError("the two results have no measured cell in common")
    return Comparison(pairs, notes, threshold)


def _differences(before: Results, after: Results) -> list[str]:
    """What was not the same for both."""
    own = {"started", "resumed", "batch_size", "lengths"}
    notes = []
    for part in ("run", "settings"):
        left = _flat(getattr(before, part).model_dump(exclude=own))
        right = _flat(getattr(after, part).model_dump(exclude=own))
        for name in {**left, **right}:
            one, other = left.get(name), right.get(name)
            if one != other:
                shown = [UNKNOWN if value is None else str(value) for value in (one, other)]
                notes.append(f"{name} differs: A {shown[0]}, B {shown[1]}")
    return notes


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested values by dotted names."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat

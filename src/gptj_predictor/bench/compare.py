"""Two results, compared cell by cell."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import geometric_mean
from typing import Any

from gptj_predictor.bench.errors import PlanError
from gptj_predictor.bench.results import Cell, Results

UNKNOWN = "unknown"


@dataclass(frozen=True)
class Pair:
    """One cell, as both results have it."""

    before: Cell
    after: Cell

    @property
    def ratio(self) -> float:
        """Seconds after divided by seconds before: above 1 is slower."""
        assert self.before.seconds is not None
        assert self.after.seconds is not None
        return self.after.seconds / self.before.seconds

    def slower(self, threshold: float) -> bool:
        """Whether the ratio is above the threshold, and not because of one noisy round.

        Every round after must also have taken longer than every round before.
        """
        fastest = min(one.seconds for one in self.after.rounds)
        return self.ratio > threshold and fastest > max(one.seconds for one in self.before.rounds)


@dataclass(frozen=True)
class Comparison:
    """What :func:`compare` found.

    Attributes:
        pairs: The cells that both measured.
        notes: In which other ways the two differ.
        threshold: The ratio that is too slow.
    """

    pairs: list[Pair]
    notes: list[str]
    threshold: float

    @property
    def mean(self) -> float:
        """Geometric mean of all ratios."""
        return geometric_mean(pair.ratio for pair in self.pairs)

    @property
    def slower(self) -> str | None:
        """What is slower, in one line; ``None`` if nothing is.

        Something is if a pair is :meth:`Pair.slower`, or if the mean is above the threshold.
        """
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
        """The comparison as text."""
        lines = [*self.notes, f"{'batch':>5} {'tokens':>6} {'A, s':>10} {'B, s':>10} {'B/A':>7}"]
        for pair in self.pairs:
            mark = "  slower" if pair.slower(self.threshold) else ""
            lines.append(
                f"{pair.before.batch:5} {pair.before.tokens:6} {pair.before.seconds:10.3f} "
                f"{pair.after.seconds:10.3f} {pair.ratio:7.3f}{mark}"
            )
        return [*lines, f"geometric mean of B/A over {len(self.pairs)} cells: {self.mean:.3f}"]


def compare(before: Results, after: Results, threshold: float) -> Comparison:
    """Pair the cells that both results have.

    Raises:
        PlanError: they have none in common.
    """
    notes = _differences(before, after)
    pairs = []
    for batch, tokens in sorted({cell.key for cell in (*before.cells, *after.cells)}):
        a, b = before.cell(batch, tokens), after.cell(batch, tokens)
        if a and b and a.seconds is not None and b.seconds is not None:
            pairs.append(Pair(a, b))
        else:
            notes.append(f"batch {batch}, {tokens} tokens: A {_state(a)}, B {_state(b)}")
    if not pairs:
        raise PlanError("the two results have no measured cell in common")
    return Comparison(pairs, notes, threshold)


def _state(cell: Cell | None) -> str:
    return "missing" if cell is None else cell.status.replace("_", " ")


def _differences(before: Results, after: Results) -> list[str]:
    """In which ways model, machine or settings differ, a line each."""
    a, b = _facts(before), _facts(after)
    return [
        f"{name} differs: A {_shown(a.get(name))}, B {_shown(b.get(name))}"
        for name in {**a, **b}
        if a.get(name) != b.get(name)
    ]


def _facts(results: Results) -> dict[str, Any]:
    """What should be the same in two results, by dotted names."""
    # Cells that only one has are noted one by one; no two runs have the same times.
    others = {"started", "resumed", "batch_size", "lengths"}
    return _flat(results.run.model_dump(exclude=others)) | _flat(
        results.settings.model_dump(exclude=others)
    )


def _shown(value: object) -> str:
    return UNKNOWN if value is None else str(value)


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dictionaries as one, with dotted names."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat

"""What came out so far: lines for people, everything for programs, on disk after every case."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

from one_card.goals import REFERENCE_BANDWIDTH, REFERENCE_CARD, Goal


class Record:
    """The figures, what was skipped, and what failed.

    Attributes:
        bandwidth: The measured copy bandwidth, in bytes per second; 0 until it is known.
        failures: What makes the exit code 1.
    """

    def __init__(
        self,
        facts: dict[str, Any],
        goals: tuple[Goal, ...],
        output: Path | None,
        budget: float,
    ) -> None:
        """Begin to count the seconds of ``budget``."""
        self.bandwidth = 0.0
        self.failures: list[str] = []
        self._facts, self._goals = facts, goals
        self._output, self._budget = output, budget
        self._started = time.perf_counter()
        self._figures: dict[str, tuple[float, str]] = {}
        self._details: dict[str, Any] = {}
        self._notes: list[str] = []

    @property
    def seconds(self) -> float:
        """Since the start."""
        return time.perf_counter() - self._started

    @property
    def is_late(self) -> bool:
        """Whether nothing more may begin."""
        return self.seconds > self._budget

    def note(self, text: str) -> None:
        """Say and keep a sentence."""
        print(f"[{self.seconds:5.0f} s] {text}", flush=True)
        self._notes.append(text)
        self.save()

    def fail(self, text: str) -> None:
        """Keep what must not be; the rest goes on."""
        self.failures.append(text)
        self.note(f"FAILED: {text}")

    def figure(self, name: str, value: float, unit: str) -> None:
        """Keep a figure; a goal may be for its name."""
        self._figures[name] = value, unit
        self.note(f"{name}: {_short(value)} {unit}".rstrip())

    def get(self, name: str) -> float | None:
        """A figure from before."""
        return self._figures[name][0] if name in self._figures else None

    def detail(self, name: str, value: Any) -> None:
        """Keep what is too long to say, for programs."""
        self._details[name] = value
        self.save()

    def table(self) -> str:
        """All figures, those with a goal first, beside what the goal is on this card."""
        ratio = self.bandwidth / REFERENCE_BANDWIDTH
        rows = [("what", "measured", f"goal here ({ratio:.2f} x {REFERENCE_CARD})", "verdict")]
        for goal in self._goals:
            wanted = f"{'<=' if goal.at_most else '>='} {_short(goal.on(self.bandwidth))}"
            value = self.get(goal.name)
            if value is None:
                rows.append((goal.name, "-", f"{wanted} {goal.unit}", "not measured"))
                continue
            share = value / goal.on(self.bandwidth)
            verdict = "met" if goal.is_met(value, self.bandwidth) else "missed"
            measured = f"{_short(value)} {goal.unit}"
            rows.append(
                (
                    goal.name,
                    measured,
                    f"{wanted} {goal.unit}",
                    f"{verdict}, {share:.2f} times the goal",
                )
            )
        with_goal = {goal.name for goal in self._goals}
        for name, (value, unit) in self._figures.items():
            if name not in with_goal:
                rows.append((name, f"{_short(value)} {unit}", "", ""))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        return "\n".join(
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in rows
        )

    def save(self) -> None:
        """Write everything so far, if there is a file for it."""
        if self._output is None:
            return
        goals = {
            goal.name: {"goal": goal.on(self.bandwidth), "at_most": goal.at_most}
            for goal in self._goals
            if self.bandwidth
        }
        content = self._facts | {
            "command": [sys.executable, *sys.argv],
            "seconds": round(self.seconds, 1),
            "bandwidth": self.bandwidth,
            "figures": {
                name: {"value": value, "unit": unit} | goals.get(name, {})
                for name, (value, unit) in self._figures.items()
            },
            "notes": self._notes,
            "failures": self.failures,
            "details": self._details,
        }
        self._output.write_text(json.dumps(content, indent=1, default=str) + "\n")


def _short(value: float) -> str:
    """Three or four digits."""
    if 0 < abs(value) < 0.1:
        return f"{value:.2g}"
    digits = 0 if abs(value) >= 1000 else 1 if abs(value) >= 10 else 2
    return f"{value:,.{digits}f}"

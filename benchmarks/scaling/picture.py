"""The picture of the studies: four questions, each with its answer as the title."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from gptj_predictor.bench.picture import OURS, SHADES, STYLE
from scaling.studies import Row, Setup

NEAR: dict[str, Any] = {"textcoords": "offset points", "fontsize": 9}
DRAWN = ("target", "delay", "pool", "retention")


def draw(rows: Sequence[Row], setup: Setup, path: Path) -> None:
    """Write the picture as SVG. ``rows`` has the studies in ``DRAWN``."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(12, 8.6))
        (first, second), (third, fourth) = figure.subplots(2, 2)
        figure.subplots_adjust(
            left=0.07, right=0.97, top=0.86, bottom=0.08, wspace=0.2, hspace=0.42
        )
        title = "Room in the running replicas decides how long the first token takes"
        figure.text(0.03, 0.955, title, fontsize=15, weight="bold")
        subject = (
            f"Simulated, {setup.service.source} · prompts of {setup.lengths.prompt_tokens} tokens, "
            f"texts of {setup.lengths.new_tokens} on average · bursts of 2.5 times the load"
        )
        figure.text(0.03, 0.925, subject, fontsize=10)
        _draw_target(first, [row for row in rows if row.study == "target"], setup)
        _draw_delay(second, [row for row in rows if row.study == "delay"])
        _draw_pool(third, [row for row in rows if row.study == "pool"])
        _draw_retention(fourth, [row for row in rows if row.study == "retention"])
        figure.savefig(path, metadata={"Date": None})
        # matplotlib ends some lines with a space.
        path.write_text("".join(f"{line.rstrip()}\n" for line in path.read_text().splitlines()))


def _draw_target(axes: Axes, rows: list[Row], setup: Setup) -> None:
    for start, color in zip(_starts(rows), SHADES, strict=False):
        for name, dashes in (("Knative", "-"), ("KEDA", "--")):
            chosen = [r for r in rows if r.start_seconds == start and r.label.startswith(name)]
            label = f"{name}, start {start / 60:.0f} min"
            _line(axes, [(r.x, r.ttft[2]) for r in chosen], color, label, dashes)
    _recommend(axes, setup.target)
    axes.set_xticks(setup.targets)
    _seconds(axes)
    _finish(
        axes,
        "Target: below half of its throughput, a replica takes a burst",
        "requests per replica",
    )


def _draw_delay(axes: Axes, rows: list[Row]) -> None:
    for name, color in zip(("Knative", "KEDA"), SHADES, strict=False):
        chosen = [row for row in rows if row.label.startswith(name)]
        _line(axes, [(row.x / 60, row.ttft[2]) for row in chosen], color, name, "-")
    _recommend(axes, 5)
    _seconds(axes)
    _finish(axes, "Scale-down: wait at least as long as a start takes", "minutes of delay")


def _draw_pool(axes: Axes, rows: list[Row]) -> None:
    for start, color in zip(_starts(rows), SHADES, strict=False):
        chosen = [row for row in rows if row.start_seconds == start]
        label = f"start {start / 60:.0f} min"
        _line(axes, [(row.x, row.ttft[2]) for row in chosen], color, label, "-")
    axes.set_xticks(sorted({row.x for row in rows}))
    _seconds(axes)
    _finish(axes, "Warm pool: what serves the burst must run before it", "minimum of replicas")


def _draw_retention(axes: Axes, rows: list[Row]) -> None:
    chosen: list[Row] = []
    points: list[tuple[float, float]] = []
    names = dict.fromkeys(row.label.split(",")[0] for row in rows)
    for name, color in zip(reversed(names), SHADES, strict=False):
        chosen = [row for row in rows if row.label.split(",")[0] == name]
        points = [(24 * row.mean_replicas, 100 * (1 - row.in_time)) for row in chosen]
        _line(axes, points, color, f"requests: {name}", "-")
    for row, point in zip(chosen, points, strict=True):
        text = f"{row.x:.0f} min"
        axes.annotate(text, point, (-6, -4), ha="right", va="top", **NEAR)
    axes.set_ylim(0, 100)
    axes.set_xlim(0, 25)
    axes.set_ylabel("% of requests that wait for a start")
    title = "Retention: with few requests, callers wait or the GPU idles"
    _finish(axes, title, "GPU-hours a day; minutes of retention at the points")


def _recommend(axes: Axes, x: float) -> None:
    axes.axvline(x, color=OURS, linewidth=1.2)
    axes.annotate("chosen", (x, 150), (4, 0), color=OURS, **NEAR)


def _starts(rows: list[Row]) -> list[float]:
    return sorted({row.start_seconds for row in rows})


def _line(
    axes: Axes, points: list[tuple[float, float]], color: str, label: str, dashes: str
) -> None:
    x, y = zip(*points, strict=True)
    axes.plot(x, y, dashes, color=color, label=label, linewidth=2, marker="o", markersize=4.5)


def _seconds(axes: Axes) -> None:
    axes.set_yscale("log")
    axes.set_ylim(0.01, 300)
    axes.set_yticks([0.01, 0.1, 1, 10, 100], ["0.01", "0.1", "1", "10", "100"])
    axes.set_ylabel("time to first token, p99, seconds")


def _finish(axes: Axes, title: str, x: str) -> None:
    axes.set_title(title, loc="left", fontsize=11, pad=10)
    axes.set_xlabel(x)
    axes.legend(frameon=False, fontsize=9)

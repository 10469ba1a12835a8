"""The report's picture: seconds by length, and tokens per second by batch."""

from __future__ import annotations

from pathlib import Path
from statistics import fmean
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from gptj_predictor.bench.published import CARDS, column, comparable
from gptj_predictor.bench.report import describe_speed, readable_parameters
from gptj_predictor.bench.results import Results

FILES = ("report.png", "report.svg")
DPI = 160

#: From Okabe and Ito, Color Universal Design (2008): people with any color vision tell them apart.
OURS = "#D55E00"
SHADES = ("#0072B2", "#009E73", "#CC79A7", "#000000")
PUBLISHED = "#8A8A8A"
TEXT = "#333333"
STYLE: dict[Any, Any] = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#999999",
    "axes.labelcolor": TEXT,
    "axes.grid": True,
    "grid.color": "#E6E6E6",
    "text.color": TEXT,
    "xtick.color": TEXT,
    "ytick.color": TEXT,
    "svg.fonttype": "none",  # text that can be searched
    "svg.hashsalt": "gptj-predictor",
}


def draw(results: Results, reference: str, folder: Path) -> None:
    """Write ``report.png`` and ``report.svg``."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(12, 5.6))
        left, right = figure.subplots(1, 2)
        figure.subplots_adjust(left=0.06, right=0.9, top=0.79, bottom=0.11, wspace=0.48)
        figure.text(0.03, 0.94, _message(results, reference), fontsize=15, weight="bold")
        figure.text(0.03, 0.89, _subject(results), fontsize=10)
        _draw_seconds(left, results, reference)
        if results.settings.batch_size > 1:
            _draw_batches(right, results)
        else:
            _draw_rates(right, results)
        for name in FILES:
            figure.savefig(folder / name, dpi=DPI, metadata={"Date": None} if "svg" in name else {})


def _message(results: Results, reference: str) -> str:
    """The headline: what the picture shows, in one line."""
    measured = _points(results, 1, "seconds")
    if not measured:
        return "Nothing was measured at batch 1"
    tokens, seconds = max(measured)
    text = f"{tokens:,} tokens in {seconds:.{2 if seconds < 10 else 1}f} s"
    if not comparable(results.run.parameters):
        return f"{text} with a small model, not GPT-J-6B"
    shared = [point for point in measured if point[0] in column(reference)]
    if not shared:
        return text
    tokens, seconds = max(shared)
    speed = describe_speed(column(reference)[tokens] / seconds)
    return f"{tokens:,} tokens in {seconds:.1f} s: {speed} the published {CARDS[reference]}"


def _subject(results: Results) -> str:
    run = results.run
    device = "unknown device" if run.device is None else ", ".join(run.device.names)
    return " · ".join(
        [
            f"{run.model or 'unnamed model'}, {readable_parameters(run.parameters)} parameters",
            device,
            run.precision or "unknown precision",
            "over HTTP" if run.path == "HTTP" else "engine called in process",
        ]
    )


def _points(results: Results, batch: int, figure: str) -> list[tuple[int, float]]:
    """A figure of the measured cells of a batch, as (tokens, figure), by tokens."""
    cells = (cell for cell in results.cells if cell.batch == batch and cell.status == "done")
    return sorted((cell.tokens, getattr(cell, figure)) for cell in cells)


def _draw_seconds(axes: Axes, results: Results, reference: str) -> None:
    same_size = comparable(results.run.parameters)
    labels = []
    if same_size:
        axes.set_yscale("log")
        for card, title in CARDS.items():
            points = sorted(column(card).items())
            chosen = card == reference
            color = TEXT if chosen else PUBLISHED
            _line(axes, points, color, width=1.8 if chosen else 1.0, marker="")
            labels.append((points[-1], title, color))
    batches = sorted({1, results.settings.batch_size})
    for batch, shape in zip(batches, ("o", "s"), strict=False):
        points = _points(results, batch, "seconds")
        if points:
            _line(axes, points, OURS, width=2.4, marker=shape)
            labels.append((points[-1], f"here, batch {batch}", OURS))
    if not same_size:
        axes.set_ylim(bottom=0)
    title = (
        "Seconds per response, beside the published ones"
        if same_size
        else "Seconds per response; GPT-J-6B's published ones are left out"
    )
    _finish(axes, title, "tokens in the response, prompt included", "seconds")
    _ticks_of_tokens(axes, max(point[0] for point, *_ in labels) if labels else 0)
    _label(axes, labels)


def _draw_batches(axes: Axes, results: Results) -> None:
    lengths = results.settings.lengths
    # Up to four lengths, evenly from the shortest to the longest.
    shown = sorted({lengths[round(part * (len(lengths) - 1) / 3)] for part in range(4)})
    labels = []
    for tokens, color in zip(shown, SHADES, strict=False):
        cells = [c for c in results.cells if c.tokens == tokens and c.tokens_per_second is not None]
        points = sorted((cell.batch, cell.tokens_per_second or 0.0) for cell in cells)
        if points:
            _line(axes, points, color, width=2, marker="o")
            labels.append((points[-1], f"{tokens:,} tokens", color))
    axes.set_ylim(bottom=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    _finish(axes, "New tokens per second, all sequences together", "batch", "tokens/s")
    _label(axes, labels)


def _draw_rates(axes: Axes, results: Results) -> None:
    points = _points(results, 1, "tokens_per_second")
    labels = []
    if points:
        _line(axes, points, OURS, width=2.4, marker="o")
        labels.append((points[-1], "here, batch 1", OURS))
    limits = [
        (cell.tokens, cell.new_tokens / cell.limit_seconds)
        for cell in results.cells
        if cell.batch == 1 and cell.limit_seconds
    ]
    if limits and comparable(results.run.parameters):  # a small model's weights stay in caches
        _line(axes, sorted(limits), TEXT, width=1.2, marker="", dashes="--")
        labels.append((max(limits), "limit by\nbandwidth", TEXT))
    axes.set_ylim(bottom=0)
    _finish(axes, "New tokens per second", "tokens in the response, prompt included", "tokens/s")
    _ticks_of_tokens(axes, max(results.settings.lengths))
    _label(axes, labels)


def _line(
    axes: Axes,
    points: list[tuple[int, float]],
    color: str,
    *,
    width: float,
    marker: str,
    dashes: str = "-",
) -> None:
    x, y = zip(*points, strict=True)
    axes.plot(x, y, dashes, color=color, linewidth=width, marker=marker, markersize=4.5)


def _finish(axes: Axes, title: str, x: str, y: str) -> None:
    axes.set_title(title, loc="left", fontsize=11, pad=10)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
    axes.yaxis.set_minor_formatter(FuncFormatter(lambda *_: ""))


def _ticks_of_tokens(axes: Axes, longest: int) -> None:
    if longest >= 1024:
        axes.set_xticks(range(0, longest + 1, 512 if longest > 1536 else 256))
    axes.set_xlim(left=0)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))


def _label(axes: Axes, labels: list[tuple[tuple[int, float], str, str]]) -> None:
    """Name each line beside its end, with names moved apart where ends are close."""
    to_axes = axes.transData + axes.transAxes.inverted()
    ends = sorted((float(to_axes.transform(label[0])[1]), *label) for label in labels)
    heights = _spread([height for height, *_ in ends])
    for height, (_, point, text, color) in zip(heights, ends, strict=True):
        arrow = {"arrowstyle": "-", "color": color, "linewidth": 0.6, "relpos": (0, 0.5)}
        axes.annotate(
            text,
            xy=point,
            xytext=(1.05, height),
            textcoords="axes fraction",
            va="center",
            color=color,
            fontsize=9.5,
            arrowprops=arrow | {"shrinkA": 1, "shrinkB": 4},
            annotation_clip=False,
        )


def _spread(heights: list[float], gap: float = 0.052) -> list[float]:
    """Move rising heights apart, to a minimum distance of ``gap``.

    The squares of the distances moved have the minimal sum. Without their gaps the new heights must
    not fall, so this is isotonic regression: neighbors that fall are pooled (Ayer et al., 1955).

    Args:
        heights: As shares of the axes' height.
        gap: The default is the height of a line of text.
    """
    pools: list[list[float]] = []
    for number, height in enumerate(heights):
        pools.append([height - number * gap])
        while len(pools) > 1 and fmean(pools[-2]) > fmean(pools[-1]):
            last = pools.pop()
            pools[-1] += last
    levels = [fmean(pool) for pool in pools for _ in pool]
    return [level + number * gap for number, level in enumerate(levels)]

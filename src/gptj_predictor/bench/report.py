"""The report in Markdown, and the cells as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from gptj_predictor.bench.published import CARDS, SECONDS, column, comparable
from gptj_predictor.bench.results import Cell, Device, Results
from gptj_predictor.common.files import write_whole

REPORT_FILE = "report.md"
CSV_FILE = "results.csv"

#: A figure that is not there.
UNKNOWN = "-"

COLUMNS = (
    "By its tokens, prompt included; batch 1. The other columns were published for the service "
    "that this one replaces (fp16)."
)
FIRST_TOKEN = {
    "event": "until every sequence had its first token",
    "stream": "until every sequence had its first piece of text",
    "one-token request": "a separate request for one token after other prompts",
}
FIGURES = (
    "Seconds, time to first token (TTFT) and time per output token (TPOT) are medians over the "
    "rounds; p95 is interpolated between them. TTFT: {first}. TPOT: the time after that, by the "
    "further tokens of each sequence. Limit: the time to read weights and KV cache at the measured "
    "bandwidth, as a share of the seconds. Memory: on a GPU the maximum that was allocated, the "
    "whole KV cache included; on a CPU the process's maximum resident size so far."
)


def write_report(results: Results, reference: str, folder: Path) -> None:
    """Write ``report.md`` and ``results.csv``."""
    write_whole(folder / REPORT_FILE, _render_report(results, reference))
    write_whole(folder / CSV_FILE, _render_csv(results))


def published_table(results: Results, reference: str) -> str:
    """Seconds at batch 1 beside the published ones, as a Markdown table."""
    same_size = comparable(results.run.parameters)
    heads = ["tokens", *CARDS.values(), "here"]
    heads.append(f"{CARDS[reference]} / here")
    rows = []
    for tokens in sorted({*SECONDS, *results.settings.lengths}):
        cell = results.cell(1, tokens)
        seconds = None if cell is None else cell.seconds
        there = column(reference).get(tokens)
        ratio = there / seconds if same_size and there and seconds else None
        published = SECONDS.get(tokens, [None] * len(CARDS))
        row = [str(tokens), *(_number(value, 2) for value in published)]
        rows.append([*row, _seconds(cell), _ratio(ratio)])
    table = _table(heads, rows)
    return table if same_size else f"{_warning(results)}\n\n{table}"


def _warning(results: Results) -> str:
    return (
        f"**This model has {readable_parameters(results.run.parameters)} parameters and is not "
        "GPT-J-6B, which the published columns are about: the comparison says nothing, and no "
        "ratio is given.**"
    )


def describe_run(results: Results) -> list[tuple[str, str]]:
    """The model, the machine and the settings, as names and values."""
    run, settings = results.run, results.settings
    lines = [
        ("model", f"{run.model or 'unnamed'}, {readable_parameters(run.parameters)} parameters"),
        ("commit", run.commit or "unknown"),
        ("path", "through a service's V1 endpoint" if run.path == "HTTP" else run.path),
        ("precision", run.precision or "unknown"),
        ("quantization", run.quantization or "unknown"),
        *_describe_device(run.device),
    ]
    if run.bandwidth is not None:
        lines.append(("bandwidth", f"{run.bandwidth / 1e9:,.1f} GB/s, measured at the start"))
    if run.kv_cache_tokens is not None:
        lines.append(("KV cache", f"room for {run.kv_cache_tokens:,} tokens"))
    sampling = ", ".join(f"{name} {value}" for name, value in settings.sampling.items())
    lines += [
        (
            "prompts",
            f"{settings.prompt_tokens} tokens, counted in the length; seed {settings.seed}",
        ),
        ("rounds", f"{settings.rounds} after {settings.warmup_rounds} for warming up"),
        ("sampling", sampling),
        ("versions", ", ".join(f"{name} {number}" for name, number in run.versions.items())),
        ("time", ", resumed ".join([run.started, *run.resumed])),
    ]
    return lines


def _describe_device(device: Device | None) -> list[tuple[str, str]]:
    if device is None:
        return [("device", "unknown")]
    text = ", ".join(device.names)
    if device.threads is not None:
        text += f", threads: {device.threads}"
    if device.memory_bytes is not None:
        text += f", {device.memory_bytes / 2**30:.0f} GiB"
    if device.compute_capability is not None:
        text += f", compute capability {device.compute_capability}"
    lines = [("device", text)]
    if device.driver is not None:
        lines.append(("driver", device.driver))
    if device.clocks is not None:
        clocks = ", ".join(f"{name} {value}" for name, value in device.clocks.items())
        lines.append(("clocks at the start", clocks))
    return lines


def describe_speed(ratio: float) -> str:
    """How fast, beside something: what stands before its name in a sentence.

    Args:
        ratio: The other one's seconds divided by ours, so above 1 is faster.
    """
    factor = max(ratio, 1 / ratio)
    digits = 1 if factor < 10 else 0
    if f"{factor:.1f}" == "1.0":
        return "as fast as"
    return f"{factor:.{digits}f} times {'as fast as' if ratio > 1 else 'slower than'}"


def readable_parameters(count: int) -> str:
    """A number of parameters as people say it: ``6.05 billion``."""
    return f"{count / 1e9:.2f} billion" if count >= 1e9 else f"{count / 1e6:.1f} million"


def _render_report(results: Results, reference: str) -> str:
    parts = ["# Benchmark", "", *[f"* {name}: {value}" for name, value in describe_run(results)]]
    parts += [
        "",
        "## One response, in seconds",
        "",
        COLUMNS,
        "",
        published_table(results, reference),
    ]
    if results.missing:
        parts += ["", f"{len(results.missing)} of {len(results.wanted)} cells are missing."]
    for batch in range(1, results.settings.batch_size + 1):
        cells = sorted((c for c in results.cells if c.batch == batch), key=lambda c: c.tokens)
        if cells:
            parts += ["", f"## Batch {batch}", "", _batch_table(cells)]
    parts += [
        "",
        FIGURES.format(first=FIRST_TOKEN[results.run.first_token]),
    ]
    return "\n".join(parts) + "\n"


def _batch_table(cells: Sequence[Cell]) -> str:
    heads = ["tokens", "seconds", "p95", "tokens/s per sequence", "tokens/s in all"]
    heads += ["TTFT, ms", "p95, ms", "TPOT, ms", "p95, ms", "limit", "memory, GiB"]
    rows = []
    for cell in cells:
        share, memory = cell.limit_share, cell.peak_memory_bytes
        row = [str(cell.tokens), _seconds(cell), _number(cell.seconds_p95, 3)]
        row += [_number(cell.tokens_per_second_per_sequence, 1)]
        row += [_number(cell.tokens_per_second, 1)]
        row += [_milliseconds(cell.first_token_seconds, 1)]
        row += [_milliseconds(cell.first_token_seconds_p95, 1)]
        row += [_milliseconds(cell.output_token_seconds, 2)]
        row += [_milliseconds(cell.output_token_seconds_p95, 2)]
        row.append(UNKNOWN if share is None else f"{share:.1%}")
        row.append(_number(None if memory is None else memory / 2**30, 1))
        rows.append(row)
    return _table(heads, rows)


def _seconds(cell: Cell | None) -> str:
    if cell is None:
        return UNKNOWN
    return cell.status.replace("_", " ") if cell.seconds is None else _number(cell.seconds, 3)


def _milliseconds(seconds: float | None, digits: int) -> str:
    return _number(None if seconds is None else seconds * 1000, digits)


def _ratio(value: float | None) -> str:
    if value is None:
        return UNKNOWN
    return f"{value:.1f}x" if value >= 1 else f"{value:#.2g}x"


def _number(value: float | None, digits: int) -> str:
    return UNKNOWN if value is None else f"{value:,.{digits}f}"


def _table(heads: list[str], rows: list[list[str]]) -> str:
    """A Markdown table, with aligned columns so that it reads well as plain text."""
    widths = [max(map(len, column)) for column in zip(heads, *rows, strict=True)]
    lines = [heads, ["-" * (width - 1) + ":" for width in widths], *rows]
    return "\n".join(
        f"| {' | '.join(text.rjust(width) for text, width in zip(line, widths, strict=True))} |"
        for line in lines
    )


def _render_csv(results: Results) -> str:
    """A line per cell, with the names of ``results.json`` as columns; without the rounds."""
    names = [name for name in Cell.model_fields if name != "rounds"]
    text = io.StringIO()
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    for cell in results.cells:
        writer.writerow(cell.model_dump(include=set(names)))
    return text.getvalue()

"""What came out so far: tables and notes for people, every sample for programs."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch

from gptj_predictor.bench.machine import cpu_name, utc_now, versions
from peers.timing import Samples

#: Settings that only matter to speed, kept beside the figures. None is changed here.
ENVIRONMENT = ["OMP_NUM_THREADS", "OMP_WAIT_POLICY", "KMP_BLOCKTIME", "THP_MEM_ALLOC_ENABLE"]
ENVIRONMENT += ["LD_PRELOAD", "MALLOC_CONF", "PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"]


class Tables:
    """Everything that was measured; on disk after every case.

    Attributes:
        bandwidth: The fastest plain read or copy so far, in bytes per second.
        failures: Of the notes, those that make the exit code 1.
    """

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.started = time.perf_counter()
        self.facts = _facts(arguments)
        self.bandwidth = 0.0
        self.samples: Samples = []
        self.failures: list[str] = []
        self._output: Path | None = arguments.output
        self._budget: float | None = arguments.budget
        self._tables: list[dict[str, Any]] = []
        self._notes: list[str] = []

    @property
    def place(self) -> str:
        """The machine in one line."""
        facts = self.facts
        cpu = f"{facts['cpu']}, {facts['threads']} threads of {facts['cores']} cores"
        return str(facts["gpu"] or cpu)

    def note(self, text: str) -> None:
        """Print a sentence and keep it."""
        print(text, flush=True)
        self._notes.append(text)

    def fail(self, text: str) -> None:
        """A note that makes the exit code 1."""
        self.failures.append(text)
        self.note(f"FAILED: {text}")

    def table(self, title: str, rows: Samples) -> None:
        """Print rows, which have the same keys, and keep them."""
        self._tables.append({"title": title, "rows": rows})
        if not rows:
            return
        cells = [list(rows[0]), *([_cell(value) for value in row.values()] for row in rows)]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        print(f"\n{title}")
        for row in cells:
            print("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)))
        print(flush=True)
        self.save()

    def late(self) -> bool:
        """Whether the time budget is used up."""
        return self._budget is not None and time.perf_counter() - self.started > self._budget

    def save(self) -> None:
        """Write everything so far, if ``--output`` was given."""
        if self._output is None:
            return
        content = self.facts | {
            "bandwidth": self.bandwidth,
            "notes": self._notes,
            "failures": self.failures,
            "tables": self._tables,
            "samples": self.samples,
        }
        self._output.write_text(json.dumps(content, indent=1, default=str) + "\n")


def _facts(arguments: argparse.Namespace) -> dict[str, Any]:
    """What was run where."""
    return {
        "command": [sys.executable, *sys.argv],
        "date": utc_now(),
        "versions": versions("ctranslate2", "triton"),
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if arguments.device == "cuda" else None,
        "dtypes": arguments.dtype,
        "environment": {name: os.environ[name] for name in ENVIRONMENT if name in os.environ},
        "settings": vars(arguments),
    }


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if not isinstance(value, float):
        return str(value)
    digits = 0 if abs(value) >= 1000 else 1 if abs(value) >= 10 else 2
    return f"{value:,.{digits}f}"

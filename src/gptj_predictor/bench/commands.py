"""What is made of results: ``gptj-predictor benchmark report`` and ``benchmark compare``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from gptj_predictor.bench.compare import compare
from gptj_predictor.bench.errors import BenchmarkError, PlanError
from gptj_predictor.bench.published import CARDS
from gptj_predictor.bench.report import published_table, write_report
from gptj_predictor.bench.results import RESULTS_FILE, Results, read_results


def write_all(results: Results, reference: str, folder: Path) -> None:
    """Write everything that is made of ``results.json``, and print the table."""
    try:
        # An extra, which takes its time to import.
        from gptj_predictor.bench.picture import draw

        draw(results, reference, folder)
    except ModuleNotFoundError as error:
        print(
            f"no picture: {error.name} is not installed (the extra [plot]); gptj-predictor "
            f"benchmark report {RESULTS_FILE} draws it anywhere else",
            file=sys.stderr,
        )
    write_report(results, reference, folder)
    print(published_table(results, reference))


def run_report(flags: argparse.Namespace) -> None:
    """Write report and picture anew, beside the results.

    Raises:
        PlanError: the results cannot be read.
    """
    check_reference(flags.reference)
    write_all(read_results(flags.results), flags.reference, flags.results.parent)


def run_compare(flags: argparse.Namespace) -> None:
    """Print the comparison of two results.

    Raises:
        PlanError: one of them cannot be read, or they have no cell in common.
        BenchmarkError: the second is slower.
    """
    comparison = compare(read_results(flags.before), read_results(flags.after), flags.threshold)
    for line in comparison.lines():
        print(line)
    if comparison.slower is not None:
        raise BenchmarkError(comparison.slower)


def check_reference(reference: str) -> None:
    """Refuse a column that was not published.

    Raises:
        PlanError: naming those that were.
    """
    if reference not in CARDS:
        raise PlanError(f"--reference {reference}: known are {', '.join(CARDS)}")

"""What is made of results: ``gptj-predictor benchmark report`` and ``benchmark compare``."""

from __future__ import annotations

import sys
from pathlib import Path

from gptj_predictor.bench.compare import compare
from gptj_predictor.bench.errors import BenchmarkError, PlanError
from gptj_predictor.bench.published import CARDS
from gptj_predictor.bench.report import published_table, write_report
from gptj_predictor.bench.results import RESULTS_FILE, Results, read_results


def write_all(results: Results, reference: str, folder: Path) -> None:
    """Write everything that is made of ``results.json`` into ``folder``, and print the table."""
    try:
        # An extra, which takes its time to import.
        from gptj_predictor.bench.picture import draw

        draw(results, reference, folder)
    except ModuleNotFoundError as error:
        print(
            f"no picture: {error.name} is not installed (the extra [plot]); where it is, "
            f"gptj-predictor benchmark report {RESULTS_FILE} draws it",
            file=sys.stderr,
        )
    write_report(results, reference, folder)
    print(published_table(results, reference))


def rewrite_report(path: Path, reference: str) -> None:
    """Write report and picture anew, beside the ``results.json`` at ``path``.

    Raises:
        PlanError: the results cannot be read, or the column is unknown.
    """
    check_reference(reference)
    write_all(read_results(path), reference, path.parent)


def print_comparison(before: Path, after: Path, threshold: float) -> None:
    """Compare two ``results.json`` and print the comparison.

    Raises:
        PlanError: one of them cannot be read, or they have no cell in common.
        BenchmarkError: the second is slower, see :class:`Comparison`.
    """
    comparison = compare(read_results(before), read_results(after), threshold)
    for line in comparison.lines():
        print(line)
    if comparison.slower is not None:
        raise BenchmarkError(comparison.slower)


def check_reference(reference: str) -> None:
    """Make sure that the column was published.

    Raises:
        PlanError: it was not; the text names those that were.
    """
    if reference not in CARDS:
        raise PlanError(f"--reference {reference}: known are {', '.join(CARDS)}")

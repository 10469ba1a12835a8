"""Why a benchmark ends, or why one of its cells has no figures."""

from __future__ import annotations


class PlanError(ValueError):
    """What was asked for is impossible; one line for the user."""


class BenchmarkError(RuntimeError):
    """The benchmark cannot go on, or the comparison found a slower one; one line for the user."""


class CellError(RuntimeError):
    """One cell could not be measured; the others can."""


class DoesNotFitError(CellError):
    """One cell needs more memory than there is."""

"""Why a benchmark ends, or a cell of it has no figures."""

from __future__ import annotations


class PlanError(ValueError):
    """What is asked for makes no sense; one line for the user."""


class BenchmarkError(RuntimeError):
    """It cannot go on, or has found what it was to find; one line for the user."""


class CellError(RuntimeError):
    """One cell could not be measured; the others can."""


class DoesNotFitError(CellError):
    """One cell does not fit the memory."""

from __future__ import annotations

import pytest

from tests.support.chart_values import MATRIX
from tests.support.charts import Release, render


@pytest.fixture(scope="session")
def releases() -> dict[str, Release]:
    """What the chart makes of every entry of MATRIX."""
    return {name: render(values) for name, values in MATRIX.items()}

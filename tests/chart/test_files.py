"""Files that are made from others are up to date."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.support.charts import CHART, INSTALLS

ROOT = CHART.parents[1]


@pytest.mark.process
def test_generated_files_are_up_to_date() -> None:
    """The values' table, and what the typical installs render to."""
    tool = [sys.executable, str(ROOT / "tools" / "chart_files.py"), "--check"]
    done = subprocess.run(tool, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    golden = {path.name for path in (Path(__file__).parent / "golden").iterdir()}
    assert golden == {f"{name}{end}" for name in INSTALLS for end in (".yaml", "-notes.txt")}


def test_installs_are_in_the_readme() -> None:
    assert len(INSTALLS) == 3
    for readme in (ROOT / "README.md", CHART / "README.md"):
        for name in INSTALLS:
            assert f"charts/gptj-isvc/ci/{name}-values.yaml" in readme.read_text()


def test_old_form_maps_to_values_that_exist() -> None:
    """Each field of the old catalogue's form has one value."""
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    text = (CHART / "README.md").read_text()
    section = text.partition("## From the old catalogue's form")[2].partition("\n## ")[0]
    rows = [re.findall(r"`([\w.]+)`", line) for line in section.splitlines() if "| `" in line]
    assert len(rows) >= 15
    for row in rows:
        node = values
        for key in row[-1].split("."):
            assert key in node, row
            node = node[key]

"""The chart's generated files are up to date, and its package has what an install needs."""

from __future__ import annotations

import re
import subprocess
import sys
import tarfile
from pathlib import Path

import helm_python
import pytest
import yaml

from tests.support.charts import CHART, EXAMPLES, example_values

ROOT = CHART.parents[1]


@pytest.mark.process
def test_generated_files_are_up_to_date() -> None:
    """The table of values, and what the examples render to."""
    tool = [sys.executable, str(ROOT / "tools" / "chart_files.py"), "--check"]
    done = subprocess.run(tool, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    golden = {path.name for path in (Path(__file__).parent / "golden").iterdir()}
    assert golden == {f"{name}{end}" for name in EXAMPLES for end in (".yaml", "-notes.txt")}


def test_readmes_and_docs_name_the_examples() -> None:
    """The chart's README installs each, and so do the project's pages together."""
    assert len(EXAMPLES) == 7
    files = {f"charts/gptj-isvc/examples/{name}.yaml" for name in EXAMPLES}
    pages = [ROOT / "README.md", *ROOT.glob("docs/**/*.md")]
    for texts in ([CHART / "README.md"], pages):
        text = "\n".join(page.read_text() for page in texts)
        assert set(re.findall(r"helm install .* -f (charts/\S+)", text)) == files


@pytest.mark.parametrize("name", EXAMPLES)
def test_examples_begin_with_what_they_are_for(name: str) -> None:
    text = (CHART / "examples" / f"{name}.yaml").read_text()
    head = re.match(r"(# .+\n)+", text)
    assert head
    assert len(head[0]) > 60


def test_package_has_the_examples(tmp_path: Path) -> None:
    archive = helm_python.package(CHART, destination=tmp_path)
    with tarfile.open(archive) as package:
        names = set(package.getnames())
        for name in EXAMPLES:
            member = package.extractfile(f"{CHART.name}/examples/{name}.yaml")
            assert member is not None
            assert yaml.safe_load(member) == example_values(name)
    # Every file of the chart's folder is in it, and no other.
    files = (path.relative_to(CHART.parent) for path in CHART.rglob("*") if path.is_file())
    assert names == {str(path) for path in files if path.name != ".helmignore"}


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

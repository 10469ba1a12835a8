"""The tables of the docs, made from the settings."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from gptj_predictor.cli import build_parser
from gptj_predictor.cli.flags import flag_fields
from gptj_predictor.settings import BenchmarkSettings, GenerationParameters, ServerSettings

FILE = Path(__file__).parents[2] / "tools" / "docs_tables.py"


def load_tool() -> Any:
    """The script as a module: tools/ is no package."""
    spec = importlib.util.spec_from_file_location("docs_tables", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


docs_tables = load_tool()


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip().strip("|").split(" | ")]


@pytest.mark.process
def test_nothing_is_stale() -> None:
    done = subprocess.run(
        [sys.executable, str(FILE), "--check"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_configuration_has_every_flag() -> None:
    page = (docs_tables.ROOT / "docs" / "configuration.md").read_text()
    for name in BenchmarkSettings.model_fields:
        assert f"| `--{name}` |" in page
    for name in (*ServerSettings.model_fields, *flag_fields(GenerationParameters)):
        assert f"| `--{name}`<br>`GPTJ_{name.upper()}` |" in page


def test_parameters() -> None:
    rows = [cells(line) for line in docs_tables.parameter_table().splitlines()]
    assert rows[0] == ["Parameter", "Allowed", "Default", "Meaning"]
    assert [row[0].strip("`") for row in rows[2:]] == list(GenerationParameters.model_fields)
    [top_k] = [row for row in rows if row[0] == "`top_k`"]
    assert top_k[1:3] == ["an integer from 0 (off) to the vocabulary", "50"]


def test_stale_sections_are_written_anew_and_the_rest_is_kept() -> None:
    page = "# A\n\n<!-- generated: report -->\nold\n<!-- end -->\nafter <!-- end -->\n"
    fresh = docs_tables.render(page)
    assert "old" not in fresh
    assert "| `RESULTS.json` | a path | has to be given |" in fresh
    assert fresh.endswith("<!-- end -->\nafter <!-- end -->\n")
    assert docs_tables.render(fresh) == fresh


def test_an_unknown_section() -> None:
    with pytest.raises(KeyError, match="nonsense"):
        docs_tables.render("<!-- generated: nonsense -->\n<!-- end -->\n")


def test_check_names_what_is_stale(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "docs" / "api.md"
    page.parent.mkdir()
    stale = "<!-- generated: parameters -->\n<!-- end -->\n"
    page.write_text(stale)
    monkeypatch.setattr(docs_tables, "ROOT", tmp_path)
    for arguments, code, told in (
        (["--check"], 1, "stale"),
        ([], 0, "written"),
        (["--check"], 0, ""),
    ):
        monkeypatch.setattr(sys, "argv", ["docs_tables.py", *arguments])
        with pytest.raises(SystemExit) as end:
            docs_tables.main()
        assert end.value.code == code
        assert told in capsys.readouterr().out
        assert (page.read_text() == stale) == (told == "stale")


def test_help_and_the_table_agree(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        build_parser(["snapshot"]).parse_args(["snapshot", "pull", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    for line in docs_tables.TABLES["pull"]().splitlines()[2:]:
        flag, kind, default, meaning = cells(line)
        assert flag.strip("`") in text
        assert meaning in text
        if kind != "a switch":
            assert f"default: {default})" in text

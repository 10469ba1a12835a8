"""What is made of results: table, CSV, picture, comparison."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
from matplotlib.image import imread

from gptj_predictor.bench.report import describe_speed, published_table
from gptj_predictor.bench.results import Cell, Results, Round, read_results
from gptj_predictor.cli import main
from tests.support.benchmarks import made_up


def write(folder: Path, results: Results) -> str:
    folder.mkdir(parents=True)
    results.write(folder)
    return str(folder / "results.json")


def test_results_come_back_as_they_were(tmp_path: Path) -> None:
    results = made_up(2)
    assert read_results(Path(write(tmp_path / "a", results))) == results


def test_median_and_p95() -> None:
    cell = made_up().cells[0]
    seconds = sorted(one.seconds for one in cell.rounds)
    assert cell.seconds == seconds[1]
    assert cell.seconds_p95 == pytest.approx(seconds[1] + 0.9 * (seconds[2] - seconds[1]))


def test_time_per_output_token() -> None:
    rounds = [
        Round(seconds=1 + 10 * pace, first_token_seconds=1, counted_tokens=22)
        for pace in (0.2, 0.4, 0.3)
    ]
    cell = Cell.of(2, 27, 11, rounds, None)
    assert cell.output_token_seconds == pytest.approx(0.3)
    assert cell.output_token_seconds_p95 == pytest.approx(0.39)
    assert Cell.of(2, 17, 1, rounds, None).output_token_seconds is None


def test_percentiles_are_in_the_report(tmp_path: Path) -> None:
    path = write(tmp_path / "a", made_up())
    assert main(["benchmark", "report", path]) == 0
    lines = (tmp_path / "a" / "report.md").read_text().splitlines()
    [heads] = [line for line in lines if "TPOT, ms" in line]
    names = [cell.strip() for cell in heads.split("|")]
    assert names[6:10] == ["TTFT, ms", "p95, ms", "TPOT, ms", "p95, ms"]
    row = [cell.strip() for cell in lines[lines.index(heads) + 2].split("|")]
    assert all(float(value) > 0 for value in row[6:10])


def test_table_beside_the_published_columns() -> None:
    lines = published_table(made_up(), "A40").splitlines()
    assert lines[0].endswith("| A100 (1) | A100 (2) |  here | A40 / here |")
    last = [cell.strip() for cell in lines[-1].strip("|").split("|")]
    assert last[:7] == ["2048", "149.16", "110.88", "69.48", "85.18", "63.41", "61.06"]
    assert float(last[8].removesuffix("x")) == pytest.approx(85.18 / float(last[7]), rel=0.01)
    assert len(lines) == 2 + 16


def test_another_model_gets_no_ratio() -> None:
    text = published_table(made_up(parameters=2_563_712), "A100-2")
    assert text.startswith("**This model has 2.6 million parameters and is not GPT-J-6B")
    assert all(line.split("|")[-2].strip() == "-" for line in text.splitlines()[4:])


@pytest.mark.parametrize(
    ("ratio", "text"),
    [
        (14.4, "14 times as fast as"),
        (2.04, "2.0 times as fast as"),
        (1.02, "as fast as"),
        (0.98, "as fast as"),
        (0.76, "1.3 times slower than"),
        (0.076, "13 times slower than"),
    ],
)
def test_speed_in_words(ratio: float, text: str) -> None:
    assert describe_speed(ratio) == text


def test_a_slow_machine_is_said_to_be_slow(tmp_path: Path) -> None:
    path = write(tmp_path / "a", made_up(factor=125.8))  # 0.076 times as fast as the A100
    assert main(["benchmark", "report", path]) == 0
    texts = " ".join(ElementTree.parse(tmp_path / "a" / "report.svg").getroot().itertext())
    assert "13 times slower than the published A100 (2)" in texts
    assert " 0.076x |" in (tmp_path / "a" / "report.md").read_text()


@pytest.mark.slow
@pytest.mark.parametrize(("batch", "parameters"), [(1, None), (8, None), (2, 2_563_712)])
def test_report_files(tmp_path: Path, batch: int, parameters: int | None) -> None:
    made = made_up(batch) if parameters is None else made_up(batch, parameters=parameters)
    nothing = Cell(batch=1, tokens=2048, new_tokens=2032, status="does_not_fit", reason="too small")
    results = made.with_cell(nothing)
    path = write(tmp_path / "a", results)
    assert main(["benchmark", "report", path]) == 0
    with (tmp_path / "a" / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(int(row["batch"]), int(row["tokens"])) for row in rows] == [
        cell.key for cell in results.cells
    ]
    assert rows[-1]["reason"] == "too small"
    report = (tmp_path / "a" / "report.md").read_text()
    assert "does not fit" in report
    assert f"## Batch {batch}" in report
    picture = imread(tmp_path / "a" / "report.png")
    assert picture.shape[1] >= 1600
    assert picture.std() > 0.05
    texts = " ".join(ElementTree.parse(tmp_path / "a" / "report.svg").getroot().itertext())
    assert "here, batch 1" in texts
    assert ("V100" in texts) == (parameters is None)


def test_everything_but_the_picture_without_matplotlib(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.delitem(sys.modules, "gptj_predictor.bench.picture", raising=False)
    path = write(tmp_path / "a", made_up())
    assert main(["benchmark", "report", path]) == 0
    assert {file.name for file in (tmp_path / "a").iterdir()} == {
        "results.json",
        "results.csv",
        "report.md",
    }
    printed = capsys.readouterr()
    assert "matplotlib is not installed" in printed.err
    assert "149.16" in printed.out


class TestCompare:
    def run(self, tmp_path: Path, after: Results, *flags: str) -> int:
        before = write(tmp_path / "a", made_up(2))
        return main(["benchmark", "compare", before, write(tmp_path / "b", after), *flags])

    def test_the_same(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert self.run(tmp_path, made_up(2, factor=1.05)) == 0
        printed = capsys.readouterr().out
        assert printed.splitlines()[-1].endswith("over 32 cells: 1.050")
        assert "differs" not in printed

    def test_slower(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert self.run(tmp_path, made_up(2, factor=1.2)) == 1
        assert "32 of 32 cells are slower" in capsys.readouterr().err
        assert main(["benchmark", "compare", "--threshold", "1.3", *self.paths(tmp_path)]) == 0

    def paths(self, tmp_path: Path) -> list[str]:
        return [str(tmp_path / side / "results.json") for side in "ab"]

    def test_one_noisy_round_is_not_slower(self, tmp_path: Path) -> None:
        results = made_up(2)
        cell = results.cells[0]
        slow = [one.model_copy(update={"seconds": one.seconds * 1.3}) for one in cell.rounds[:2]]
        noisy = Cell.of(*cell.key, cell.new_tokens, [*slow, cell.rounds[2]], None)
        assert self.run(tmp_path, results.with_cell(noisy)) == 0

    def test_one_slower_cell(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        results = made_up(2)
        cell = made_up(factor=1.5).cells[3]
        assert self.run(tmp_path, results.with_cell(cell)) == 1
        assert "batch 1, 512 tokens" in capsys.readouterr().err

    def test_unlike_runs_and_missing_cells_are_named(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert self.run(tmp_path, made_up(lengths=range(128, 513, 128), precision="float16")) == 0
        printed = capsys.readouterr().out
        assert "precision differs: A bfloat16, B float16" in printed
        assert "batch 2, 128 tokens: A done, B missing" in printed
        assert "over 4 cells" in printed

    def test_what_cannot_be_compared(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert self.run(tmp_path, made_up(lengths=range(100, 101))) == 2
        other = tmp_path / "b" / "results.json"
        content = json.loads(other.read_text()) | {"schema": "gptj-predictor-benchmark/9"}
        other.write_text(json.dumps(content))
        assert main(["benchmark", "compare", *self.paths(tmp_path)]) == 2
        assert "gptj-predictor-benchmark/9" in capsys.readouterr().err
        other.write_text("{")
        assert main(["benchmark", "compare", *self.paths(tmp_path)]) == 2
        content |= {"schema": "gptj-predictor-benchmark/1", "cells": [{"batch": 1}]}
        other.write_text(json.dumps(content))
        assert main(["benchmark", "compare", *self.paths(tmp_path)]) == 2
        assert "cells.0.tokens" in capsys.readouterr().err

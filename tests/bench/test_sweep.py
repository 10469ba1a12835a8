"""The sweep itself, over the real engine with the demo and over a real server."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from gptj_predictor.bench.engine_target import EngineTarget
from gptj_predictor.bench.errors import CellError, DoesNotFitError, PlanError
from gptj_predictor.bench.http_target import HttpTarget
from gptj_predictor.bench.results import Results, read_results
from gptj_predictor.bench.subject import lengths
from gptj_predictor.bench.targets import Sampling
from gptj_predictor.bench.text import Prompt, Prompts
from gptj_predictor.cli import main
from gptj_predictor.demo import DEMO_SNAPSHOT
from gptj_predictor.engine.request import Event, EventSink
from gptj_predictor.model.linear import can_multiply_int8
from gptj_predictor.model.network import GPTJNetwork
from gptj_predictor.settings import BenchmarkSettings
from gptj_predictor.tokenizer import Tokenizer
from tests.support.engines import FaultyNetwork, RunningEngine, load
from tests.support.secrets import KEYS, MountedSecret
from tests.support.servers import RunningServer, environment

FILES = {"results.json", "results.csv", "report.md", "report.png", "report.svg"}
#: The demo's.
END_OF_TEXT = 0

QUICK = ["--threads", "1", "--rounds", "2", "--prompt-tokens", "8", "--model", str(DEMO_SNAPSHOT)]


def benchmark(folder: Path, *flags: str) -> int:
    return main(["benchmark", "--output", str(folder), *QUICK, *flags])


def check_figures(results: Results) -> None:
    for cell in results.cells:
        assert cell.status == "done"
        assert cell.seconds is not None
        assert cell.tokens_per_second is not None
        assert cell.tokens_per_second_per_sequence is not None
        assert cell.new_tokens == cell.tokens - results.settings.prompt_tokens
        assert cell.seconds * cell.tokens_per_second_per_sequence == pytest.approx(cell.new_tokens)
        assert cell.seconds * cell.tokens_per_second == pytest.approx(cell.batch * cell.new_tokens)
        assert len(cell.rounds) == results.settings.rounds
        assert cell.first_token_seconds is not None
        assert cell.output_token_seconds is not None
        assert cell.output_token_seconds_p95 is not None
        assert 0 < cell.output_token_seconds <= cell.output_token_seconds_p95
        # The prompt and all further tokens are the whole.
        for one in cell.rounds:
            assert 0 < one.first_token_seconds < one.seconds


@pytest.fixture(scope="module")
def prompts() -> Prompts:
    return Prompts(Tokenizer(DEMO_SNAPSHOT), 16, seed=3)


@pytest.fixture(scope="module")
def running() -> Iterator[RunningEngine]:
    """The demo with a cache of 40 pages of 4 tokens."""
    with RunningEngine(DEMO_SNAPSHOT, kv_cache_bytes=41 * 4 * 2 * 192 * 4 * 4) as engine:
        yield engine


class TestPrompts:
    def test_the_same_place_gives_the_same_prompt(self, prompts: Prompts) -> None:
        again = Prompts(Tokenizer(DEMO_SNAPSHOT), 16, seed=3)
        other = Prompts(Tokenizer(DEMO_SNAPSHOT), 16, seed=4)
        assert prompts.cut(1, 128, 0, 0) == again.cut(1, 128, 0, 0)
        assert prompts.cut(1, 128, 0, 0) != other.cut(1, 128, 0, 0)
        assert prompts.sampling_seed(1, 2) == again.sampling_seed(1, 2)

    def test_places_differ_and_texts_have_their_tokens(self, prompts: Prompts) -> None:
        tokenizer = Tokenizer(DEMO_SNAPSHOT)
        cuts = [prompts.cut(1, 128, number) for number in range(200)]
        assert len({cut.text for cut in cuts}) > 190
        assert all(len(cut.ids) == 16 and tokenizer.encode(cut.text) == cut.ids for cut in cuts)


class TestEngineTarget:
    @pytest.mark.parametrize("batch", [1, 3])
    def test_every_response_has_exactly_the_tokens_that_were_asked_for(
        self, running: RunningEngine, monkeypatch: pytest.MonkeyPatch, batch: int
    ) -> None:
        """Counted beside the target, sequence by sequence."""
        counts: list[int] = []
        submit = running.engine.submit

        def counted(ids: list[int], params: Any, sink: EventSink) -> Any:
            number = len(counts)
            counts.append(0)

            def count(event: Event) -> None:
                counts[number] += event.token_id is not None
                assert event.token_id != END_OF_TEXT
                sink(event)

            return submit(ids, params, count)

        monkeypatch.setattr(running.engine, "submit", counted)
        target = EngineTarget(running.engine, Sampling(top_k=50))
        prompts = Prompts(Tokenizer(DEMO_SNAPSHOT), 8, seed=0)
        target.begin_cell(batch, 48)
        measured = target.run([prompts.cut(batch, row) for row in range(batch)], 40, seed=1)
        assert counts == [40] * batch
        assert measured.counted_tokens == 40 * batch
        assert 0 < measured.first_token_seconds < measured.seconds
        assert running.pages_in_use == 0

    def test_what_must_be_read(self, running: RunningEngine) -> None:
        target = EngineTarget(running.engine, Sampling(top_k=50))
        tensors = 2_563_712 - 2048 * 192 + 4 * 3 * 192  # q, k and v have no bias and room for one
        per_token = 2 * 4 * 192
        tokens = 9 + 10  # in the cache at the second and the third of three steps
        assert target.limit_bytes(2, 11, 3) == 4 * (3 * tensors + 2 * tokens * per_token)

    def test_what_does_not_fit(self, running: RunningEngine) -> None:
        target = EngineTarget(running.engine, Sampling(top_k=50))
        target.begin_cell(2, 80)
        with pytest.raises(DoesNotFitError, match="which has 160"):
            target.begin_cell(2, 84)
        with pytest.raises(DoesNotFitError, match="do not fit"):
            target.run([Prompt([1, 2], "")], 200, seed=0)
        # Let in all the same, one gives its pages back: this is not the batch that was meant.
        with pytest.raises(DoesNotFitError, match="together"):
            target.run([Prompt([n, 2], "") for n in range(1, 4)], 80, seed=0)

    def test_a_failing_step(self) -> None:
        network = FaultyNetwork(load(DEMO_SNAPSHOT))
        with RunningEngine(cast("GPTJNetwork", network)) as running:
            target = EngineTarget(running.engine, Sampling(top_k=50))
            for text, kind in (
                ("CUDA out of memory.", DoesNotFitError),
                ("a bad kernel", CellError),
            ):
                network.fault = RuntimeError(text)
                with pytest.raises(CellError, match=text) as caught:
                    target.run([Prompt([1, 2], "")], 4, seed=0)
                assert type(caught.value) is kind


@pytest.mark.slow
def test_in_process_with_cells_that_do_not_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("GPTJ_MAX_INSTANCES", "4")  # what only the server knows
    monkeypatch.setenv("GPTJ_TOP_K", "7")
    monkeypatch.setenv("GPTJ_MODEL_NAME", "mine")
    monkeypatch.setenv("GPTJ_PRECISION", "bfloat16")  # two bytes a value on every CPU
    monkeypatch.setenv("GPTJ_KV_CACHE_GIB", str(11 * 16 * 2 * 4 * 192 * 2 / 2**30))
    sweep = ["--batch_size", "2", "--min_tokens", "64", "--max_tokens", "128", "--step", "64"]
    assert benchmark(tmp_path, *sweep) == 0
    assert {file.name for file in tmp_path.iterdir()} == FILES
    results = read_results(tmp_path / "results.json")
    assert [(*cell.key, cell.status) for cell in results.cells] == [
        (1, 64, "done"),
        (1, 128, "done"),
        (2, 64, "done"),
        (2, 128, "does_not_fit"),
    ]
    check_figures(results.model_copy(update={"cells": results.cells[:3]}))
    for cell in results.cells[:3]:
        assert [one.counted_tokens for one in cell.rounds] == [cell.batch * cell.new_tokens] * 2
        assert cell.limit_share is not None
        assert cell.peak_memory_bytes is not None
    assert results.run.model == "bundled demo"
    assert results.run.parameters == 2_563_712
    assert results.run.device is not None
    assert (results.run.precision, results.run.quantization) == ("bfloat16", "none")
    assert results.settings.sampling["top_k"] == 50
    assert str(tmp_path) not in (tmp_path / "results.json").read_text()
    printed = capsys.readouterr()
    assert "4/4 batch 2, 128 tokens: does not fit" in printed.err
    assert "is not GPT-J-6B" in printed.out

    before = (tmp_path / "results.json").read_bytes()
    assert benchmark(tmp_path, *sweep) == 2
    assert "exists; --resume goes on with it" in capsys.readouterr().err
    assert benchmark(tmp_path, *sweep, "--resume") == 0  # nothing is missing
    assert benchmark(tmp_path, *sweep, "--resume", "--seed", "5") == 2
    assert "settings.seed was 0 and is 5" in capsys.readouterr().err
    assert (tmp_path / "results.json").read_bytes() == before


@pytest.mark.skipif(not can_multiply_int8(), reason="the CPU has no VNNI")
def test_int8_weights_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sweep = ["--min_tokens", "16", "--max_tokens", "16", "--precision", "bfloat16"]
    assert benchmark(tmp_path, *sweep, "--quantization", "int8") == 0
    results = read_results(tmp_path / "results.json")
    assert (results.run.precision, results.run.quantization) == ("bfloat16", "int8")
    assert "* quantization: int8\n" in (tmp_path / "report.md").read_text()
    capsys.readouterr()
    assert benchmark(tmp_path, *sweep, "--resume") == 2
    assert "run.quantization was 'int8' and is 'none'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--max-tokens", "4096"], "--max_tokens 4096: the model's context is 2048"),
        (["--min-tokens", "3000"], "--min_tokens 3000"),
        (["--prompt-tokens", "128"], "--prompt_tokens 128"),
        (["--rounds", "0"], "--rounds 0"),
        (["--reference", "H100"], "known are V100, RTX5000"),
        (["--url", "ftp://x"], "--url ftp://x"),
        (["--url", "https://x", "--api_key_file", "/none"], "--api_key_file /none: it cannot be"),
        (["--url", "https://x", "--ca_file", "/none"], "--ca_file /none: No such file"),
        (["--url", "https://x", "--ca_file", os.devnull], f"--ca_file {os.devnull}: "),
        (["--device", "cuda:7"], "cuda:7"),
    ],
)
def test_settings_that_make_no_sense(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], named: str
) -> None:
    assert benchmark(tmp_path / "new", *flags) == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("gptj-predictor: ")
    assert named in last
    assert not (tmp_path / "new").exists()


def test_every_flag_is_there_in_both_spellings(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["benchmark", "--help"])
    text = capsys.readouterr().out
    for name in (
        *BenchmarkSettings.model_fields,
        "precision",
        "quantization",
        "wait_for_snapshot",
        "resume",
    ):
        assert f"--{name} " in text or f"--{name}\n" in text
        assert f"--{name.replace('_', '-')}" in text
    assert "--max_body_bytes" not in text


@pytest.mark.slow
class TestHttp:
    def url(self, server: RunningServer) -> str:
        return f"http://127.0.0.1:{server.port}"

    def test_the_same_sweep_through_a_server(self, tmp_path: Path, server: RunningServer) -> None:
        sweep = ["--batch-size", "2", "--min-tokens", "40", "--max-tokens", "46", "--step", "6"]
        sweep += ["--warmup-rounds", "0"]
        assert benchmark(tmp_path, *sweep, "--url", self.url(server)) == 0
        assert {file.name for file in tmp_path.iterdir()} == FILES
        results = read_results(tmp_path / "results.json")
        assert len(results.cells) == 4
        check_figures(results)
        for cell in results.cells:
            for one in cell.rounds:  # of texts, tokenized anew
                assert one.counted_tokens == pytest.approx(cell.batch * cell.new_tokens, abs=2)
        assert results.run.path == "HTTP"
        assert results.run.first_token == "stream"
        assert results.run.device is None
        assert self.url(server) not in (tmp_path / "results.json").read_text()

    def test_a_service_that_does_not_stream(self, tmp_path: Path, server: RunningServer) -> None:
        sweep = ["--min-tokens", "40", "--max-tokens", "40", "--rounds", "1", "--stream", "false"]
        assert benchmark(tmp_path, *sweep, "--url", self.url(server)) == 0
        results = read_results(tmp_path / "results.json")
        assert results.run.first_token == "one-token request"
        assert "a separate request for one token" in (tmp_path / "report.md").read_text()

    def test_an_error_within_a_stream(self, server: RunningServer) -> None:
        """The cell fails, not the run."""
        tokenizer = Tokenizer(DEMO_SNAPSHOT)
        target = HttpTarget(self.url(server), tokenizer, Sampling(top_k=50), stream=True)
        target._client.headers["x-request-timeout"] = "0.000001"
        with pytest.raises(CellError, match="the stream ended with"):
            target.run([Prompts(tokenizer, 8, 0).cut(0)], 20, 1)
        target.close()

    def test_a_tokenizer_of_another_model(
        self, server: RunningServer, capsys: pytest.CaptureFixture[str]
    ) -> None:
        target = HttpTarget(self.url(server), Tokenizer(DEMO_SNAPSHOT), Sampling(top_k=50))
        good = Prompts(Tokenizer(DEMO_SNAPSHOT), 8, 0).cut(0)
        target.check_tokens([good])
        for text in (f"{good.text} and more of it", good.text[:6]):
            with pytest.raises(RuntimeError, match="the service"):
                target.check_tokens([Prompt(good.ids, text)])
        target.close()

    def test_nobody_there(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert benchmark(tmp_path, "--url", "http://127.0.0.1:9/v1/models/x:predict") == 1
        assert "http://127.0.0.1:9/v1/models/x" in capsys.readouterr().err

    def test_more_instances_than_the_server_takes(
        self, tmp_path: Path, server: RunningServer, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert benchmark(tmp_path, "--url", self.url(server), "--batch-size", "33") == 1
        assert "33 prompts; allowed are 1 to 32" in capsys.readouterr().err

    def test_keys_and_https(
        self,
        tmp_path: Path,
        secured: RunningServer,
        secrets: MountedSecret,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setenv("GPTJ_API_KEY_FILE", secrets["keys"])
        sweep = ["--min-tokens", "40", "--max-tokens", "40", "--ca-file", secrets["ca_crt"]]
        assert benchmark(tmp_path, *sweep, "--url", str(secured.client.base_url)) == 0
        written = (tmp_path / "results.json").read_text()
        assert len(read_results(tmp_path / "results.json").cells) == 1
        assert not any(key in written for key in KEYS)

    def test_without_the_key_or_the_authority(
        self,
        tmp_path: Path,
        secured: RunningServer,
        secrets: MountedSecret,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        url = ["--url", str(secured.client.base_url)]
        assert benchmark(tmp_path, *url, "--api_key_file", secrets["keys"]) == 1
        assert "CERTIFICATE_VERIFY_FAILED" in capsys.readouterr().err
        assert benchmark(tmp_path, *url, "--ca_file", secrets["ca_crt"]) == 1
        assert "answers 401" in capsys.readouterr().err


@pytest.mark.process
class TestKilled:
    """The real command, ended from outside."""

    def start(self, folder: Path, *flags: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [
                *(sys.executable, "-m", "gptj_predictor", "benchmark", "--output", str(folder)),
                *QUICK,
                *flags,
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment(),
        )

    def stop_after(
        self, process: subprocess.Popen[str], folder: Path, cells: int, number: int
    ) -> tuple[int, str]:
        """Wait for so many cells, send the signal, and return the exit code and stderr."""
        deadline = time.monotonic() + 120
        while self.count(folder) < cells:
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.01)
        os.kill(process.pid, number)
        os.kill(process.pid, number)  # as some do, to the process and to its group
        _, errors = process.communicate(timeout=60)
        return process.returncode, errors

    def count(self, folder: Path) -> int:
        path = folder / "results.json"
        return len(json.loads(path.read_bytes())["cells"]) if path.exists() else 0

    def test_killed_interrupted_and_resumed(self, tmp_path: Path, large: bool) -> None:
        sweep = ["--batch-size", "2", "--rounds", "1", "--resume"]
        if not large:
            sweep += ["--min-tokens", "64", "--max-tokens", "192", "--step", "64"]
            sweep += ["--warmup-rounds", "0"]
        first = self.start(tmp_path, *sweep)
        code, _ = self.stop_after(first, tmp_path, 1, signal.SIGKILL)
        assert code == -signal.SIGKILL
        assert not (tmp_path / "report.md").exists()
        killed = json.loads((tmp_path / "results.json").read_bytes())["cells"]

        second = self.start(tmp_path, *sweep)
        number = signal.SIGTERM if large else signal.SIGINT
        code, errors = self.stop_after(second, tmp_path, len(killed) + 1, number)
        assert code == 128 + number
        assert "--resume goes on" in errors
        assert "Traceback" not in errors
        assert {file.name for file in tmp_path.iterdir()} >= FILES
        assert "cells are missing" in (tmp_path / "report.md").read_text()

        assert benchmark(tmp_path, *sweep) == 0
        assert {file.name for file in tmp_path.iterdir()} >= FILES
        assert "missing" not in (tmp_path / "report.md").read_text()
        results = read_results(tmp_path / "results.json")
        check_figures(results)
        assert [cell.key for cell in results.cells] == results.wanted
        assert len(results.cells) == (32 if large else 6)
        assert len(results.run.resumed) == 2
        content = json.loads((tmp_path / "results.json").read_bytes())["cells"]
        assert json.dumps(content[: len(killed)]) == json.dumps(killed)


def test_the_context_bounds_the_default_and_no_wish() -> None:
    assert lengths(BenchmarkSettings(), 1000) == list(range(128, 897, 128))
    assert lengths(BenchmarkSettings(), 2048) == list(range(128, 2049, 128))
    with pytest.raises(PlanError, match="context is 1000"):
        lengths(BenchmarkSettings(max_tokens=1001), 1000)

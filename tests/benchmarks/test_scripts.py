"""Every script of ``benchmarks/`` runs, for one round that is as small as it can be."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from gptj_predictor.model.network import Placement
from gptj_predictor.snapshot.folder import SnapshotFolder
from gptj_predictor.snapshot.load import load_network
from tests.support.servers import RunningServer, environment

pytestmark = pytest.mark.process

ROOT = Path(__file__).parents[2]
FIGURE = r"[\d.]+"

pytestmark = pytest.mark.slow


def run(script: str, *flags: object, code: int = 0, folder: Path = ROOT) -> str:
    """Run a script as its documentation says, from the project's environment; what it printed."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / script), *map(str, flags)],
        capture_output=True,
        text=True,
        env=environment(),
        cwd=folder,
        check=False,
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def snapshot(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One layer of one head."""
    folder = tmp_path_factory.mktemp("snapshot") / "made-up"
    printed = run("make_snapshot.py", folder, "--layers", 1, "--hidden", 64, "--heads", 1)
    assert "0.01 GB of bfloat16 none in" in printed
    return folder


def test_int8_snapshot(snapshot: Path, tmp_path: Path) -> None:
    """The same weights as the other one's, quantized; it is not written over."""
    flags = ["--layers", 1, "--hidden", 64, "--heads", 1, "--quantization", "int8"]
    printed = run("make_snapshot.py", tmp_path, *flags)
    assert re.search(r"0.0\d GB of bfloat16 int8 in", printed)
    run("make_snapshot.py", tmp_path, *flags, code=1)
    dtype, placement = torch.bfloat16, Placement.on(torch.device("cpu"), 1)
    made, read = (
        load_network(SnapshotFolder.open(folder), dtype, placement, quantization="int8").weights
        for folder in (snapshot, tmp_path)
    )
    name = "layers.0.project_out.scale"
    assert read[name].equal(made[name])
    loads = ["--readers", 1, "--loads", "load", "--rounds", 1, "--caches", "warm"]
    loads += ["--memory", "as-is"]
    printed = run("weight_loading.py", snapshot, tmp_path, *loads)
    assert "quantization int8: 1 files" in printed
    assert re.search(rf"^load: .* takes {FIGURE} of the time of {snapshot}$", printed, re.M)


def test_cold_start() -> None:
    *alone, head, line = run("cold_start.py", "--imports", 1).splitlines()
    assert re.fullmatch(rf"imports, torch and kserve: {FIGURE} s, 0.00 s more", alone[0])
    assert re.fullmatch(rf"imports, server of .*: {FIGURE} s, -?{FIGURE} s more", alone[1])
    assert head.split()[:2] == ["snapshot", "cache"]
    model, cache, tree, *figures = line.split()
    assert (model, cache) == ("demo", "warm")
    assert str(ROOT).endswith(tree)
    alive, ready, token, imports, weights, peak, anonymous = map(float, figures)
    assert 0 < imports < alive < ready <= token
    assert 0 < weights < ready
    assert 0 < anonymous < peak


def test_busy_server() -> None:
    printed = run("busy_server.py", "--tokens", 16, "--rounds", 1)
    assert re.search(rf"longest of four alone {FIGURE} s, four together {FIGURE} s", printed)
    assert re.search(r"health meanwhile, [1-9]\d* probes", printed)


@pytest.mark.large
def test_overload() -> None:
    short = ["--seconds", 2, "--capacity-seconds", 1, "--warm-up", 0.5, "--concurrency", 4]
    load = ["--times", 3, "--new-tokens", 2, 4, "--deadline", 30]
    printed = run("overload.py", *short, *load, "--flags", "--max_queued_requests", 2)
    assert re.search(rf"4 clients that wait: {FIGURE} answers/s", printed)
    assert re.search(rf"goodput {FIGURE}/s, {FIGURE}% of the capacity", printed)
    assert "anything else: nothing" in printed
    assert re.search(r"429: [1-9]\d*, p50", printed)


@pytest.mark.large
def test_hang_ups() -> None:
    flags = ["--flags", "--max_batch_size", 8, "--max_queued_requests", 8]
    printed = run("hang_ups.py", "--clients", 2, "--at-once", 60, *flags)
    assert len(re.findall(r"after 8 sequences, 56 waiting, were given up: \d+ ms", printed)) == 5
    assert re.search(r"60 at once: {.*429: \d+", printed)


@pytest.mark.large
def test_soak() -> None:
    printed = run("soak.py", "--minutes", 0.08, "--clients", 40, "--cases", 8)
    assert re.search(r"good: 200: [1-9]", printed)
    assert re.search(r"cancelled: hung up: [1-9]", printed)
    assert "pages in use: 0, requests that wait: 0\nall right" in printed


def test_http_overhead() -> None:
    printed = run("http_overhead.py", "--requests", 2)
    assert len(re.findall(rf"outside predict {FIGURE} ms \(median of 2;", printed)) == 4


@pytest.mark.large
def test_streaming() -> None:
    few = ["--requests", 3, "--streams", 2, "--tokens", 8, "--rounds", 1, "--waiting", 5]
    printed = run("streaming.py", *few, "--keep-alive", 0.2)
    assert re.search(rf"first piece after the engine's first token: median {FIGURE} ms", printed)
    assert re.search(rf"2 of 8 tokens: .*ratio {FIGURE}; all complete", printed)
    assert re.search(r"5 streams that wait, with 2 keep-alives each: -?[\d.]+ MB", printed)


def test_weight_loading(snapshot: Path) -> None:
    flags = ["--rounds", 1, "--caches", "warm", "--readers", 1, 2, "--loads", "load, not packed"]
    printed = run("weight_loading.py", snapshot, *flags)
    for name in ("plain read, 2 readers", "plain read that keeps, 2 readers", "load, not packed"):
        assert re.search(rf"{name}.* {FIGURE} GB/s", printed)


@pytest.mark.large
def test_pull_speed(tmp_path: Path) -> None:
    printed = run("pull_speed.py", tmp_path, "--layers", 1, "--hidden", 64, "--heads", 1)
    assert re.search(rf"pull: {FIGURE} s, peak memory {FIGURE} GB", printed)
    assert re.search(rf"again: {FIGURE} s, peak memory {FIGURE} GB", printed)
    assert list((tmp_path / "cache").rglob("*.safetensors"))


@pytest.mark.large
def test_two_versions(tmp_path: Path, server: RunningServer) -> None:
    """A server that runs, and one that the script starts from a source tree."""
    output = tmp_path / "pairs.json"
    flags = ["--pairs", 2, "--batch", 1, 2, "--new-tokens", 4, "--prompt-tokens", 8]
    flags += ["--precision", "auto", "--max-ratio", 1000, "--texts-may-differ"]
    url = f"http://127.0.0.1:{server.port}"
    printed = run("two_versions.py", url, ROOT, *flags, "--output", output)
    assert len(re.findall(rf"{FIGURE} to {FIGURE}  (?:the same|\d pairs differ)", printed)) == 2
    pairs = json.loads(output.read_text())["pairs"]
    assert [pair["batch"] for pair in pairs] == [1, 1, 2, 2]
    assert all(pair["a"] > 0 and pair["b"] > 0 for pair in pairs)
    # Two prompts may begin in one step or in two, which can round differently; one cannot.
    assert all(pair["same_texts"] for pair in pairs if pair["batch"] == 1)


def test_two_versions_fails_if_one_is_slower(server: RunningServer) -> None:
    flags = ["--pairs", 2, "--batch", 1, "--new-tokens", 1, "--prompt-tokens", 8]
    url = f"http://127.0.0.1:{server.port}"
    printed = run("two_versions.py", url, url, *flags, "--max-ratio", 0.001, code=1)
    assert "batch 1: the interval ends above 0.001" in printed


def test_two_versions_runs_no_other_code(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks/two_versions.py"), str(tmp_path), str(tmp_path)],
        capture_output=True,
        text=True,
        env=environment(),
        check=False,
    )
    assert done.returncode == 1
    assert f"{tmp_path} would run" in done.stderr


@pytest.mark.large
def test_compare_with_peers(tmp_path: Path) -> None:
    """Without CTranslate2, which the project does not depend on."""
    output = tmp_path / "samples.json"
    shape = ["--layers", 1, "--hidden", 64, "--heads", 1, "--dtype", "float32"]
    load = ["--batch", 2, "--prompt-tokens", 8, "--new-tokens", 4, "--rounds", 1]
    cases = ["--requests", 2, "--one-by-one", 1, "--prefix-tokens", 32, "--unshared-pairs", 2]
    flags = ["--threads", 1, "--skip", "ct2", "--page-context", 16, "--output", output]
    flags += ["--quantization", "none", "int8"]
    printed = run("compare_with_peers.py", *shape, *load, *cases, *flags)
    assert "batch 2 8+4: ours and generate: same tokens (4)" in printed
    results = json.loads(output.read_text())
    assert results["failures"] == []
    assert [table["title"].split(":")[0].split(",")[0] for table in results["tables"]] == [
        *("decode", "concurrent", "prefix", "prefix", "page")
    ]
    assert {row["who"] for row in results["tables"][0]["rows"]} == {"ours", "ours int8", "generate"}
    assert [row["who"] for row in results["tables"][1]["rows"]] == [
        *("ours, at once", "ours int8, at once", "generate, one by one")
    ]


def test_int8_accuracy() -> None:
    shape = ["--layers", 1, "--hidden", 64, "--heads", 1, "--vocabulary", 60000]
    few = ["--outliers", "none", "--prompts", 4, "--questions", 4]
    printed = run("int8_accuracy.py", *shape, *few)
    assert len(re.findall(r"^  ours int8 +error 0\.\d+, +\d+\.\d\d x bf16", printed, re.M)) == 2
    assert len(re.findall(r"^  ours(?: int8)? +\d texts as in fp32", printed, re.M)) == 2


def test_load_test_needs_aiperf(tmp_path: Path) -> None:
    """The rest of it is tested on files that aiperf wrote, see ``test_load_test.py``."""
    done = subprocess.run(
        [
            *(sys.executable, str(ROOT / "benchmarks/load/load_test.py")),
            *("--url", "http://127.0.0.1:9", "--output", str(tmp_path / "new")),
        ],
        capture_output=True,
        text=True,
        env=environment(PATH=str(tmp_path)),
        check=False,
    )
    assert done.returncode == 1
    assert "aiperf is not installed" in done.stderr
    assert not (tmp_path / "new").exists()


def test_compare_with_peers_imports_little() -> None:
    """On a GPU machine it has torch, transformers, numpy and Triton, and the source tree."""
    code = (
        "import sys; sys.path.insert(0, 'benchmarks'); "
        "sys.modules |= dict.fromkeys(['pydantic', 'kserve', 'psutil', 'orjson', 'accelerate']); "
        "import compare_with_peers"
    )
    subprocess.run([sys.executable, "-c", code], env=environment(), cwd=ROOT, check=True)


def test_sampling_cost() -> None:
    printed = run("sampling_cost.py", "--batch", 2, "--calls", 1)
    assert len(re.findall(rf"batch 2, [^:]+: {FIGURE} ms", printed)) == 10
    assert len(re.findall(rf" {FIGURE} ms if one asks", printed)) == 9


def test_metrics_cost() -> None:
    printed = run("metrics_cost.py", "--calls", 10)
    assert len(re.findall(rf"a step with batch \d+: {FIGURE} us", printed)) == 3
    assert re.search(rf"a refused request: {FIGURE} us, {FIGURE} us with the counts", printed)
    assert re.search(rf"a scrape: -?{FIGURE} ms, where a probe takes {FIGURE} ms", printed)

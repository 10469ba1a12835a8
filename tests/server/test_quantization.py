"""A server with int8 weights: the same texts however it came to them, and what names them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
import torch
from kserve.protocol.grpc import grpc_predict_v2_pb2 as pb
from kserve.protocol.grpc import grpc_predict_v2_pb2_grpc as service

from gptj_predictor.cli import main
from gptj_predictor.demo import DEMO_SNAPSHOT
from gptj_predictor.model.linear import can_multiply_int8
from gptj_predictor.snapshot.folder import SnapshotFolder
from gptj_predictor.tokenizer import Tokenizer
from tests.support.metrics import Scrape
from tests.support.quantized import store_int8
from tests.support.servers import NAME, RunningServer

FLAGS = ("--precision", "bfloat16", "--device", "cpu")
PROMPTS = ["The film was", "SELECT name", "A"]
PLATFORM = "gptj-predictor_bfloat16-int8"

needs_vnni = pytest.mark.skipif(not can_multiply_int8(), reason="the CPU has no VNNI")


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo with int8 weights and its tokenizer."""
    return store_int8(DEMO_SNAPSHOT, tmp_path_factory.mktemp("m") / "int8", torch.bfloat16)


@pytest.fixture(scope="module")
def from_stored(stored: Path) -> Iterator[RunningServer]:
    with RunningServer("--model", str(stored), *FLAGS, grpc=True) as running:
        running.wait_until_ready()
        yield running


def texts(server: RunningServer) -> list[object]:
    """Greedy ones and seeded ones."""
    greedy = {"max_new_tokens": 12, "do_sample": False}
    seeded = {"max_new_tokens": 12, "seed": 5}
    answers = [
        server.client.post(server.predict_path, json={"instances": PROMPTS, "parameters": how})
        for how in (greedy, seeded)
    ]
    return [answer.json()["predictions"] for answer in answers]


@pytest.mark.process
@needs_vnni
class TestServes:
    def test_texts_do_not_depend_on_who_made_the_weights(self, from_stored: RunningServer) -> None:
        flags = ("--model", str(DEMO_SNAPSHOT), *FLAGS, "--quantization", "int8")
        with RunningServer(*flags) as made:
            made.wait_until_ready()
            assert texts(made) == texts(from_stored)
            assert "bfloat16 with int8 weights (asked for; made while loading) on cpu" in made.log
            assert Scrape.of(made).values_of("gptj_model_info", "quantization") == ["int8"]

    def test_what_names_it(self, from_stored: RunningServer, server: RunningServer) -> None:
        assert "bfloat16 with int8 weights (asked for; as stored) on cpu" in from_stored.log
        scrape = Scrape.of(from_stored)
        assert scrape.values_of("gptj_model_info", "precision") == ["bfloat16"]
        assert scrape.values_of("gptj_model_info", "quantization") == ["int8"]
        assert Scrape.of(server).values_of("gptj_model_info", "quantization") == ["none"]

    def test_the_models_metadata(self, from_stored: RunningServer, server: RunningServer) -> None:
        def platform(running: RunningServer) -> str:
            return str(running.client.get(f"/v2/models/{NAME}").json()["platform"])

        assert platform(from_stored) == PLATFORM
        assert platform(server) in ("gptj-predictor_bfloat16", "gptj-predictor_float32")
        with grpc.insecure_channel(f"127.0.0.1:{from_stored.grpc_port}") as channel:
            stub = service.GRPCInferenceServiceStub(channel)
            found = stub.ModelMetadata(pb.ModelMetadataRequest(name=NAME), timeout=30)
        assert found.platform == PLATFORM

    def test_another_fingerprint(self, from_stored: RunningServer, server: RunningServer) -> None:
        """A seeded text is another one."""
        body = {"model": NAME, "prompt": "A", "max_tokens": 1}
        found = {
            running.client.post("/openai/v1/completions", json=body).json()["system_fingerprint"]
            for running in (from_stored, server)
        }
        assert len(found) == 2

    def test_half_the_weights(self, from_stored: RunningServer) -> None:
        """The log counts them: what is multiplied with is one byte a value, its scales aside."""
        folder = SnapshotFolder.open(DEMO_SNAPSHOT)
        embedding = folder.config.vocab_size * folder.config.n_embd
        [line] = [one for one in from_stored.log.splitlines() if "loaded" in one]
        loaded = float(line.partition("loaded ")[2].split()[0]) * 1e9
        wanted = folder.parameters + embedding
        assert loaded == pytest.approx(wanted, rel=0.05, abs=5e6)


class TestRefused:
    def refusal(self, capsys: pytest.CaptureFixture[str], *flags: str) -> str:
        assert main(["serve", *FLAGS, *flags]) == 2
        return capsys.readouterr().err.splitlines()[-1]

    def test_weights_that_are_gone(self, stored: Path, capsys: pytest.CaptureFixture[str]) -> None:
        line = self.refusal(capsys, "--model", str(stored), "--quantization", "none")
        assert f"--quantization none: {stored} stores int8 weights" in line
        assert "use --quantization auto, or pull the model with --quantization none" in line

    @pytest.mark.parametrize("is_stored", [True, False])
    def test_a_cpu_without_the_instructions(
        self,
        stored: Path,
        is_stored: bool,
        capsys: pytest.CaptureFixture[str],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr("gptj_predictor.devices.quantization.can_multiply_int8", lambda: False)
        model = stored if is_stored else DEMO_SNAPSHOT
        line = self.refusal(capsys, "--model", str(model), "--quantization", "int8")
        assert "has no AVX-512 VNNI" in line
        remedy = "pull the model with" if is_stored else "use"
        assert line.endswith(f"{remedy} --quantization none")

    @pytest.mark.process
    @pytest.mark.skipif(can_multiply_int8(), reason="the CPU has VNNI")
    def test_this_cpu(self, stored: Path) -> None:
        with RunningServer("--model", str(stored), *FLAGS) as server:
            assert server.process.wait(120) == 2
            assert "has no AVX-512 VNNI" in server.log


def test_the_tokenizer_does_not_mind_the_configuration(stored: Path) -> None:
    assert len(Tokenizer(stored)) == len(Tokenizer(DEMO_SNAPSHOT))

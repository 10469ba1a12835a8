"""Models for the tests' hub, and processes that pull them."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Self

import torch
from safetensors.torch import load_file

from gptj_predictor.cli import main
from gptj_predictor.demo import DEMO_SNAPSHOT
from gptj_predictor.pull import publish as publishing
from gptj_predictor.pull.describe import describe_files
from gptj_predictor.snapshot.cache import ModelRoot
from gptj_predictor.snapshot.manifest import Manifest
from tests.support.servers import environment

MODEL_ID = "EleutherAI/gpt-j-6B"
ROOT = "eleutherai-gpt-j-6b"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def publish(cache: Path, name: str = "0123456789ab-bfloat16", model_id: str = MODEL_ID) -> Path:
    """A version out of the demo's files."""
    root = ModelRoot(cache / model_id.lower().replace("/", "-"))
    build = root.pull_path / "build"
    build.mkdir(parents=True)
    for file in DEMO_SNAPSHOT.iterdir():
        if file.suffix in {".json", ".safetensors"}:
            shutil.copy(file, build)
    files = describe_files(build, lambda: None)
    Manifest(model_id, "main", COMMIT, "bfloat16", (), files, {"torch": "x"}).write(build)
    version = publishing.publish(root, build, name, lambda: None)
    publishing.set_current(root, name)
    root.pull_path.rmdir()
    return version


def flip(file: Path, position: int = -1) -> None:
    """Change one bit of a file; by default in the middle."""
    content = bytearray(file.read_bytes())
    content[position if position >= 0 else len(content) // 2] ^= 0x10
    file.write_bytes(content)


@dataclass
class Done:
    """What a command did."""

    returncode: int
    stdout: str
    stderr: str


def run(*arguments: str) -> Done:
    """``gptj-predictor snapshot``, in this process."""
    with redirect_stdout(StringIO()) as out, redirect_stderr(StringIO()) as err:
        code = main(["snapshot", *arguments])
    return Done(code, out.getvalue(), err.getvalue())


def demo_weights(seed: int = 0) -> dict[str, torch.Tensor]:
    """The demo's weights in fp32, with the constants of old checkpoints; other seed, others."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {
        name: tensor.float() + seed * 1e-3 * torch.randn(tensor.shape, generator=generator)
        for name, tensor in load_file(DEMO_SNAPSHOT / "model.safetensors").items()
    }
    layers = {name.split(".")[2] for name in tensors if ".h." in name}
    for layer in layers:
        prefix = f"transformer.h.{layer}.attn"
        tensors[f"{prefix}.bias"] = torch.ones(1, 1, 64, 64, dtype=torch.bool)
        tensors[f"{prefix}.masked_bias"] = torch.tensor(-1e9)
    return tensors


def small_files() -> dict[str, bytes | Path]:
    """What a repository has beside the weights, needed and not."""
    files: dict[str, bytes | Path] = {
        file.name: file for file in DEMO_SNAPSHOT.iterdir() if file.suffix == ".json"
    }
    return files | {
        "README.md": b"A model.",
        "flax_model.msgpack": b"flax" * 500,
        "tf_model.h5": b"tensorflow" * 500,
        "rust_model.ot": b"rust" * 500,
    }


def pickled(folder: Path, seed: int = 0) -> dict[str, bytes | Path]:
    """A repository as the published checkpoint's: one fp32 pickle."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(demo_weights(seed), folder / "pytorch_model.bin")
    return {**small_files(), "pytorch_model.bin": folder / "pytorch_model.bin"}


def tree(folder: Path) -> dict[str, str]:
    """Every file below a folder with its digest, and every empty folder."""
    return {
        str(path.relative_to(folder)): (
            hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "folder"
        )
        for path in sorted(folder.rglob("*"))
        if path.is_file() or not any(path.iterdir())
    }


ZYGOTE = """
import json, os, signal, sys
import huggingface_hub.constants
from gptj_predictor import cli
from gptj_predictor.pull import convert
from gptj_predictor.pull import pull

huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE = 64 * 1024  # so that small files have moments too
convert.SHARD_BYTES = 2**20
signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # a zombie would look alive to the next pull
print("ready", flush=True)
for line in sys.stdin:
    arguments, output = json.loads(line)
    pid = os.fork()
    if not pid:
        log = os.open(output, os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
        os.dup2(log, 1)
        os.dup2(log, 2)
        code = 99
        try:
            code = cli.main(arguments)
        except SystemExit as end:
            code = end.code
        finally:
            sys.stdout.flush()
            with open(output + ".code", "w") as file:
                file.write(str(code))
            os._exit(0)
    print(pid, flush=True)
"""


class Pullers:
    """Starts ``gptj-predictor`` processes without waiting for their imports.

    A process that has imported everything forks one child per command.
    """

    def __init__(self, endpoint: str, folder: Path) -> None:
        self._folder, self._count = folder, 0
        self._zygote = subprocess.Popen(
            [sys.executable, "-c", ZYGOTE],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment(HF_ENDPOINT=endpoint, HF_HOME=str(folder / "hf")),
        )

    def __enter__(self) -> Self:
        assert self._zygote.stdout is not None
        assert self._zygote.stdout.readline() == "ready\n"
        return self

    def __exit__(self, *_: object) -> None:
        assert self._zygote.stdin is not None
        self._zygote.stdin.close()
        self._zygote.wait(30)
        assert self._zygote.stdout is not None
        self._zygote.stdout.close()

    def start(self, *arguments: str) -> Puller:
        self._count += 1
        output = self._folder / f"puller-{self._count}.log"
        assert self._zygote.stdin is not None
        assert self._zygote.stdout is not None
        print(json.dumps([arguments, str(output)]), file=self._zygote.stdin, flush=True)
        return Puller(int(self._zygote.stdout.readline()), output)


class Puller:
    """One command."""

    def __init__(self, pid: int, output: Path) -> None:
        self.pid, self._output = pid, output

    @property
    def output(self) -> str:
        return self._output.read_text()

    def kill(self) -> bool:
        """SIGKILL; whether it was still at work."""
        if self._code().exists():
            return False
        os.kill(self.pid, signal.SIGKILL)
        while self._runs():
            time.sleep(0.001)
        return not self._code().exists()

    def wait(self, timeout: float = 60) -> int:
        """Its exit code."""
        deadline = time.monotonic() + timeout
        while not (self._code().exists() and self._code().read_text()):
            assert time.monotonic() < deadline, self.output
            time.sleep(0.005)
        return int(self._code().read_text())

    def _code(self) -> Path:
        return self._output.with_name(self._output.name + ".code")

    def _runs(self) -> bool:
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return False
        return True

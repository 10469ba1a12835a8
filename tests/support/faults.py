"""A server whose network goes wrong when a file says so."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import torch

from gptj_predictor import launch
from gptj_predictor.__main__ import main
from gptj_predictor.model.network import GPTJNetwork
from gptj_predictor.model.step_inputs import StepInputs
from gptj_predictor.snapshot.load import load_network
from gptj_predictor.tokenizer import Detokenizer, Tokenizer
from tests.support.engines import FaultyNetwork

#: A server that looks for its fault in the file that the environment names.
FAULTY_SERVER = "from tests.support.faults import serve_with_faults; serve_with_faults()"

#: Prompts of more tokens run out of memory with the fault ``memory``.
MEMORY_FOR_PROMPT_TOKENS = 8

SECRET = "a secret of the program"


class PanicException(BaseException):
    """What the tokenizer's Rust code raises when it panics."""


class PanickingTokenizer:
    """The library's tokenizer: it panics with the fault ``tokenizer``, waits with ``slow``."""

    def __init__(self, tokenizer: Any, fault: Callable[[], str]) -> None:
        self._tokenizer = tokenizer
        self._fault = fault

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)

    def encode(self, *inputs: Any, **more: Any) -> Any:
        if self._fault() == "tokenizer":
            raise PanicException(SECRET)
        while self._fault() == "slow":
            time.sleep(0.01)
        return self._tokenizer.encode(*inputs, **more)


def serve_with_faults() -> None:
    file = Path(os.environ["FAULT"])

    def fault() -> str:
        return file.read_text() if file.exists() else ""

    def inject(step: StepInputs) -> None:
        match fault():
            case "memory":
                if sum(chunk.tokens for chunk in step.chunks) > MEMORY_FOR_PROMPT_TOKENS:
                    raise torch.OutOfMemoryError(SECRET)
            case "exception":
                raise KeyError(SECRET)
            case "device":
                raise RuntimeError("CUDA error: an illegal memory access was encountered\nmore")
            case "thread":
                sys.exit()  # ends the thread, as nothing else does
            case "hang":
                while file.exists():
                    time.sleep(0.01)

    def spoil(logits: torch.Tensor) -> None:
        if fault() == "nan":
            logits[-1] = torch.nan

    add = Detokenizer.add

    def load_faulty(*inputs: Any, **more: Any) -> GPTJNetwork:
        network = FaultyNetwork(load_network(*inputs, **more))
        network.inject, network.spoil = inject, spoil
        return cast("GPTJNetwork", network)

    def make_faulty_tokenizer(path: Path) -> Tokenizer:
        tokenizer = Tokenizer(path)
        vars(tokenizer)["_backend"] = PanickingTokenizer(tokenizer._backend, fault)
        return tokenizer

    def add_faulty(detokenizer: Detokenizer, token_id: int) -> str:
        if fault() == "detokenizer":
            raise ValueError(SECRET)
        return add(detokenizer, token_id)

    replacements: dict[Any, dict[str, Any]] = {
        launch: {"load_network": load_faulty, "Tokenizer": make_faulty_tokenizer},
        Detokenizer: {"add": add_faulty},
    }
    for owner, names in replacements.items():
        for name, replacement in names.items():
            setattr(owner, name, replacement)
    main()

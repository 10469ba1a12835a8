"""CTranslate2, which computes GPT-J on a CPU in fp32, or with int8 weights."""

from __future__ import annotations

import importlib
import tempfile
import time
from types import SimpleNamespace
from typing import Any

import numpy
import torch
from transformers import GPTJConfig

from peers.peer import Peer
from peers.timing import Prompts, Timing
from peers.weights import CPU, make_model

#: How CTranslate2 computes beside our dtypes. It has no 16-bit types on CPUs. Its "int8" rounds
#: weights and, row by row, activations to int8, and computes all else in fp32.
KINDS = {"float32": ["float32", "int8"], "bfloat16": ["int8"]}


class CTranslate2(Peer):
    """A loaded CTranslate2 model; its tokens are strings."""

    def __init__(self, generator: Any, name: str, step_bytes: int) -> None:
        super().__init__(name, step_bytes)
        self.generator = generator

    def describe(self) -> str:
        """See :meth:`Peer.describe`."""
        version = importlib.import_module("ctranslate2").__version__
        return f"{self.name}: version {version}, compute type {self.generator.compute_type}"

    def run(self, prompts: Prompts, new: int) -> Timing:
        """See :meth:`Peer.run`."""
        words = [[_word(token) for token in prompt] for prompt in prompts]
        times = [0.0] * new

        def note(result: Any) -> bool:
            times[result.step] = time.perf_counter()  # the time of the batch's last one stays
            return False

        started = time.perf_counter()
        results = self.generator.generate_batch(
            words,
            min_length=new,
            max_length=new,
            beam_size=1,
            sampling_topk=1,
            include_prompt_in_result=False,
            callback=note,
        )
        return Timing.of(list(results[0].sequences_ids[0]), started, times)


def make_ctranslate2(
    config: GPTJConfig, dtype: str, step_bytes: int, threads: int, kind: str
) -> Peer:
    """CTranslate2 with the weights that everyone has, computing in ``kind``."""
    model = make_model(config, getattr(torch, dtype), CPU)
    return CTranslate2(convert(model, kind, threads), name_of(kind), step_bytes)


def convert(model: Any, kind: str, threads: int) -> Any:
    """CTranslate2's generator with the weights of a GPT-J of transformers.

    Needs the weights' size in temporary files. Do not use the model afterwards: the converter
    reorders rows of its queries and keys in place.
    """
    ctranslate2 = importlib.import_module("ctranslate2")  # it is not installed everywhere
    converters = importlib.import_module("ctranslate2.converters")
    words = {_word(token): token for token in range(model.config.vocab_size)}
    end = _word(model.config.eos_token_id)
    tokenizer = SimpleNamespace(
        get_vocab=lambda: words, bos_token=end, eos_token=end, unk_token=end
    )
    with tempfile.TemporaryDirectory() as folder:
        model.config.save_pretrained(folder)
        converter = converters.TransformersConverter(folder)
        # The model is in memory already, and no tokenizer belongs to it.
        converter.load_model = lambda *_, **__: model
        converter.load_tokenizer = lambda *_, **__: tokenizer
        converter.convert(f"{folder}/converted")
        return ctranslate2.Generator(
            f"{folder}/converted", compute_type=kind, inter_threads=1, intra_threads=threads
        )


def logits_of(generator: Any, ids: list[int]) -> torch.Tensor:
    """``[T, vocabulary]`` fp32, the logits after each of T tokens."""
    words = [[_word(token) for token in ids]]
    logits = numpy.array(generator.forward_batch(words, return_log_probs=False))
    return torch.from_numpy(logits)[0].float()


def name_of(kind: str) -> str:
    """The peer's name."""
    return f"ctranslate2 {kind}"


def _word(token: int) -> str:
    return f"t{token}"

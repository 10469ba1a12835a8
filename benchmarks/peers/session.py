"""One dtype's weights, everyone who has them, and how they are measured."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import gc
import importlib
import math
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import get_args

import torch
from transformers import GPTJConfig

from gptj_predictor.bench.machine import measure_bandwidth
from gptj_predictor.devices.cuda_graphs import capture_for
from gptj_predictor.engine.core import EngineConfig
from gptj_predictor.engine.engine import Engine
from gptj_predictor.model.network import GPTJNetwork
from gptj_predictor.model.quantization import WeightQuantization
from peers import ctranslate
from peers.generate import Generate, make_generate
from peers.ours import Ours, make_ours, name_of
from peers.peer import Peer, SeparatePeer
from peers.tables import Tables
from peers.timing import Load, Prompts, Timing
from peers.weights import make_model, make_network, step_bytes_of

PAGE_SIZE = 16
#: Seconds before a measurement on a CPU: the last one's OpenMP threads spin for 0.2 s.
PAUSE = 0.3


@dataclass
class Session:
    """One dtype's weights in everyone's hands, and what to ask of them.

    Attributes:
        tables: Where everything goes that is measured.
        arguments: The command line.
        dtype: Its name.
        device: Of the weights.
        config: The model's.
        network: Ours, with the first of the wanted quantizations.
        step_bytes: Bytes of weights that one decode step reads, by quantization.
        generate: ``None`` if it is skipped, or after :meth:`drop_peers`.
        others: The peers beside ``generate``.
        seed: Of the last prompts.
    """

    tables: Tables
    arguments: argparse.Namespace
    dtype: str
    device: torch.device
    config: GPTJConfig
    network: GPTJNetwork
    step_bytes: dict[WeightQuantization, int]
    generate: Peer | None = None
    others: list[Peer] = field(default_factory=list)
    seed: int = 0

    @classmethod
    def build(cls, tables: Tables, arguments: argparse.Namespace, dtype: str) -> Session:
        """Make the weights once and hand them to everyone who is not skipped."""
        device = torch.device("cuda:0" if arguments.device == "cuda" else "cpu")
        config = GPTJConfig(
            n_layer=arguments.layers, n_embd=arguments.hidden, n_head=arguments.heads
        )
        model = make_model(config, getattr(torch, dtype), device)
        network = make_network(config, model, device, arguments.quantization[0])
        step_bytes = {name: step_bytes_of(model, name) for name in get_args(WeightQuantization)}
        parameters = sum(parameter.numel() for parameter in model.parameters())
        read = ", ".join(f"{size / 1e9:.3f} GB ({name})" for name, size in step_bytes.items())
        tables.note(
            f"{dtype}: {parameters / 1e6:,.0f} M parameters; read a step, by quantization: {read}"
        )
        session = cls(tables, arguments, dtype, device, config, network, step_bytes)
        if "ct2" not in arguments.skip:
            session.others = list(session._ctranslate2())
        if "generate" not in arguments.skip:
            session.generate = (
                Generate(model, step_bytes["none"])
                if device.type == "cuda"
                else session.separate("generate", step_bytes["none"], make_generate)
            )
        return session

    def _ctranslate2(self) -> Iterator[Peer]:
        kinds = ctranslate.KINDS.get(self.dtype, []) if self.device.type == "cpu" else []
        if not kinds:
            self.tables.note(f"CTranslate2 is not measured beside {self.dtype} on {self.device}")
            return
        try:
            importlib.import_module("ctranslate2")
        except ImportError as error:
            self.tables.note(f"CTranslate2 is not here: {error}")
            return
        for kind in kinds:
            name = ctranslate.name_of(kind)
            step_bytes = self.step_bytes["int8" if kind == "int8" else "none"]
            peer = self.separate(name, step_bytes, ctranslate.make_ctranslate2, kind)
            self.tables.note(peer.describe())
            yield peer

    def separate(
        self, name: str, step_bytes: int, make: Callable[..., Peer], *more: object
    ) -> SeparatePeer:
        """A peer with the weights that everyone has, in a process of its own."""
        what = (self.config, self.dtype, step_bytes, self.arguments.threads, *more)
        return SeparatePeer(name, step_bytes, make, *what)

    @property
    def our_name(self) -> str:
        """Our name in the tables, with the first of the wanted quantizations."""
        return name_of(self.arguments.quantization[0])

    @contextlib.contextmanager
    def ours_beside_peers(self, load: Load) -> Iterator[list[Peer]]:
        """Our engine for each quantization: on a CPU in a process of its own, on a GPU here."""
        with contextlib.ExitStack() as stack:
            if self.device.type == "cuda":
                yield [stack.enter_context(self.ours(load))]
                return
            config, ours = self.engine_config(load), list[Peer]()
            for quantization in self.arguments.quantization:
                name, step_bytes = name_of(quantization), self.step_bytes[quantization]
                ours.append(self.separate(name, step_bytes, make_ours, config, quantization))
                stack.callback(ours[-1].close)
            yield ours

    @contextlib.contextmanager
    def ours(
        self,
        load: Load,
        *,
        name: str | None = None,
        page_size: int = PAGE_SIZE,
        enable_prefix_caching: bool = True,
    ) -> Iterator[Ours]:
        """Our engine in this process, with room for a load."""
        config = self.engine_config(
            load, page_size=page_size, enable_prefix_caching=enable_prefix_caching
        )
        engine = Engine(self.network, config, capture_for(self.network))
        step_bytes = self.step_bytes[self.arguments.quantization[0]]
        ours = Ours(engine, name or self.our_name, step_bytes)
        try:
            yield ours
        finally:
            del ours.engine, engine
            self.collect()

    def engine_config(
        self, load: Load, *, page_size: int = PAGE_SIZE, enable_prefix_caching: bool = True
    ) -> EngineConfig:
        """A KV cache with room for a load, and one page more for each sequence."""
        pages = load.batch * (math.ceil((load.prompt + load.new) / page_size) + 1) + 1
        return EngineConfig(
            max_batch_size=load.batch,
            max_prefill_tokens=self.arguments.max_prefill_tokens,
            page_size=page_size,
            num_pages=pages,
            enable_prefix_caching=enable_prefix_caching,
        )

    def prompts(self, count: int, tokens: int) -> Prompts:
        """Random prompts, other ones at every call."""
        self.seed += 1
        source = torch.Generator().manual_seed(self.seed)
        size = (count, tokens)
        return torch.randint(self.config.vocab_size, size, generator=source).tolist()

    def measure(self, peer: Peer, prompts: Prompts, new: int, **where: object) -> Timing:
        """Measure a peer once; the figures are kept as a sample."""
        gc.collect()
        if self.device.type == "cpu":
            time.sleep(PAUSE)
        timing = peer.run(prompts, new)
        load = Load(len(prompts), len(prompts[0]), new)
        self.tables.samples.append(
            {"dtype": self.dtype, "who": peer.name, **where, **dataclasses.asdict(load)}
            | {"first_s": timing.first, "total_s": timing.total, "step_s": timing.step}
            | {"slowest_s": timing.slowest}
        )
        return timing

    def measure_bandwidth(self, **where: object) -> None:
        """Measure a plain read or copy; the rate in bytes per second is kept as a sample."""
        rate = measure_bandwidth(self.device, self.arguments.threads)
        self.collect()
        sample = {"dtype": self.dtype, "who": "bandwidth", **where, "bytes_per_s": rate}
        self.tables.samples.append(sample)
        self.tables.bandwidth = max(self.tables.bandwidth, rate)

    def fail(self, who: str, doing: str, error: Exception) -> str:
        """Report that someone failed; returns why."""
        traceback.print_exception(error)
        reason = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
        self.tables.fail(f"{self.dtype} {doing}: {who} failed: {reason}")
        return reason

    def drop_peers(self) -> None:
        """Free the memory of everyone but us."""
        for peer in filter(None, [self.generate, *self.others]):
            peer.close()
        self.generate = None
        self.others.clear()
        self.collect()

    def collect(self) -> None:
        """Give freed memory back."""
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

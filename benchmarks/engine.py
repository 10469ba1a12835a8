"""Our engine, transformers' ``generate`` and CTranslate2 in turns on the same made-up GPT-J.

    THP_MEM_ALLOC_ENABLE=1 PYTHONPATH=src python benchmarks/engine.py --output results.json
    PYTHONPATH=src python benchmarks/engine.py --cases decode --dtype bfloat16 --batch 1 8
    PYTHONPATH=src python benchmarks/engine.py --layers 2 --hidden 256 --heads 1 --prompt-tokens 8 \
        --new-tokens 8 --prefix-tokens 64 --page-context 64     # a minute: does it all run?
    PYTHONPATH=src python3 benchmarks/engine.py --device cuda --output results.json    # H200 table

``THP_MEM_ALLOC_ENABLE`` gives torch's memory huge pages, as ``gptj-predictor serve`` does.
On a CPU the model has 609 M parameters in bf16, then fp32. On a GPU it is GPT-J-6B's size in bf16,
made on the device, and the cases are those of a fixed table (``--preset h200``); this needs torch,
transformers, numpy and triton, and no files. Weights and prompts are random: the text is noise.

Everyone measured gets the same weights, prompts and lengths and greedy sampling without an early
end, one after the other within each round, so that other load on the machine hits all of them. The
cases:

* ``decode``: a batch starts together. A step takes (total - first token) / (new tokens - 1). All
  three tell when each token came: ``generate`` to a stopping criterion, CTranslate2 to a callback.
  With more than one sequence the first token is there when all have theirs. "of limit" compares a
  step with one read of all weights but the embedding at the bandwidth of a plain read: the fastest
  of this run so far, measured in every round; the KV cache's bytes are not counted. "slowest" is
  by the longest pause between two tokens. (On a CPU in 16 bit, ``generate`` may take seconds for
  the first tokens of several prompts: its head's product has a strided input there, for which torch
  2.13 is slow.)
* ``concurrent``: requests that come at once to us, and one by one to ``generate``.
* ``prefix``: the first token of a prompt and of another that begins alike; what the lookup costs
  prompts that share nothing, against an engine without it.
* ``page``: decode steps by the KV cache's page size.

Figures are medians over the rounds, ratios the median of each round's ratio; ``--output`` gets
every sample. The exit status is 1 if something failed, or if our tokens in fp32 are not
``generate``'s and no tie explains it.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import gc
import importlib
import importlib.metadata
import itertools
import json
import multiprocessing
import os
import platform
import statistics
import sys
import tempfile
import threading
import time
import traceback
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar, cast

import torch
from transformers import GPTJConfig, GPTJForCausalLM, StoppingCriteria, StoppingCriteriaList

from gptj_predictor.engine.core import EngineConfig
from gptj_predictor.engine.engine import Engine
from gptj_predictor.engine.request import Event, SamplingParams
from gptj_predictor.model.network import GPTJNetwork, Placement

CASES = ["decode", "concurrent", "prefix", "page"]
PEERS = ["generate", "ct2"]
PAGE_SIZE = 16
PAGE_SIZES = [16, 32, 64]
MIB = 2**20
#: Seconds after which a sequence that has not ended is given up.
PATIENCE = 300
#: Two fp32 logits that are no further apart may change places with the order of a sum.
TIE = 1e-4

#: Settings that only matter to speed, kept in the output beside the figures. None is changed here.
ENVIRONMENT = ["OMP_NUM_THREADS", "OMP_WAIT_POLICY", "KMP_BLOCKTIME", "THP_MEM_ALLOC_ENABLE"]
ENVIRONMENT += ["LD_PRELOAD", "MALLOC_CONF", "PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"]
PACKAGES = ["torch", "transformers", "ctranslate2", "triton", "numpy", "gptj-predictor"]

#: How CTranslate2 computes, and its share of fp32's bytes.
CT2_SHARES = {"float32": 1.0, "int8": 0.25}

#: What a flag is when it is not given: on a CPU, on a GPU.
DEFAULTS: dict[str, tuple[Any, Any]] = {
    "preset": ("plain", "h200"),
    "dtype": (["bfloat16", "float32"], ["bfloat16"]),
    "batch": ([1, 8], [1, 8, 64]),
    "prompt_tokens": (32, 128),
    "new_tokens": (32, 128),
    "layers": (8, 28),
    "hidden": (2048, 4096),
    "heads": (8, 16),
    "requests": (16, 64),
    "one_by_one": (16, 4),
    "max_prefill_tokens": (256, 2048),
    "budget": (None, 450.0),
}

Result = TypeVar("Result")
Prompts = list[list[int]]
Samples = list[dict[str, Any]]


@dataclass(frozen=True)
class Load:
    """Sequences of one length that start together."""

    batch: int
    prompt: int
    new: int

    @property
    def tokens(self) -> int:
        """Tokens of all sequences at their ends."""
        return self.batch * (self.prompt + self.new)


@dataclass(frozen=True)
class Run:
    """One measurement, in seconds from the start.

    Attributes:
        total: When every sequence had its last token.
        tokens: The first sequence's new tokens.
        first: When every sequence had its first token.
        slowest: The longest pause between two tokens; ``None`` if there is only one.
    """

    total: float
    tokens: list[int]
    first: float
    slowest: float | None

    @property
    def step(self) -> float | None:
        """Seconds of a decode step."""
        return (self.total - self.first) / (len(self.tokens) - 1) if self.tokens[1:] else None

    @property
    def cost(self) -> float:
        """What two runs are compared by: a step, or the first token if there is no other."""
        return self.step or self.first

    @classmethod
    def of(cls, tokens: list[int], started: float, times: list[float]) -> Run:
        """From the times at which each new token was there in all sequences."""
        ended = time.perf_counter()
        pauses = [after - before for before, after in itertools.pairwise(times)]
        return cls(ended - started, tokens, times[0] - started, max(pauses, default=None))


class Peer(ABC):
    """Someone who is measured."""

    def __init__(self, name: str, step_bytes: int) -> None:
        self.name = name
        self.step_bytes = step_bytes

    @abstractmethod
    def run(self, prompts: Prompts, new: int) -> Run:
        """Exactly ``new`` tokens after every prompt."""

    def close(self) -> None:  # noqa: B027 - most hold nothing
        """Give back what is held outside of this process."""


class Generate(Peer):
    """transformers, as its users call it."""

    def __init__(self, model: Any, step_bytes: int) -> None:
        super().__init__("generate", step_bytes)
        self.model = model

    def run(self, prompts: Prompts, new: int) -> Run:
        """See :meth:`Peer.run`."""
        clock = Clock()
        started = time.perf_counter()
        ids = torch.tensor(prompts, device=self.model.device)
        output = self.model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            min_new_tokens=new,
            max_new_tokens=new,
            do_sample=False,
            pad_token_id=self.model.config.eos_token_id,
            stopping_criteria=StoppingCriteriaList([clock]),
        )
        return Run.of(output[0, ids.shape[1] :].tolist(), started, clock.times)

    @torch.inference_mode()
    def next_logits(self, ids: list[int]) -> torch.Tensor:
        """The logits after ``ids``."""
        output = self.model(torch.tensor([ids], device=self.model.device))
        logits: torch.Tensor = output.logits[0, -1].float()
        return logits


def alone(function: Callable[[], Result]) -> Result:
    """Call it in a thread of its own and return what it returns.

    OpenMP gives every thread that computes workers of its own, for as long as it lives; when all
    together are more than the CPUs, they sleep between products instead of spinning. So nobody
    computes in a thread that stays.
    """
    with ThreadPoolExecutor(max_workers=1) as pool:
        return pool.submit(function).result()


class Elsewhere(Peer):
    """A peer in a process of its own, so that nobody's threads are in another one's way."""

    def __init__(self, name: str, step_bytes: int, make: Callable[..., Peer], *what: Any) -> None:
        super().__init__(name, step_bytes)
        self._pool = ProcessPoolExecutor(
            max_workers=1,
            mp_context=multiprocessing.get_context("spawn"),
            initializer=_make_here,
            initargs=(make, *what),
        )

    def run(self, prompts: Prompts, new: int) -> Run:
        """See :meth:`Peer.run`."""
        return self._pool.submit(_run_here, prompts, new).result()

    def next_logits(self, ids: list[int]) -> torch.Tensor:
        """The logits after ``ids``, of a :class:`Generate`."""
        return torch.tensor(self._pool.submit(_next_logits_here, ids).result())

    def close(self) -> None:
        """End the process."""
        self._pool.shutdown()


_here: list[Peer] = []  # what a process was made for


def _make_here(make: Callable[..., Peer], *what: Any) -> None:
    _here.append(make(*what))


def _run_here(prompts: Prompts, new: int) -> Run:
    return _here[0].run(prompts, new)


def _next_logits_here(ids: list[int]) -> list[float]:
    peer = _here[0]
    assert isinstance(peer, Generate)
    return peer.next_logits(ids).tolist()


def generate_from_seed(config: GPTJConfig, dtype: str, step_bytes: int, threads: int) -> Peer:
    """``generate`` on a CPU with the weights that everyone has."""
    torch.set_num_threads(threads)
    return Generate(make_model(config, getattr(torch, dtype), torch.device("cpu")), step_bytes)


def ctranslate2_from_seed(
    config: GPTJConfig, dtype: str, step_bytes: int, threads: int, kind: str
) -> Peer:
    """CTranslate2 with these weights, computing in ``kind``."""
    model = make_model(config, getattr(torch, dtype), torch.device("cpu"))
    return make_ctranslate2(model, step_bytes, threads, kind)


def ours_from_seed(
    config: GPTJConfig, dtype: str, step_bytes: int, threads: int, engine: EngineConfig
) -> Peer:
    """Our engine with these weights."""
    torch.set_num_threads(threads)
    cpu = torch.device("cpu")

    def load() -> GPTJNetwork:
        return make_network(config, make_model(config, getattr(torch, dtype), cpu), cpu)[0]

    return Ours(Engine(alone(load), engine), "ours", step_bytes)


class Clock(StoppingCriteria):
    """Stops nothing and notes when each token came."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def __call__(
        self, input_ids: torch.LongTensor, scores: torch.FloatTensor, **_: Any
    ) -> torch.BoolTensor:
        """Take a step's end."""
        if input_ids.device.type == "cuda":
            torch.cuda.synchronize()  # generate does it next in any case
        self.times.append(time.perf_counter())
        return cast("torch.BoolTensor", input_ids.new_zeros(len(input_ids), dtype=torch.bool))


class CTranslate2(Peer):
    """A loaded CTranslate2 model; tokens are strings there."""

    def __init__(self, generator: Any, name: str, step_bytes: int) -> None:
        super().__init__(name, step_bytes)
        self.generator = generator

    def run(self, prompts: Prompts, new: int) -> Run:
        """See :meth:`Peer.run`."""
        words = [[_word(token) for token in prompt] for prompt in prompts]
        times = [0.0] * new

        def note(result: Any) -> bool:
            times[result.step] = time.perf_counter()  # the batch's last one stays
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
        return Run.of(list(results[0].sequences_ids[0]), started, times)


class Ours(Peer):
    """Our engine, whose thread runs only while it is measured, see :func:`alone`."""

    def __init__(self, engine: Engine, name: str, step_bytes: int) -> None:
        super().__init__(name, step_bytes)
        self.engine = engine

    def run(self, prompts: Prompts, new: int) -> Run:
        """See :meth:`Peer.run`."""
        self.engine.start()
        try:
            return self._run(prompts, new)
        finally:
            self.engine.stop()

    def _run(self, prompts: Prompts, new: int) -> Run:
        ends = threading.Semaphore(0)
        streams = [Stream(ends) for _ in prompts]
        started = time.perf_counter()
        for prompt, stream in zip(prompts, streams, strict=True):
            self.engine.submit(prompt, _greedy(len(prompt) + new), stream)
        for _ in prompts:
            if not ends.acquire(timeout=PATIENCE):
                raise RuntimeError(f"no sequence ended in {PATIENCE} s")
        for stream in streams:
            if len(stream.tokens) != new:
                raise RuntimeError(f"{len(stream.tokens)} tokens instead of {new}: {stream.end}")
        # Who got its first token last: after that nobody else's prompt was in its way.
        last = max(streams, key=lambda stream: stream.times[0])
        return Run.of(streams[0].tokens, started, last.times)


class Stream:
    """Where the engine tells one sequence's tokens."""

    def __init__(self, ends: threading.Semaphore) -> None:
        self.times: list[float] = []
        self.tokens: list[int] = []
        self.end: Event | None = None
        self._ends = ends

    def __call__(self, event: Event) -> None:
        """Take an event, in the engine's thread."""
        if event.token_id is not None:
            self.times.append(time.perf_counter())
            self.tokens.append(event.token_id)
        if event.finish_reason is not None:
            self.end = event
            self._ends.release()


def _greedy(length: int) -> SamplingParams:
    return SamplingParams(
        min_length=length,
        max_length=length,
        temperature=0.0,
        top_k=0,
        top_p=1.0,
        repetition_penalty=1.0,
        seed=0,
    )


def _word(token: int) -> str:
    return f"t{token}"


# What is measured, built from one set of weights.


def make_model(config: GPTJConfig, dtype: torch.dtype, device: torch.device) -> Any:
    """transformers' model with the random weights that it starts training from."""
    torch.manual_seed(0)
    with device:
        model: Any = GPTJForCausalLM._from_config(config, dtype=dtype, attn_implementation="eager")
    assert 0.01 < model.lm_head.weight.float().std() < 0.03, "transformers left weights undrawn"
    return model.eval().requires_grad_(False)


def make_network(config: GPTJConfig, model: Any, device: torch.device) -> tuple[GPTJNetwork, int]:
    """Our network with the model's weights, and how many of its bytes a decode step reads."""
    with torch.device("meta"):
        network = GPTJNetwork(config, model.dtype)
    network.allocate(Placement.on(device, config.n_layer))
    weights = model.state_dict()
    views = network.checkpoint_views()
    for name, view in views.items():
        view.copy_(weights[name])
    step_bytes = sum(v.nbytes for name, v in views.items() if name != "transformer.wte.weight")
    del views, view
    network.pack()
    return network.eval(), step_bytes


def make_ctranslate2(model: Any, step_bytes: int, threads: int, kind: str) -> CTranslate2:
    """CTranslate2 on the model's weights; needs their size in temporary files meanwhile."""
    ctranslate2 = importlib.import_module("ctranslate2")
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
        generator = ctranslate2.Generator(
            f"{folder}/converted", compute_type=kind, inter_threads=1, intra_threads=threads
        )
    return CTranslate2(generator, f"ctranslate2 {kind}", round(step_bytes * CT2_SHARES[kind]))


class Report:
    """What came out so far; on disk after every case."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.output: Path | None = arguments.output
        self.started = time.perf_counter()
        self.budget: float | None = arguments.budget
        self.facts = _facts(arguments)
        self.bandwidth = 0.0
        self.samples: Samples = []
        self.tables: list[dict[str, Any]] = []
        self.notes: list[str] = []
        self.failures: list[str] = []

    def note(self, text: str) -> None:
        """Print a sentence and keep it."""
        print(text, flush=True)
        self.notes.append(text)

    def fail(self, text: str) -> None:
        """A note that makes the exit status 1."""
        self.failures.append(text)
        self.note(f"FAILED: {text}")

    def table(self, title: str, rows: Samples) -> None:
        """Print rows, which have the same keys, and keep them."""
        self.tables.append({"title": title, "rows": rows})
        if not rows:
            return
        cells = [list(rows[0]), *([_cell(value) for value in row.values()] for row in rows)]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        print(f"\n{title}")
        for row in cells:
            print("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)))
        print(flush=True)
        self.save()

    def late(self) -> bool:
        """Whether the time budget is used up."""
        return self.budget is not None and time.perf_counter() - self.started > self.budget

    def save(self) -> None:
        """Write everything so far."""
        if self.output is None:
            return
        parts = ["bandwidth", "notes", "failures", "tables", "samples"]
        content = self.facts | {part: getattr(self, part) for part in parts}
        self.output.write_text(json.dumps(content, indent=1, default=str) + "\n")


def _facts(arguments: argparse.Namespace) -> dict[str, Any]:
    """What was run where."""
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    device = arguments.device
    return {
        "command": [sys.executable, *sys.argv],
        "date": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "versions": versions,
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if device == "cuda" else None,
        "dtypes": arguments.dtype,
        "environment": {name: os.environ[name] for name in ENVIRONMENT if name in os.environ},
        "settings": vars(arguments),
    }


def _cpu_name() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if not isinstance(value, float):
        return str(value)
    digits = 0 if abs(value) >= 1000 else 1 if abs(value) >= 10 else 2
    return f"{value:,.{digits}f}"


@dataclass
class Bench:
    """One dtype's weights in everyone's hands, and what to ask of them."""

    report: Report
    arguments: argparse.Namespace
    dtype: str
    device: torch.device
    config: GPTJConfig
    network: GPTJNetwork
    step_bytes: int
    generate: Generate | Elsewhere | None = None
    others: list[Peer] = field(default_factory=list)
    broken: dict[str, str] = field(default_factory=dict)
    seed: int = 0

    @classmethod
    def build(cls, report: Report, arguments: argparse.Namespace, dtype: str) -> Bench:
        """Make the weights once and hand them to everyone who is not skipped."""
        device = torch.device("cuda:0" if arguments.device == "cuda" else "cpu")
        config = GPTJConfig(
            n_layer=arguments.layers, n_embd=arguments.hidden, n_head=arguments.heads
        )
        model = make_model(config, getattr(torch, dtype), device)
        network, step_bytes = make_network(config, model, device)
        parameters = sum(parameter.numel() for parameter in model.parameters())
        report.note(
            f"{dtype}: {parameters / 1e6:,.0f} M parameters, {step_bytes / 1e9:.3f} GB read a step"
        )
        bench = cls(report, arguments, dtype, device, config, network, step_bytes)
        if "ct2" not in arguments.skip:
            bench.others = list(bench._ctranslate2())
        if "generate" not in arguments.skip:
            bench.generate = (
                Generate(model, step_bytes)
                if device.type == "cuda"
                else bench.elsewhere("generate", generate_from_seed)
            )
        return bench

    def _ctranslate2(self) -> Iterator[Peer]:
        if self.device.type != "cpu" or self.dtype != "float32":
            self.report.note(f"CTranslate2 runs on the CPU in float32: not beside {self.dtype}")
            return
        try:
            importlib.import_module("ctranslate2")
        except ImportError as error:
            self.report.note(f"CTranslate2 is not here: {error}")
            return
        for kind in CT2_SHARES:
            yield self.elsewhere(f"ctranslate2 {kind}", ctranslate2_from_seed, kind)

    def elsewhere(self, name: str, make: Callable[..., Peer], *more: Any) -> Elsewhere:
        """A peer with the weights that everyone has, in a process of its own."""
        share = CT2_SHARES.get(name.removeprefix("ctranslate2 "), 1.0)
        step_bytes, threads = self.step_bytes, self.arguments.threads
        what = (self.config, self.dtype, step_bytes, threads, *more)
        return Elsewhere(name, round(step_bytes * share), make, *what)

    @contextlib.contextmanager
    def rival(self, load: Load) -> Iterator[Peer]:
        """Our engine where the others are: on a CPU in a process of its own, on a GPU here."""
        if self.device.type == "cuda":
            with self.engine(load) as ours:
                yield ours
            return
        ours_there = self.elsewhere("ours", ours_from_seed, self.engine_config(load))
        try:
            yield ours_there
        finally:
            ours_there.close()

    def engine_config(
        self, load: Load, *, page_size: int = PAGE_SIZE, enable_prefix_caching: bool = True
    ) -> EngineConfig:
        """Room for a load, and a page more for each sequence."""
        pages = load.batch * (-(-(load.prompt + load.new) // page_size) + 1) + 1
        return EngineConfig(
            max_batch_size=load.batch,
            max_prefill_tokens=self.arguments.max_prefill_tokens,
            page_size=page_size,
            num_pages=pages,
            enable_prefix_caching=enable_prefix_caching,
        )

    @contextlib.contextmanager
    def engine(
        self,
        load: Load,
        *,
        name: str = "ours",
        page_size: int = PAGE_SIZE,
        enable_prefix_caching: bool = True,
    ) -> Iterator[Ours]:
        """Our engine with room for a load."""
        config = self.engine_config(
            load, page_size=page_size, enable_prefix_caching=enable_prefix_caching
        )
        engine = Engine(self.network, config)
        ours = Ours(engine, name, self.step_bytes)
        try:
            yield ours
        finally:
            del ours.engine, engine
            self.collect()

    def prompts(self, count: int, tokens: int) -> Prompts:
        """Random prompts, other ones at every call."""
        self.seed += 1
        source = torch.Generator().manual_seed(self.seed)
        size = (count, tokens)
        return torch.randint(self.config.vocab_size, size, generator=source).tolist()

    def measure(self, peer: Peer, prompts: Prompts, new: int, **where: Any) -> Run:
        """One run, kept as a sample."""
        gc.collect()
        if self.device.type == "cpu":
            time.sleep(0.3)  # the last one's OpenMP threads spin for 0.2 s
        run = peer.run(prompts, new)
        load = Load(len(prompts), len(prompts[0]), new)
        self.report.samples.append(
            {"dtype": self.dtype, "who": peer.name, **where, **dataclasses.asdict(load)}
            | {"first_s": run.first, "total_s": run.total, "step_s": run.step}
            | {"slowest_s": run.slowest}
        )
        return run

    def fail(self, who: str, doing: str, error: Exception) -> str:
        """Report that someone failed; returns why."""
        traceback.print_exception(error)
        reason = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
        self.report.fail(f"{self.dtype} {doing}: {who} failed: {reason}")
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

    def measure_bandwidth(self, **where: Any) -> None:
        """Bytes a second of a plain read, kept as a sample."""
        rates = alone(lambda: _rates(self.device))
        self.collect()
        sample = {f"{name}_bytes_per_s": rate for name, rate in rates.items()}
        self.report.samples.append({"dtype": self.dtype, "who": "bandwidth", **where, **sample})
        self.report.bandwidth = max(self.report.bandwidth, *rates.values())


def _rates(device: torch.device) -> dict[str, float]:
    if device.type == "cuda":
        return {"copy": _copy_rate(device)}
    data = torch.ones(512 * MIB // 4)
    return {
        "sum": _read_rate(lambda: torch.sum(data), data.nbytes),
        "dot": _read_rate(lambda: torch.dot(data, data), data.nbytes),
    }


def _read_rate(read: Callable[[], object], size: int) -> float:
    seconds = []
    for _ in range(4):
        started = time.perf_counter()
        read()
        seconds.append(time.perf_counter() - started)
    return size / min(seconds)


def _copy_rate(device: torch.device) -> float:
    """A copy within the device, what it reads and what it writes."""
    source = torch.ones(2048 * MIB, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)

    def copy_once() -> None:
        target.copy_(source)
        torch.cuda.synchronize()

    return _read_rate(copy_once, 2 * source.nbytes)


# The cases.

Runs = dict[Load, dict[Peer, list[Run]]]


def decode(bench: Bench, title: str, loads: list[Load], rounds: int) -> None:
    """Batches that start together, everyone in turn."""
    case = f"decode, {title}"
    bench.measure_bandwidth(case=case)
    # Room for the greatest of each.
    room = Load(*(max(column) for column in zip(*map(dataclasses.astuple, loads), strict=True)))
    runs: Runs = {}
    with bench.rival(room) as ours:
        turns = Turns(bench, case, [ours, *filter(None, [bench.generate]), *bench.others])
        for load in loads:
            turns.warm_up(load)
        for number in range(rounds):
            if number and bench.report.late():
                bench.report.note(f"{case}: {number} of {rounds} rounds, the time is up")
                break
            for load in loads:
                prompts = bench.prompts(load.batch, load.prompt)
                for peer, run in turns.measure(prompts, load.new, number):
                    runs.setdefault(load, {}).setdefault(peer, []).append(run)
                if not number:
                    alone(partial(compare, bench, load, prompts[0], runs[load]))
            if bench.device.type == "cpu":
                bench.measure_bandwidth(case=case, round=number)
    rows = decode_rows(bench, runs)
    for who, reason in (bench.broken | turns.broken).items():
        failed = {"who": f"{who} failed: {reason}", "dtype": bench.dtype}
        rows.append(dict.fromkeys(rows[0] if rows else []) | failed)
    title = f"{case} (a plain read or copy moves {bench.report.bandwidth / 1e9:,.1f} GB/s)"
    bench.report.table(title, rows)


class Turns:
    """Everyone measured, one after the other; who fails takes no further part."""

    def __init__(self, bench: Bench, case: str, peers: list[Peer]) -> None:
        self.bench = bench
        self.case = case
        self.peers = peers
        self.broken: dict[str, str] = {}

    def warm_up(self, load: Load) -> None:
        """Let everyone meet the prompts' shape."""
        for peer in list(self.peers):
            with self._leaving(peer):
                peer.run(self.bench.prompts(load.batch, load.prompt), min(load.new, 3))

    def measure(self, prompts: Prompts, new: int, number: int) -> Iterator[tuple[Peer, Run]]:
        """Give everyone the same prompts."""
        for peer in list(self.peers):
            with self._leaving(peer):
                yield peer, self.bench.measure(peer, prompts, new, case=self.case, round=number)

    @contextlib.contextmanager
    def _leaving(self, peer: Peer) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            self.peers.remove(peer)
            self.broken[peer.name] = self.bench.fail(peer.name, self.case, error)


def decode_rows(bench: Bench, runs: Runs) -> Samples:
    """The lines of the table."""
    bandwidth = bench.report.bandwidth
    rows: Samples = []
    for load, by_peer in runs.items():
        base = by_peer.get(bench.generate, []) if bench.generate else []
        for peer, own in by_peer.items():
            step = _median(run.step for run in own)
            slowest = max((run.slowest for run in own if run.slowest is not None), default=None)
            ratios = [other.cost / run.cost for run, other in zip(own, base, strict=False)]
            total = statistics.median(run.total for run in own)
            row = {
                "who": peer.name,
                "dtype": bench.dtype,
                "batch": load.batch,
                "prompt+new": f"{load.prompt}+{load.new}",
                "rounds": len(own),
                "ms/step": step and step * 1e3,
                "tok/s decode": step and load.batch / step,
                "slowest tok/s": slowest and load.batch / slowest,
                "tok/s all": load.batch * load.new / total,
                "x generate": _median(ratios),
                "% of limit": step and peer.step_bytes / bandwidth / step * 100,
                "first ms": statistics.median(run.first for run in own) * 1e3,
            }
            rows.append(row)
    return rows


def _median(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None


def compare(bench: Bench, load: Load, prompt: list[int], runs: dict[Peer, list[Run]]) -> None:
    """Say whether the first prompt's tokens are ``generate``'s, and if not how close it was."""
    where = f"{bench.dtype} batch {load.batch} {load.prompt}+{load.new}"
    if bench.generate is None or bench.generate not in runs:
        bench.report.note(f"{where}: tokens not compared, generate did not run")
        return
    right = runs[bench.generate][0].tokens
    for peer, (run, *_) in runs.items():
        who = f"{where}: {peer.name} and generate"
        if peer is bench.generate:
            continue
        if run.tokens == right:
            bench.report.note(f"{who}: same tokens ({len(right)})")
            continue
        place = [a == b for a, b in zip(run.tokens, right, strict=True)].index(False)
        logits = bench.generate.next_logits(prompt + right[:place])
        gap = float(logits[right[place]] - logits[run.tokens[place]])
        text = (
            f"{who} differ from new token {place} on, where generate's logits are {gap:.2g} apart "
            f"(all logits' deviation {float(logits.std()):.2g})"
        )
        wrong = peer.name == "ours" and bench.dtype == "float32" and gap > TIE
        (bench.report.fail if wrong else bench.report.note)(text)


def concurrent(bench: Bench, load: Load, rounds: int, one_by_one: int) -> None:
    """Requests at once to us; of the same requests, some one by one to ``generate``."""
    alone: list[float] = []
    together: list[float] = []
    count = min(one_by_one, load.batch) if bench.generate else 0
    with bench.rival(load) as ours:
        ours.run(bench.prompts(load.batch, load.prompt), min(load.new, 3))
        if bench.generate:
            bench.generate.run(bench.prompts(1, load.prompt), min(load.new, 3))
        for number in range(rounds):
            prompts = bench.prompts(load.batch, load.prompt)
            where = {"case": "concurrent", "round": number}
            together.append(bench.measure(ours, prompts, load.new, **where).total)
            for prompt in prompts[number:count:rounds]:  # over all rounds, ``count`` of them
                assert bench.generate is not None
                alone.append(bench.measure(bench.generate, [prompt], load.new, **where).total)
    seconds = statistics.median(together)
    tokens = load.batch * load.new
    row = {
        "who": "ours, at once",
        "dtype": bench.dtype,
        "requests": load.batch,
        "prompt+new": f"{load.prompt}+{load.new}",
        "measured": load.batch * rounds,
        "seconds for all": seconds,
        "tok/s": tokens / seconds,
        "x generate": None,
    }
    rows = [row]
    if alone:
        slow = statistics.fmean(alone) * load.batch
        row["x generate"] = slow / seconds
        rows.append(
            row
            | {"who": "generate, one by one", "measured": len(alone), "x generate": 1.0}
            | {"seconds for all": slow, "tok/s": tokens / slow}
        )
    title = f"concurrent: {load.batch} requests"
    if 0 < len(alone) < load.batch:
        title += f"; generate's time is extrapolated from {len(alone)} of them"
    bench.report.table(title, rows)


def prefix(bench: Bench, shared: int, tail: int, rounds: int) -> None:
    """The first token of a prompt nobody sent before, and of another with the same beginning."""
    cold: list[float] = []
    warm: list[float] = []
    with bench.engine(Load(4, shared + tail, 4)) as ours:
        for number in range(-1, rounds):
            beginning = bench.prompts(1, shared)[0]
            prompts = [beginning + end for end in bench.prompts(2, tail)]
            for kind, prompt, times in zip(("cold", "warm"), prompts, (cold, warm), strict=True):
                if number < 0:
                    ours.run([prompt], 4)
                    continue
                where = {"case": f"prefix, {kind}", "round": number}
                times.append(bench.measure(ours, [prompt], 4, **where).first)
    row = {
        "who": "ours",
        "dtype": bench.dtype,
        "shared+own": f"{shared}+{tail}",
        "rounds": rounds,
        "cold first ms": statistics.median(cold) * 1e3,
        "warm first ms": statistics.median(warm) * 1e3,
        "cold/warm": statistics.median(a / b for a, b in zip(cold, warm, strict=True)),
    }
    bench.report.table("prefix: two prompts that begin alike, one after the other", [row])


def unshared(bench: Bench, prompt: int, new: int, pairs: int) -> None:
    """What prefix reuse costs prompts that share nothing: the same prompts with it and without."""
    load = Load(4, prompt, new)
    runs: dict[str, list[Run]] = {"on": [], "off": []}
    with (
        bench.engine(load, name="reuse on", enable_prefix_caching=True) as on,
        bench.engine(load, name="reuse off", enable_prefix_caching=False) as off,
    ):
        peers = {"on": on, "off": off}
        for number in range(-2, pairs):
            prompts = bench.prompts(1, prompt)
            # Whoever comes second may find the machine warmer: they take turns at that too.
            for kind in ("on", "off") if number % 2 else ("off", "on"):
                if number < 0:
                    peers[kind].run(prompts, new)
                    continue
                where = {"case": "prefix, nothing shared", "round": number}
                runs[kind].append(bench.measure(peers[kind], prompts, new, **where))
    rows = []
    for what in ("first", "total"):
        with_, without = ([getattr(run, what) for run in runs[kind]] for kind in ("on", "off"))
        ratios = [a / b for a, b in zip(with_, without, strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        rows.append(
            {"what": f"{what} ms", "dtype": bench.dtype, "prompt+new": f"{prompt}+{new}"}
            | {"pairs": pairs, "reuse on": statistics.median(with_) * 1e3}
            | {"reuse off": statistics.median(without) * 1e3}
            | {"cost %": (middle - 1) * 100, "quartiles %": f"{low - 1:+.1%} {high - 1:+.1%}"}
        )
    bench.report.table("prefix: prompts that share nothing, with prefix reuse and without", rows)


def page(bench: Bench, load: Load, rounds: int) -> None:
    """Decode steps by page size, the same prompts every time."""
    runs: dict[int, list[Run]] = {size: [] for size in PAGE_SIZES}
    prompts = bench.prompts(load.batch, load.prompt)
    with contextlib.ExitStack() as stack:
        engines = {
            size: stack.enter_context(bench.engine(load, name=f"page {size}", page_size=size))
            for size in PAGE_SIZES
        }
        for ours in engines.values():
            ours.run(prompts, min(load.new, 3))
        for number in range(rounds):
            for size, ours in engines.items():
                run = bench.measure(ours, prompts, load.new, case="page", round=number)
                runs[size].append(run)
    costs = {size: statistics.median(run.cost for run in runs[size]) for size in PAGE_SIZES}
    rows = [
        {"page size": size, "dtype": bench.dtype, "batch": load.batch, "prompt": load.prompt}
        | {"new": load.new, "rounds": rounds, "ms/step": cost * 1e3}
        | {"x best": cost / min(costs.values())}
        for size, cost in costs.items()
    ]
    bench.report.table("page: decode by the KV cache's page size", rows)


# Which cases, with which numbers.


@dataclass(frozen=True)
class Step:
    """A case with its numbers."""

    case: str
    title: str
    run: Callable[[], None]


def plain_steps(bench: Bench) -> list[Step]:
    """The cases as the flags say."""
    a = bench.arguments
    loads = [Load(batch, a.prompt_tokens, a.new_tokens) for batch in a.batch]
    return [
        Step("decode", "decode", lambda: decode(bench, bench.dtype, loads, a.rounds)),
        *_common_steps(bench),
        _page_step(bench),
    ]


def h200_steps(bench: Bench) -> list[Step]:
    """What an H200 is asked: beside ``generate`` first, then alone with the memory to ourselves.

    2,047 prompt tokens are the most that leave a place for a new one.
    """
    rounds = bench.arguments.rounds
    one = [Load(1, 128, 128), Load(1, 128, 1), Load(1, 2047, 1)]
    many = [Load(64, 128, 128), Load(256, 128, 128), Load(512, 128, 128)]
    return [
        Step("decode", "batch 1", lambda: decode(bench, "batch 1", one, rounds)),
        *_common_steps(bench),
        Step("", "freeing generate's memory", bench.drop_peers),
        Step("decode", "128/128", lambda: decode(bench, "128/128", many, rounds)),
        _page_step(bench),
        Step("decode", "128/1920", lambda: decode(bench, "128/1920", [Load(120, 128, 1920)], 1)),
    ]


def _common_steps(bench: Bench) -> list[Step]:
    a = bench.arguments
    load = Load(a.requests, a.prompt_tokens, a.new_tokens)
    return [
        Step("concurrent", "requests", lambda: concurrent(bench, load, a.rounds, a.one_by_one)),
        Step("prefix", "shared", lambda: prefix(bench, a.prefix_tokens, a.tail_tokens, a.rounds)),
        Step("prefix", "nothing shared", lambda: unshared(bench, 256, 16, a.unshared_pairs)),
    ]


def _page_step(bench: Bench) -> Step:
    a = bench.arguments
    load = Load(8, a.page_context, min(a.new_tokens, 32))
    return Step("page", "page sizes", lambda: page(bench, load, a.rounds))


def measure(report: Report, arguments: argparse.Namespace, dtype: str) -> None:
    """Everything about one dtype; what fails does not keep the rest from running."""
    bench = alone(lambda: Bench.build(report, arguments, dtype))
    steps = h200_steps(bench) if arguments.preset == "h200" else plain_steps(bench)
    for step in steps:
        if step.case and step.case not in arguments.cases:
            continue
        if report.late() and step.case:
            report.fail(f"{dtype} {step.case} {step.title}: not begun, the time is up")
            continue
        try:
            step.run()
        except Exception as error:
            bench.fail("the case", f"{step.case} {step.title}", error)
        report.save()
    bench.drop_peers()


def parse() -> argparse.Namespace:
    """The command line, with the device's defaults filled in."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add("--device", default="cpu", choices=["cpu", "cuda"])
    add("--preset", choices=["plain", "h200"], help="plain: by these flags; default on cuda: h200")
    add("--cases", nargs="+", default=CASES, choices=CASES)
    add("--skip", nargs="+", default=[], choices=PEERS)
    add("--dtype", nargs="+", choices=["bfloat16", "float32", "float16"])
    add("--batch", nargs="+", type=int, help="of decode")
    add("--prompt-tokens", type=int, help="of decode and concurrent")
    add("--new-tokens", type=int, help="of decode and concurrent")
    add("--layers", type=int)
    add("--hidden", type=int)
    add("--heads", type=int)
    add("--rounds", type=int, default=3)
    add("--requests", type=int, help="of concurrent")
    add("--one-by-one", type=int, help="how many of the requests generate really gets")
    add("--prefix-tokens", type=int, default=1536, help="that prefix's prompts share")
    add("--tail-tokens", type=int, default=32, help="that they do not")
    add("--unshared-pairs", type=int, default=20, help="of runs with prefix reuse and without")
    add("--page-context", type=int, default=512, help="prompt tokens of page")
    add("--max-prefill-tokens", type=int, help="of a step; the server's defaults")
    add("--threads", type=int, default=torch.get_num_threads())
    add("--budget", type=float, help="seconds after which no case and no round begins")
    add("--output", type=Path, help="JSON file for every sample")
    arguments = parser.parse_args()
    for name, (on_cpu, on_gpu) in DEFAULTS.items():
        if getattr(arguments, name) is None:
            setattr(arguments, name, on_gpu if arguments.device == "cuda" else on_cpu)
    return arguments


def main() -> None:
    """Measure what the command line asks for."""
    arguments = parse()
    torch.set_num_threads(arguments.threads)
    report = Report(arguments)
    facts = report.facts
    where = facts["gpu"] or f"{facts['cpu']}, {facts['threads']} threads of {facts['cores']} cores"
    versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    print(f"{where}\n{versions}\n{facts['environment'] or ''}", flush=True)
    for dtype in arguments.dtype:
        measure(report, arguments, dtype)
        gc.collect()
    report.note(f"{time.perf_counter() - report.started:.0f} s, {len(report.failures)} failures")
    for failure in report.failures:
        print(f"FAILED: {failure}")
    report.save()
    sys.exit(1 if report.failures else 0)


if __name__ == "__main__":
    main()

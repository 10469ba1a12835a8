"""Everything that is timed; each case says what it needs and gives figures to the record."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import torch

from gptj_predictor.devices.cuda_graphs import CudaCapture, capture_for
from gptj_predictor.engine.core import EngineConfig
from gptj_predictor.engine.engine import Engine
from gptj_predictor.model.network import GPTJNetwork
from one_card.correctness import sampled
from one_card.engines import (
    engine_config,
    fitting_pages,
    free_all,
    pages_for,
)
from one_card.plan import Plan
from one_card.record import Record
from one_card.step_profile import profile_step
from one_card.weights import step_bytes
from peers.generate import Generate
from peers.ours import Ours, greedy
from peers.timing import Load, Prompts, Timing


@dataclass
class Card:
    """The full network on the card, and how it is measured.

    Attributes:
        record: Where it is said.
        plan: Of sizes.
        network: With its weights.
        capture: What makes its graphs, if anything.
        step_bytes: Bytes of weights that a decode step reads.
        prompts_drawn: Seeds, so that no prompt comes twice and nothing is in the prefix cache.
    """

    record: Record
    plan: Plan
    network: GPTJNetwork
    capture: CudaCapture | None = field(init=False)
    step_bytes: int = field(init=False)
    prompts_drawn: Iterator[int] = field(default_factory=lambda: count(100))

    def __post_init__(self) -> None:
        self.capture, self.step_bytes = capture_for(self.network), step_bytes(self.network)

    def prompts(self, number: int, length: int) -> Prompts:
        """New random ones."""
        generator = torch.Generator().manual_seed(next(self.prompts_drawn))
        vocabulary = self.plan.config.vocab_size
        drawn: Prompts = torch.randint(vocabulary, (number, length), generator=generator).tolist()
        return drawn

    @contextmanager
    def engine(self, *, batch: int, pages: int, caching: bool = True) -> Iterator[Engine]:
        """An engine, until the block ends."""
        engine = Engine(self.network, self._config(batch, pages, caching=caching), self.capture)
        engine.start()  # graphs are captured now
        engine.stop()
        try:
            yield engine
        finally:
            del engine
            if self.capture is not None:
                self.capture.renew_pool()  # the graphs go, and with them the pool
            free_all()

    def fitting(self, batch: int, engines: int = 1) -> int:
        """Pages that fit the card beside a step of such a batch, or of each of several engines."""
        return fitting_pages(self.network, self._config(batch, 1), self.capture, engines)

    def _config(self, batch: int, pages: int, *, caching: bool = True) -> EngineConfig:
        prefill = self.plan.max_prefill_tokens
        return engine_config(batch=batch, pages=pages, prefill_tokens=prefill, caching=caching)

    def fits(self, what: str, sequences: int, length: int, pages: int) -> bool:
        """Whether so many sequences have room; says what is skipped."""
        needed = pages_for(sequences, length)
        if needed > pages:
            room = max(0, pages) * 16
            self.record.note(f"skipped: {what} needs {needed * 16} tokens of KV cache, {room} fit")
        return needed <= pages

    def ours(self, engine: Engine, *, draw: bool = False) -> Ours:
        """The engine as one that is measured, greedy or with top-k and top-p."""
        return Ours(engine, "ours", self.step_bytes, sampled if draw else greedy)


def measure_generate(card: Card, model: Any) -> None:
    """transformers' ``generate``, some requests one by one; ``model`` has the card's weights."""
    plan, record = card.plan, card.record
    peer = Generate(model, card.step_bytes)
    peer.run(card.prompts(1, plan.prompt), 3)
    runs = [
        peer.run(prompts, plan.new)
        for prompts in (card.prompts(1, plan.prompt) for _ in range(plan.one_by_one))
    ]
    seconds = statistics.fmean(run.total for run in runs)
    record.figure("generate, one request", plan.new / seconds, "tok/s")
    record.figure("generate, decoding", 1 / _median(runs, "step"), "tok/s")
    record.note(
        f"generate: {len(runs)} requests were timed; {plan.at_once} one by one are "
        f"extrapolated from them: {seconds * plan.at_once:.1f} s"
    )


def measure_unshared(card: Card) -> None:
    """What prefix caching costs prompts that share nothing, in pairs that take turns."""
    prompt, new, pairs = card.plan.unshared
    load = Load(4, prompt, new)
    pages = pages_for(2 * load.batch, prompt + new)
    fitting = card.fitting(load.batch, engines=2)
    if not card.fits("prefix caching on and off", 4 * load.batch, prompt + new, fitting):
        return
    ratios = []
    with (
        card.engine(batch=load.batch, pages=pages) as on,
        card.engine(batch=load.batch, pages=pages, caching=False) as off,
    ):
        kinds = {"on": card.ours(on), "off": card.ours(off)}
        for number in range(-2, pairs):
            prompts = card.prompts(load.batch, load.prompt)
            order = ("on", "off") if number % 2 else ("off", "on")
            runs = {kind: kinds[kind].run(prompts, load.new) for kind in order}
            if number >= 0:
                ratios.append(runs["on"].total / runs["off"].total)
    cost = (statistics.median(ratios) - 1) * 100
    card.record.detail("prefix caching on / off, each pair", ratios)
    card.record.figure("prefix caching where nothing is shared, cost", cost, "%")


def measure_batches(card: Card, engine: Engine) -> None:
    """Batches that start together, greedy and with top-k and top-p."""
    plan, record = card.plan, card.record
    pages = engine.info().config.num_pages
    for batch in plan.batches:
        if record.is_late:
            record.fail(f"batch {batch} is not measured: the time is up")
            return
        if not card.fits(f"batch {batch}", batch, plan.prompt + plan.new, pages):
            continue
        for draw in (False, True):
            name = f"batch {batch}{', top-k and top-p' if draw else ''}"
            step = _measure_batch(card, engine, batch, name, draw=draw)
            if batch == 1 and not draw and (theirs := record.get("generate, decoding")):
                record.figure("batch 1 against generate", 1 / step / theirs, "x")


def measure_int8_batches(card: Card, engine: Engine) -> None:
    """Greedy batches with int8 weights, beside those with 16-bit weights of the same card."""
    plan, record = card.plan, card.record
    for batch in plan.int8_batches:
        name = f"int8 weights, batch {batch}"
        if record.is_late:
            record.note(f"skipped: {name}: the time is up")
            return
        pages = engine.info().config.num_pages
        if not card.fits(name, batch, plan.prompt + plan.new, pages):
            continue
        step = _measure_batch(card, engine, batch, name)
        if theirs := record.get(f"batch {batch}, step"):
            record.figure(f"{name}, step against 16 bit", theirs / 1000 / step, "x")


def _measure_batch(
    card: Card, engine: Engine, batch: int, name: str, *, draw: bool = False
) -> float:
    """Run it some times and say what came; seconds of a step."""
    plan, record, ours = card.plan, card.record, card.ours(engine, draw=draw)
    ours.run(card.prompts(batch, plan.prompt), 3)
    runs = [ours.run(card.prompts(batch, plan.prompt), plan.new) for _ in range(plan.rounds)]
    rate = batch * plan.new / _median(runs, "total")
    step = _median(runs, "step")
    record.detail(name, [vars(run) | {"tokens": len(run.tokens)} for run in runs])
    record.figure(name if batch > 1 else f"{name}, all", rate, "tok/s")
    record.figure(f"{name}, first token", _median(runs, "first") * 1000, "ms")
    record.figure(f"{name}, step", step * 1000, "ms")
    if batch == 1:
        record.figure(f"{name}, decoding", 1 / step, "tok/s")
        slowest = max(run.slowest or 0.0 for run in runs)
        record.figure(f"{name}, slowest step", 1 / slowest, "tok/s")
        if not draw:
            share = card.step_bytes / step / record.bandwidth
            record.figure(f"{name}, share of the measured copy bandwidth", share, "")
    return step


def measure_first_tokens(card: Card, engine: Engine) -> None:
    """One prompt and one token of it."""
    pages = engine.info().config.num_pages
    for length in card.plan.first:
        if not card.fits(f"a prompt of {length}", 1, length + 1, pages):
            continue
        ours = card.ours(engine)
        runs = [ours.run(card.prompts(1, length), 1) for _ in range(card.plan.rounds + 2)]
        name = f"first token, {length:,} prompt tokens"
        card.record.figure(name, _median(runs[2:], "first") * 1000, "ms")


def measure_prefix(card: Card, engine: Engine) -> None:
    """The first token of a prompt, and of another that begins alike."""
    shared, own = card.plan.shared
    if not card.fits("a shared prefix", 3, shared + own + 4, engine.info().config.num_pages):
        return
    ours = card.ours(engine)
    ratios, times = [], []
    for number in range(-1, card.plan.rounds):
        beginning = card.prompts(1, shared)[0]
        cold, warm = (ours.run([beginning + end], 4) for end in card.prompts(2, own))
        if number >= 0:
            ratios.append(cold.first / warm.first)
            times.append([cold.first, warm.first])
    card.record.detail("shared prefix, first token cold and warm, seconds", times)
    name = f"shared prefix of {shared:,}, first token sooner"
    card.record.figure(name, statistics.median(ratios), "x")


def measure_at_once(card: Card, engine: Engine) -> None:
    """Requests at once to us, against the time that ``generate`` takes for them one by one."""
    plan, record = card.plan, card.record
    if not card.fits(
        "requests at once", plan.at_once, plan.prompt + plan.new, engine.info().config.num_pages
    ):
        return
    ours = card.ours(engine)
    ours.run(card.prompts(plan.at_once, plan.prompt), 3)
    runs = [ours.run(card.prompts(plan.at_once, plan.prompt), plan.new) for _ in range(plan.rounds)]
    rate = plan.at_once * plan.new / _median(runs, "total")
    record.figure(f"{plan.at_once} at once", rate, "tok/s")
    if theirs := record.get("generate, one request"):
        name = f"{plan.at_once} at once against generate one by one"
        record.figure(name, rate / theirs, "x")


def measure_long(card: Card, engine: Engine) -> None:
    """Short prompts with long texts, once."""
    batch, prompt, new = card.plan.long
    name = f"batch {batch}, {prompt}/{new:,}"
    if not card.fits(name, batch, prompt + new, engine.info().config.num_pages):
        return
    run = card.ours(engine).run(card.prompts(batch, prompt), new)
    card.record.figure(name, batch * new / run.total, "tok/s")


def measure_profile(card: Card, engine: Engine) -> None:
    """The kernels of a step."""
    plan, record = card.plan, card.record
    for batch in plan.profiled:
        length = plan.prompt + plan.profiled_steps + 8
        if not card.fits(
            f"a profile of batch {batch}", batch, length, engine.info().config.num_pages
        ):
            continue
        prompts = card.prompts(batch, plan.prompt)
        kernels = profile_step(card.ours(engine), prompts, plan.profiled_steps)
        total = sum(kernel.microseconds for kernel in kernels)
        launches = sum(kernel.launches for kernel in kernels)
        record.detail(f"profile of a step, batch {batch}", [vars(kernel) for kernel in kernels])
        record.figure(f"kernels of a step, batch {batch}", launches, "launches")
        record.figure(f"kernels of a step, batch {batch}, all", total, "us")
        for kernel in kernels[:12]:
            print(f"    {kernel.microseconds:9.1f} us {kernel.launches:7.1f} x  {kernel.name[:90]}")


def _median(runs: list[Timing], what: str) -> float:
    return statistics.median(getattr(run, what) for run in runs)

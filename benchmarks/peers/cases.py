"""The cases beside ``decode``: requests at once, prompts that begin alike, page sizes."""

from __future__ import annotations

import contextlib
import statistics

from peers.session import Session
from peers.timing import Load, Timing

PAGE_SIZES = [16, 32, 64]


def concurrent(session: Session, load: Load, rounds: int, one_by_one: int) -> None:
    """Requests at once to us; the first ``one_by_one`` of them one by one to ``generate``."""
    alone: list[float] = []
    together: dict[str, list[float]] = {}
    count = min(one_by_one, load.batch) if session.generate else 0
    with session.ours_beside_peers(load) as ours:
        for peer in ours:
            peer.run(session.prompts(load.batch, load.prompt), min(load.new, 3))
        if session.generate:
            session.generate.run(session.prompts(1, load.prompt), min(load.new, 3))
        for number in range(rounds):
            prompts = session.prompts(load.batch, load.prompt)
            where = {"case": "concurrent", "round": number}
            for peer in ours:
                seconds = session.measure(peer, prompts, load.new, **where).total
                together.setdefault(peer.name, []).append(seconds)
            for prompt in prompts[number:count:rounds]:  # over all rounds, ``count`` of them
                assert session.generate is not None
                alone.append(session.measure(session.generate, [prompt], load.new, **where).total)
    seconds_of = {f"{who}, at once": statistics.median(runs) for who, runs in together.items()}
    measured = dict.fromkeys(seconds_of, load.batch * rounds)
    slow = statistics.fmean(alone) * load.batch if alone else None
    if slow is not None:
        seconds_of["generate, one by one"] = slow
        measured["generate, one by one"] = len(alone)
    rows = [
        {
            "who": who,
            "dtype": session.dtype,
            "requests": load.batch,
            "prompt+new": f"{load.prompt}+{load.new}",
            "measured": measured[who],
            "seconds for all": seconds,
            "tok/s": load.batch * load.new / seconds,
            "x generate": slow and slow / seconds,
        }
        for who, seconds in seconds_of.items()
    ]
    title = f"concurrent: {load.batch} requests"
    if 0 < len(alone) < load.batch:
        title += f"; generate's time is extrapolated from {len(alone)} of them"
    session.tables.table(title, rows)


def prefix(session: Session, shared: int, tail: int, rounds: int) -> None:
    """The first token of a new prompt, and of another that begins alike."""
    cold: list[float] = []
    warm: list[float] = []
    with session.ours(Load(4, shared + tail, 4)) as ours:
        for number in range(-1, rounds):
            beginning = session.prompts(1, shared)[0]
            prompts = [beginning + end for end in session.prompts(2, tail)]
            for kind, prompt, times in zip(("cold", "warm"), prompts, (cold, warm), strict=True):
                if number < 0:
                    ours.run([prompt], 4)
                    continue
                where = {"case": f"prefix, {kind}", "round": number}
                times.append(session.measure(ours, [prompt], 4, **where).first)
    row = {
        "who": session.our_name,
        "dtype": session.dtype,
        "shared+own": f"{shared}+{tail}",
        "rounds": rounds,
        "cold first ms": statistics.median(cold) * 1e3,
        "warm first ms": statistics.median(warm) * 1e3,
        "cold/warm": statistics.median(a / b for a, b in zip(cold, warm, strict=True)),
    }
    session.tables.table("prefix: two prompts that begin alike, one after the other", [row])


def unshared(session: Session, prompt: int, new: int, pairs: int) -> None:
    """What prefix caching costs prompts that share nothing: the same ones with it and without."""
    load = Load(4, prompt, new)
    runs: dict[str, list[Timing]] = {"on": [], "off": []}
    with (
        session.ours(load, name="caching on", enable_prefix_caching=True) as on,
        session.ours(load, name="caching off", enable_prefix_caching=False) as off,
    ):
        peers = {"on": on, "off": off}
        for number in range(-2, pairs):
            prompts = session.prompts(1, prompt)
            # Whoever comes second may find the machine warmer: they take turns at that too.
            for kind in ("on", "off") if number % 2 else ("off", "on"):
                if number < 0:
                    peers[kind].run(prompts, new)
                    continue
                where = {"case": "prefix, nothing shared", "round": number}
                runs[kind].append(session.measure(peers[kind], prompts, new, **where))
    rows = []
    for what in ("first", "total"):
        with_, without = ([getattr(run, what) for run in runs[kind]] for kind in ("on", "off"))
        ratios = [a / b for a, b in zip(with_, without, strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        rows.append(
            {"what": f"{what} ms", "dtype": session.dtype, "prompt+new": f"{prompt}+{new}"}
            | {"pairs": pairs, "caching on": statistics.median(with_) * 1e3}
            | {"caching off": statistics.median(without) * 1e3}
            | {"cost %": (middle - 1) * 100, "quartiles %": f"{low - 1:+.1%} {high - 1:+.1%}"}
        )
    session.tables.table("prefix: prompts that share nothing, with caching and without", rows)


def page(session: Session, load: Load, rounds: int) -> None:
    """Decode steps by page size, the same prompts every time."""
    runs: dict[int, list[Timing]] = {size: [] for size in PAGE_SIZES}
    prompts = session.prompts(load.batch, load.prompt)
    with contextlib.ExitStack() as stack:
        engines = {
            size: stack.enter_context(session.ours(load, name=f"page {size}", page_size=size))
            for size in PAGE_SIZES
        }
        for ours in engines.values():
            ours.run(prompts, min(load.new, 3))
        for number in range(rounds):
            for size, ours in engines.items():
                run = session.measure(ours, prompts, load.new, case="page", round=number)
                runs[size].append(run)
    costs = {size: statistics.median(run.cost for run in runs[size]) for size in PAGE_SIZES}
    rows = [
        {"page size": size, "dtype": session.dtype, "batch": load.batch, "prompt": load.prompt}
        | {"new": load.new, "rounds": rounds, "ms/step": cost * 1e3}
        | {"x best": cost / min(costs.values())}
        for size, cost in costs.items()
    ]
    session.tables.table("page: decode by the KV cache's page size", rows)

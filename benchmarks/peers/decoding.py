"""The case ``decode``: batches that start together, everyone in turn."""

from __future__ import annotations

import contextlib
import dataclasses
import statistics
from collections.abc import Iterable, Iterator
from functools import partial

from gptj_predictor.common.threads import alone
from peers.ctranslate import name_of
from peers.peer import Peer
from peers.session import Session
from peers.timing import Load, Prompts, Samples, Timing

#: Two fp32 logits that are no further apart may change places with the order of a sum.
TIE = 1e-4

#: What was measured of each load and peer, a timing per round.
Timings = dict[Load, dict[Peer, list[Timing]]]


def decode(session: Session, title: str, loads: list[Load], rounds: int) -> None:
    """Measure the loads and write the table."""
    case = f"decode, {title}"
    session.measure_bandwidth(case=case)
    # The engine gets room for the maximum of each figure.
    room = Load(*(max(column) for column in zip(*map(dataclasses.astuple, loads), strict=True)))
    timings: Timings = {}
    with session.ours_beside_peers(room) as ours:
        peers = [*ours, *filter(None, [session.generate]), *session.others]
        turns = Turns(session, case, peers)
        for load in loads:
            turns.warm_up(load)
        for number in range(rounds):
            if number and session.tables.late():
                session.tables.note(f"{case}: {number} of {rounds} rounds, the time is up")
                break
            for load in loads:
                prompts = session.prompts(load.batch, load.prompt)
                for peer, timing in turns.measure(prompts, load.new, number):
                    timings.setdefault(load, {}).setdefault(peer, []).append(timing)
                if not number:
                    alone(partial(compare_tokens, session, load, prompts[0], timings[load]))
            if session.device.type == "cpu":
                session.measure_bandwidth(case=case, round=number)
    rows = make_rows(session, timings)
    for who, reason in turns.broken.items():
        failed = {"who": f"{who} failed: {reason}", "dtype": session.dtype}
        rows.append(dict.fromkeys(rows[0] if rows else []) | failed)
    bandwidth = session.tables.bandwidth / 1e9
    session.tables.table(f"{case} (a plain read or copy moves {bandwidth:,.1f} GB/s)", rows)


class Turns:
    """Everyone measured, one after the other; who fails takes no further part.

    Attributes:
        broken: Why someone failed, by name.
    """

    def __init__(self, session: Session, case: str, peers: list[Peer]) -> None:
        self._session = session
        self._case = case
        self._peers = peers
        self.broken: dict[str, str] = {}

    def warm_up(self, load: Load) -> None:
        """Run the shape of the prompts once, with at most 3 new tokens."""
        for peer in list(self._peers):
            with self._dropping(peer):
                peer.run(self._session.prompts(load.batch, load.prompt), min(load.new, 3))

    def measure(self, prompts: Prompts, new: int, number: int) -> Iterator[tuple[Peer, Timing]]:
        """Give everyone the same prompts."""
        for peer in list(self._peers):
            with self._dropping(peer):
                yield (
                    peer,
                    self._session.measure(peer, prompts, new, case=self._case, round=number),
                )

    @contextlib.contextmanager
    def _dropping(self, peer: Peer) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            self._peers.remove(peer)
            self.broken[peer.name] = self._session.fail(peer.name, self._case, error)


def make_rows(session: Session, timings: Timings) -> Samples:
    """The lines of the table."""
    rows: Samples = []
    for load, by_peer in timings.items():
        base = by_peer.get(session.generate, []) if session.generate else []
        int8 = next((by_peer[peer] for peer in by_peer if peer.name == name_of("int8")), [])
        for peer, own in by_peer.items():
            step = _median(timing.step for timing in own)
            slowest = max((one.slowest for one in own if one.slowest is not None), default=None)
            total = statistics.median(timing.total for timing in own)
            limit = peer.step_bytes / session.tables.bandwidth  # seconds of a step
            row = {
                "who": peer.name,
                "dtype": session.dtype,
                "batch": load.batch,
                "prompt+new": f"{load.prompt}+{load.new}",
                "rounds": len(own),
                "ms/step": step and step * 1e3,
                "tok/s decode": step and load.batch / step,
                "slowest tok/s": slowest and load.batch / slowest,
                "tok/s all": load.batch * load.new / total,
                "x generate": _times_as_fast(own, base),
                "x ct2 int8": _times_as_fast(own, int8),
                "all x ct2 int8": _median(
                    b.total / a.total for a, b in zip(own, int8, strict=False)
                ),
                "% of limit": step and limit / step * 100,
                "first ms": statistics.median(timing.first for timing in own) * 1e3,
            }
            rows.append(row)
    return rows


def _times_as_fast(own: list[Timing], base: list[Timing]) -> float | None:
    """The median over the rounds; by the time of a step."""
    return _median(other.cost / timing.cost for timing, other in zip(own, base, strict=False))


def _median(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None


def compare_tokens(
    session: Session, load: Load, prompt: list[int], timings: dict[Peer, list[Timing]]
) -> None:
    """Say whether the first prompt's tokens are ``generate``'s, and if not how close it was."""
    where = f"{session.dtype} batch {load.batch} {load.prompt}+{load.new}"
    generate = session.generate
    if generate is None or generate not in timings:
        session.tables.note(f"{where}: tokens not compared, generate did not run")
        return
    right = timings[generate][0].tokens
    for peer, (timing, *_) in timings.items():
        if peer is generate:
            continue
        who = f"{where}: {peer.name} and generate"
        if timing.tokens == right:
            session.tables.note(f"{who}: same tokens ({len(right)})")
            continue
        place = [a == b for a, b in zip(timing.tokens, right, strict=True)].index(False)
        logits = generate.next_logits(prompt + right[:place])
        gap = float(logits[right[place]] - logits[timing.tokens[place]])
        text = (
            f"{who} differ from new token {place} on, where generate's logits are {gap:.2g} apart "
            f"(all logits' deviation {float(logits.std()):.2g})"
        )
        wrong = peer.name == "ours" and session.dtype == "float32" and gap > TIE
        (session.tables.fail if wrong else session.tables.note)(text)

"""Which cases are measured, with which numbers."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass

from gptj_predictor.common.threads import alone
from peers.cases import concurrent, page, prefix, unshared
from peers.decoding import decode
from peers.session import Session
from peers.tables import Tables
from peers.timing import Load


@dataclass(frozen=True)
class PlannedCase:
    """A case with its numbers.

    Attributes:
        case: As in ``--cases``; empty for what is always done.
        title: For messages.
        run: Does it.
    """

    case: str
    title: str
    run: Callable[[], None]


def plain_cases(session: Session) -> list[PlannedCase]:
    """The cases as the flags say."""
    a = session.arguments
    loads = [Load(batch, a.prompt_tokens, a.new_tokens) for batch in a.batch]
    return [
        _decode_case(session, session.dtype, loads, a.rounds),
        *_common_cases(session),
        _page_case(session),
    ]


def h200_cases(session: Session) -> list[PlannedCase]:
    """The table for an H200: beside ``generate`` first, then alone with all the memory.

    2,047 prompt tokens are the maximum: the context of 2,048 needs a place for a new token.
    """
    rounds = session.arguments.rounds
    one = [Load(1, 128, 128), Load(1, 128, 1), Load(1, 2047, 1)]
    many = [Load(64, 128, 128), Load(256, 128, 128), Load(512, 128, 128)]
    return [
        _decode_case(session, "batch 1", one, rounds),
        *_common_cases(session),
        PlannedCase("", "freeing generate's memory", session.drop_peers),
        _decode_case(session, "128/128", many, rounds),
        _page_case(session),
        _decode_case(session, "128/1920", [Load(120, 128, 1920)], 1),
    ]


def _decode_case(session: Session, title: str, loads: list[Load], rounds: int) -> PlannedCase:
    return PlannedCase("decode", title, lambda: decode(session, title, loads, rounds))


def _common_cases(session: Session) -> list[PlannedCase]:
    a = session.arguments
    load = Load(a.requests, a.prompt_tokens, a.new_tokens)
    shared, tail = a.prefix_tokens, a.tail_tokens
    return [
        PlannedCase(
            "concurrent", "requests", lambda: concurrent(session, load, a.rounds, a.one_by_one)
        ),
        PlannedCase("prefix", "shared", lambda: prefix(session, shared, tail, a.rounds)),
        PlannedCase(
            "prefix", "nothing shared", lambda: unshared(session, 256, 16, a.unshared_pairs)
        ),
    ]


def _page_case(session: Session) -> PlannedCase:
    a = session.arguments
    load = Load(8, a.page_context, min(a.new_tokens, 32))
    return PlannedCase("page", "page sizes", lambda: page(session, load, a.rounds))


def measure_dtype(tables: Tables, arguments: argparse.Namespace, dtype: str) -> None:
    """Everything about one dtype; what fails does not keep the rest from running."""
    session = alone(lambda: Session.build(tables, arguments, dtype))
    cases = h200_cases(session) if arguments.preset == "h200" else plain_cases(session)
    for planned in cases:
        if planned.case and planned.case not in arguments.cases:
            continue
        if tables.late() and planned.case:
            tables.fail(f"{dtype} {planned.case} {planned.title}: not begun, the time is up")
            continue
        try:
            planned.run()
        except Exception as error:
            session.fail("the case", f"{planned.case} {planned.title}", error)
        tables.save()
    session.drop_peers()

"""Who is measured: in this process, or in one of its own."""

from __future__ import annotations

import multiprocessing
from abc import ABC, abstractmethod
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial

import torch

from peers.timing import Prompts, Timing


class Peer(ABC):
    """Someone who is measured.

    Attributes:
        name: In the tables.
        step_bytes: Bytes of weights that one decode step reads.
    """

    def __init__(self, name: str, step_bytes: int) -> None:
        self.name = name
        self.step_bytes = step_bytes

    @abstractmethod
    def run(self, prompts: Prompts, new: int) -> Timing:
        """Generate exactly ``new`` tokens after every prompt."""

    def next_logits(self, ids: list[int]) -> torch.Tensor:
        """The logits after ``ids``, ``[vocabulary]`` in fp32.

        Raises:
            NotImplementedError: this peer does not show them.
        """
        raise NotImplementedError(self.name)

    def describe(self) -> str:
        """What it computes with, in its own words."""
        return self.name

    def close(self) -> None:  # noqa: B027 - most hold nothing
        """Give back what is held outside of this process."""


class SeparatePeer(Peer):
    """A peer in a process of its own, where its threads are in nobody's way.

    Args:
        name: Of the peer.
        step_bytes: See :class:`Peer`.
        make: Makes the peer, in that process.
        arguments: Of ``make``.
    """

    def __init__(
        self, name: str, step_bytes: int, make: Callable[..., Peer], *arguments: object
    ) -> None:
        super().__init__(name, step_bytes)
        self._pool = ProcessPoolExecutor(
            max_workers=1,
            mp_context=multiprocessing.get_context("spawn"),
            initializer=partial(_make, make, *arguments),
        )

    def run(self, prompts: Prompts, new: int) -> Timing:
        """See :meth:`Peer.run`."""
        return self._pool.submit(_run, prompts, new).result()

    def next_logits(self, ids: list[int]) -> torch.Tensor:
        """See :meth:`Peer.next_logits`."""
        return torch.tensor(self._pool.submit(_next_logits, ids).result())

    def describe(self) -> str:
        """See :meth:`Peer.describe`."""
        return self._pool.submit(_describe).result()

    def close(self) -> None:
        """End the process."""
        self._pool.shutdown()


_made: list[Peer] = []  # the peer that this process was started for


def _make(make: Callable[..., Peer], *arguments: object) -> None:
    _made.append(make(*arguments))


def _run(prompts: Prompts, new: int) -> Timing:
    return _made[0].run(prompts, new)


def _describe() -> str:
    return _made[0].describe()


def _next_logits(ids: list[int]) -> list[float]:
    return _made[0].next_logits(ids).tolist()

"""Captures on a made-up GPU: what they share, and that no garbage is collected meanwhile."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from gptj_predictor.devices.cuda_graphs import CudaCapture, capture_for
from gptj_predictor.model.network import GPTJNetwork
from tests.support.engines import CPU

GPU = torch.device("cuda", 0)


@pytest.fixture(autouse=True)
def collecting() -> Iterator[None]:
    """With garbage collection, which an earlier test in this process may have left off."""
    was_on = gc.isenabled()
    gc.enable()
    yield
    if not was_on:
        gc.disable()


class FakeStream:
    made = 0

    def __init__(self, device: torch.device | None = None) -> None:
        FakeStream.made += 1

    def wait_stream(self, other: FakeStream) -> None:
        assert other is not self


class FakeGraph:
    """Repeats what ran while it was captured, on the same tensors."""

    def replay(self) -> None:
        self.run()

    def run(self) -> None:
        raise AssertionError("nothing was captured")


class FakeCuda:
    """torch.cuda's capture, as far as it is used; it notes pools and streams."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.default = FakeStream()
        self.current = self.default
        FakeStream.made = 0
        self.pools: list[object] = []
        self.captured: list[tuple[object, FakeStream]] = []
        self.gc_was_enabled: list[bool] = []
        for name in ("graph_pool_handle", "stream", "graph"):
            monkeypatch.setattr(torch.cuda, name, getattr(self, name))
        monkeypatch.setattr(torch.cuda, "current_stream", lambda: self.current)
        monkeypatch.setattr(torch.cuda, "Stream", FakeStream)
        monkeypatch.setattr(torch.cuda, "CUDAGraph", FakeGraph)

    def graph_pool_handle(self) -> object:
        self.pools.append(object())
        return self.pools[-1]

    @contextmanager
    def stream(self, stream: FakeStream) -> Iterator[None]:
        self.current, before = stream, self.current
        yield
        self.current = before

    @contextmanager
    def graph(self, graph: FakeGraph, pool: object, stream: FakeStream) -> Iterator[None]:
        self.captured.append((pool, stream))
        self.gc_was_enabled.append(gc.isenabled())
        yield


def test_all_captures_share_a_stream_and_a_pool(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each runs once to warm up, on the stream of the captures, and once to be captured."""
    cuda = FakeCuda(monkeypatch)
    capture, streams = CudaCapture(GPU), list[FakeStream]()

    def run() -> torch.Tensor:
        streams.append(cuda.current)
        return torch.zeros(len(streams))

    replays = [capture(run) for _ in range(5)]
    assert len(replays) == 5
    assert len(streams) == 10
    assert len(set(cuda.captured)) == FakeStream.made == len(cuda.pools) == 1
    assert set(streams[::2]) == {cuda.captured[0][1]}
    assert cuda.gc_was_enabled == [False] * 5
    assert gc.isenabled()


def test_graphs_that_are_gone_leave_their_pool_and_not_their_stream(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cuda = FakeCuda(monkeypatch)
    capture = CudaCapture(GPU)
    capture(lambda: torch.zeros(1))
    capture.renew_pool()
    capture(lambda: torch.zeros(1))
    (first_pool, first), (second_pool, second) = cuda.captured
    assert first_pool is not second_pool
    assert first is second


def test_the_garbage_collector_is_on_again_after_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    FakeCuda(monkeypatch)
    calls: list[int] = []

    def run() -> torch.Tensor:
        calls.append(0)
        if len(calls) == 2:
            raise RuntimeError("operation not permitted when stream is capturing")
        return torch.zeros(1)

    with pytest.raises(RuntimeError, match="not permitted"):
        CudaCapture(GPU)(run)
    assert gc.isenabled()


@pytest.mark.parametrize(
    ("attentions", "captures"),
    [
        ({GPU: True}, True),
        ({GPU: False}, False),
        ({GPU: True, CPU: True}, False),
        ({CPU: True}, False),
    ],
)
def test_who_is_captured(
    attentions: dict[torch.device, bool], captures: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    FakeCuda(monkeypatch)
    named: dict[torch.device, Any] = {
        device: SimpleNamespace(capturable=capturable) for device, capturable in attentions.items()
    }
    network = cast("GPTJNetwork", SimpleNamespace(attentions=named))
    assert (capture_for(network) is not None) == captures

"""Blocks on their way to a GPU: no buffer is filled again before its content has been fetched.

The GPU is made up: it fetches as late as it may.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
import torch

from gptj_predictor.model.network import Placement
from gptj_predictor.snapshot import load_blocks
from gptj_predictor.snapshot.builder import NetworkBuilder
from gptj_predictor.snapshot.folder import SnapshotFolder
from gptj_predictor.snapshot.host_buffers import HostBuffers, make_host_buffers
from gptj_predictor.snapshot.load import load_network
from tests.support.engines import CPU
from tests.support.reference import ReferenceModel


class LateDevice(threading.local):
    """A device that does what a thread has launched when the thread waits for it, not before."""

    def __init__(self) -> None:
        self.launched: list[Callable[[], None]] = []
        self.num_waits = 0

    def fence(self, device: torch.device) -> LateFence:
        assert device == CPU
        return LateFence(self, len(self.launched))

    def wait(self, count: int) -> None:
        for work in self.launched[:count]:
            work()
        self.launched[:count] = [lambda: None] * count


class LateFence:
    def __init__(self, device: LateDevice, count: int) -> None:
        self._device, self._count = device, count

    def synchronize(self) -> None:
        self._device.num_waits += 1
        self._device.wait(self._count)


def test_a_buffer_is_filled_again_when_it_has_been_fetched() -> None:
    device = LateDevice()
    buffers = HostBuffers([torch.zeros(1, dtype=torch.uint8) for _ in range(2)], device.fence)
    fetched: list[int] = []
    for number in range(6):
        buffer = buffers.take()
        assert len(fetched) >= number - 1  # one may be on its way, not two
        buffer.fill_(number)
        device.launched.append(lambda buffer=buffer: fetched.append(int(buffer)))  # type: ignore[misc]
        buffers.sent(CPU)
    device.wait(6)
    assert fetched == list(range(6))
    assert device.num_waits == 4


def test_one_buffer_on_a_cpu_which_is_never_waited_for() -> None:
    buffers = make_host_buffers(8, pinned=False)
    first = buffers.take()
    buffers.sent(CPU)
    assert buffers.take() is first
    assert first.dtype is torch.uint8
    assert len(first) == 8


def test_a_load_that_is_fetched_late_is_whole(
    small: ReferenceModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every copy is put off until its buffer is wanted again; the weights are the same."""
    expected = load_network(SnapshotFolder.open(small.folder), torch.float64, on_cpu(small))
    monkeypatch.setattr(load_blocks, "READERS", 2)
    monkeypatch.setattr(NetworkBuilder, "packs", lambda self, parameter: False)
    device, put = LateDevice(), load_blocks.put_values

    def put_late(place: torch.Tensor, first: int, values: torch.Tensor) -> None:
        device.launched.append(lambda: put(place, first, values))

    ends: list[list[Callable[[], None]]] = []

    def make(size: int, *, pinned: bool) -> HostBuffers:
        ends.append(device.launched)  # this thread's
        return HostBuffers([torch.empty(size, dtype=torch.uint8) for _ in range(2)], device.fence)

    monkeypatch.setattr(load_blocks, "put_values", put_late)
    monkeypatch.setattr(load_blocks, "make_host_buffers", make)
    network = load_network(SnapshotFolder.open(small.folder), torch.float64, on_cpu(small))
    assert 1 <= len(ends) <= 2
    assert sum(map(len, ends)) > 10
    for launched in ends:  # as the load's last wait would
        for work in launched:
            work()
    for name, weight in expected.weights.items():
        assert torch.equal(network.weights[name], weight), name


def on_cpu(reference: ReferenceModel) -> Placement:
    return Placement.on(CPU, SnapshotFolder.open(reference.folder).config.n_layer)

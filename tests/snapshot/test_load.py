"""Loading holds the weights once, and leaves nothing else behind."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch

from gptj_predictor.model.network import Placement
from gptj_predictor.snapshot.errors import SnapshotError
from gptj_predictor.snapshot.folder import SnapshotFolder
from gptj_predictor.snapshot.load import load_network
from tests.support.sparse import write_sparse_snapshot

MEASURE = """
import math, sys, torch
from pathlib import Path
from gptj_predictor.model.network import Placement
from gptj_predictor.snapshot.folder import SnapshotFolder
from gptj_predictor.snapshot.load import load_network

def peak():  # the kernel's own high-water mark of resident memory
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))

folder = SnapshotFolder.open(Path(sys.argv[1]))
before = peak()
dtype = getattr(torch, sys.argv[2])
placement = Placement.on(torch.device("cpu"), folder.config.n_layer)
network = load_network(folder, dtype, placement)
largest = max(math.prod(stored.shape) for stored in folder.tensors.values()) * dtype.itemsize
print(network.weight_bytes, peak() - before, largest)
"""


@pytest.mark.process
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_peak_memory_is_the_network_and_three_fused_weights(tmp_path: Path, dtype: str) -> None:
    """Also when it casts, and although all weights are in one file.

    Two fused weights (q, k, v and fc_in: 7/4 of the largest tensor) are being read or packed at a
    time, and oneDNN keeps about as much as one; each reader has a small buffer.
    """
    write_sparse_snapshot(tmp_path, "F16", n_embd=2048, n_layer=4, n_head=8, vocab_size=5000)
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(tmp_path), dtype],
        capture_output=True,
        check=True,
        text=True,
    )
    weights, peak, largest = (int(number) for number in done.stdout.split())
    assert weights > 300e6
    assert weights * 0.9 < peak < weights + 3 * 7 / 4 * largest + 50e6


@pytest.mark.parametrize("damaged", [False, True])
def test_threads_that_start_later_compute_with_as_many_as_before(
    tmp_path: Path, damaged: bool
) -> None:
    """The readers compute with one thread each, whether the load succeeds or not."""
    write_sparse_snapshot(tmp_path, "F16", n_embd=64, n_layer=1, n_head=1, vocab_size=50)
    folder = SnapshotFolder.open(tmp_path)
    if damaged:
        with (tmp_path / "model.safetensors").open("r+b") as weights:
            weights.truncate(weights.seek(-1, os.SEEK_END))
    before = torch.get_num_threads()
    torch.set_num_threads(before + 2)
    try:
        with pytest.raises(SnapshotError, match="too early") if damaged else nullcontext():
            load_network(folder, torch.float32, Placement.on(torch.device("cpu"), 1))
        with ThreadPoolExecutor(1) as later:
            assert later.submit(torch.get_num_threads).result() == before + 2
    finally:
        torch.set_num_threads(before)

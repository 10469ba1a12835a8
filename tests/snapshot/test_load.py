"""Loading holds the weights once."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.sparse import write_sparse_snapshot

MEASURE = """
import sys, torch
from pathlib import Path
from gptj_predictor.snapshot.folder import SnapshotFolder
from gptj_predictor.snapshot.load import load_network

def peak():  # the kernel's own high-water mark of resident memory
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))

folder = SnapshotFolder.open(Path(sys.argv[1]))
before = peak()
network = load_network(folder, getattr(torch, sys.argv[2]), torch.device("cpu"))
largest = max(view.nbytes for view in network.checkpoint_views().values())
print(network.weight_bytes, peak() - before, largest)
"""


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_peak_memory_is_the_network_and_one_tensor(tmp_path: Path, dtype: str) -> None:
    """Also when it casts, and although all weights are in one file."""
    write_sparse_snapshot(tmp_path, "F16", n_embd=1024, n_layer=12, n_head=4, vocab_size=5000)
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(tmp_path), dtype],
        capture_output=True,
        check=True,
        text=True,
    )
    weights, peak, largest = (int(number) for number in done.stdout.split())
    assert weights > 300e6
    assert weights * 0.9 < peak < weights + 2 * largest + 30e6

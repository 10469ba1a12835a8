"""How fast a snapshot loads, beside the fastest plain read of the same bytes.

    python benchmarks/loading.py FOLDER [--rounds 3] [--caches cold warm] [--dtype bfloat16]

A plain read is parallel readers, each filling one small buffer again and again. One that keeps the
bytes, as a load has to, also pays for memory that was never used, which on a virtual machine can
take longer than the reading; it is measured too. Every load is a process of its own. ``cold`` takes
the files out of the page cache first (``posix_fadvise``), ``warm`` reads them once before. How long
a server takes from its start to its first answer is measured by ``benchmarks/serve.py``.
"""

from __future__ import annotations

import argparse
import json
import mmap
import os
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path
from queue import Empty, SimpleQueue

READERS = (1, 2, 4, 8, 16)
PIECE = 8 * 2**20

LOAD = """
import json, sys, time
from pathlib import Path
import torch
from gptj_predictor.devices.host import usable_cpus
from gptj_predictor.model.network import Placement
from gptj_predictor.snapshot.builder import NetworkBuilder
from gptj_predictor.snapshot.folder import SnapshotFolder
from gptj_predictor.snapshot.load import load_network

path, dtype, digests, pack = Path(sys.argv[1]), getattr(torch, sys.argv[2]), *map(int, sys.argv[3:])
torch.set_num_threads(usable_cpus())
if not pack:
    NetworkBuilder.packs = lambda *_: False
folder = SnapshotFolder.open(path)
device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
placement = Placement.on(device, folder.config.n_layer)
began = time.perf_counter()
load_network(folder, dtype, placement, check_digests=bool(digests))
seconds = time.perf_counter() - began
status = Path("/proc/self/status").read_text()
print(json.dumps({"seconds": seconds, "peak": int(status.split("VmHWM:")[1].split()[0]) * 1024}))
"""

#: What is compared: name, whether digests are checked, whether weights are packed for the CPU.
LOADS = (("load", 1, 1), ("load, no digests", 0, 1), ("load, not packed", 1, 0))


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--caches", nargs="+", default=["cold", "warm"], choices=["cold", "warm"])
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float16", "float32"])
    parser.add_argument("--readers", nargs="+", type=int, default=list(READERS))
    arguments = parser.parse_args()
    files = sorted(arguments.folder.glob("*.safetensors"))
    size = sum(file.stat().st_size for file in files)
    print(f"{len(files)} files, {size / 1e9:.2f} GB, {os.cpu_count()} CPUs")
    for cache in arguments.caches:
        measure(arguments, cache, files, size)


def measure(arguments: argparse.Namespace, cache: str, files: list[Path], size: int) -> None:
    """All ways, in turns, with the page cache in one state."""
    reads: dict[int, list[float]] = {count: [] for count in arguments.readers}
    loads: dict[str, list[float]] = {name: [] for name, *_ in LOADS}
    peaks: dict[str, int] = {}
    kept: dict[int, list[float]] = {count: [] for count in arguments.readers if 1 < count < 16}
    for _ in range(arguments.rounds):
        for count, times in reads.items():
            prepare(cache, files)
            times.append(plain_read(files, count))
        for count, times in kept.items():
            prepare(cache, files)
            times.append(plain_read(files, count, mmap.mmap(-1, size)))
        for name, digests, pack in LOADS:
            prepare(cache, files)
            found = load(arguments, digests, pack)
            loads[name].append(found["seconds"])
            peaks[name] = int(found["peak"])
    best = min(min(times) for times in reads.values())
    print(f"\n{cache}: seconds (median of {arguments.rounds}), GB/s, x the best plain read")
    for count, times in reads.items():
        line(f"plain read, {count} readers", times, size, best)
    for count, times in kept.items():
        line(f"plain read that keeps, {count} readers", times, size, best)
    for name, times in loads.items():
        line(f"{name}, peak {peaks[name] / 1e9:.2f} GB", times, size, best)


def line(name: str, times: list[float], size: int, best: float) -> None:
    """One row."""
    middle = statistics.median(times)
    print(
        f"{name:36} {middle:7.2f} s {size / 1e9 / middle:6.2f} GB/s {middle / best:6.2f} x"
        f"   (best {min(times):.2f})"
    )


def prepare(cache: str, files: list[Path]) -> None:
    """Take the files out of the page cache, or bring them in."""
    if cache == "warm":
        plain_read(files, 4)
        return
    os.sync()
    for file in files:
        descriptor = os.open(file, os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def plain_read(files: list[Path], readers: int, keep: mmap.mmap | None = None) -> float:
    """Seconds; with ``keep`` every byte stays, each at its own address."""
    pieces: SimpleQueue[tuple[int, int, int]] = SimpleQueue()
    descriptors = [os.open(file, os.O_RDONLY) for file in files]
    end = 0
    if keep is not None:
        keep.madvise(mmap.MADV_HUGEPAGE)
    for descriptor in descriptors:
        size = os.fstat(descriptor).st_size
        for offset in range(0, size, PIECE):
            pieces.put((descriptor, offset, end + offset))
        end += size

    def read() -> None:
        buffer = bytearray(PIECE)
        try:
            while True:
                descriptor, offset, place = pieces.get_nowait()
                into = memoryview(buffer if keep is None else keep)
                begin = 0 if keep is None else place
                os.preadv(descriptor, [into[begin : begin + PIECE]], offset)
        except Empty:
            pass

    threads = [threading.Thread(target=read) for _ in range(readers)]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seconds = time.perf_counter() - began
    for descriptor in descriptors:
        os.close(descriptor)
    return seconds


def load(arguments: argparse.Namespace, digests: int, pack: int) -> dict[str, float]:
    """Seconds and peak bytes of one load."""
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            LOAD,
            str(arguments.folder),
            arguments.dtype,
            str(digests),
            str(pack),
        ],
        env={"THP_MEM_ALLOC_ENABLE": "1", **os.environ},
        stdout=subprocess.PIPE,
        check=True,
    )
    found: dict[str, float] = json.loads(done.stdout)
    return found


if __name__ == "__main__":
    main()

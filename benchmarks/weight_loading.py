"""How fast do a snapshot's weights load, beside the fastest plain read of the same bytes?

    .venv/bin/python benchmarks/weight_loading.py FOLDER ... [--rounds 3] [--caches cold warm]

A plain read is parallel readers, each filling one small buffer again and again. One that keeps the
bytes, as a load has to, also pays for memory that was never used; it is measured too. Every load is
a process of its own. ``cold`` takes the files out of the page cache first (``posix_fadvise``),
``warm`` reads them once before. Several folders take turns, and are compared with the first: int8
weights with the same in 16 bits. How long a server takes from its start to its first token is
measured by ``cold_start.py``.

A virtual machine's host may take memory back soon after it was freed. To use it again then takes
longer than all the rest (2.2 s instead of 0.1 for a GB on one machine), for files in the page cache
as well. So memory is used and freed right before each measurement, unless ``--memory as-is`` says
that this is to be measured too.
"""

from __future__ import annotations

import argparse
import mmap
import os
import statistics
import threading
import time
from pathlib import Path
from queue import Empty, SimpleQueue

import torch

from gptj_predictor.devices.host import usable_cpus
from gptj_predictor.model.network import Placement
from gptj_predictor.snapshot.builder import NetworkBuilder
from gptj_predictor.snapshot.folder import SnapshotFolder
from gptj_predictor.snapshot.load import load_network
from processes import run_in_new_process

READERS = (1, 2, 4, 8, 16)
PIECE = 8 * 2**20

#: What is compared: whether digests are checked, whether weights are packed for the CPU.
LOADS = {
    "load": (True, True),
    "load, no digests": (False, True),
    "load, not packed": (True, False),
}


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", type=Path, nargs="+", metavar="FOLDER")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--caches", nargs="+", default=["cold", "warm"], choices=["cold", "warm"])
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float16", "float32"])
    parser.add_argument("--readers", nargs="+", type=int, default=list(READERS))
    parser.add_argument("--loads", nargs="+", default=list(LOADS), choices=list(LOADS))
    parser.add_argument("--memory", default="used", choices=["used", "as-is"])
    arguments = parser.parse_args()
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # as the server does, for the new processes
    for cache in arguments.caches:
        measured = [Measured(folder, arguments) for folder in arguments.folders]
        for number in range(arguments.rounds):
            for one in measured if number % 2 == 0 else reversed(measured):
                one.measure_round(cache)
        for one in measured:
            one.report(cache)
        first, *others = measured
        for one in others:
            one.compare(first)


class Measured:
    """All reads and loads of one folder, with the page cache in one state."""

    def __init__(self, folder: Path, arguments: argparse.Namespace) -> None:
        """Measure nothing yet."""
        self.folder, self._dtype = folder, arguments.dtype
        self._files = sorted(folder.glob("*.safetensors"))
        self._size = sum(file.stat().st_size for file in self._files)
        # For the page cache, for the values, and for what a load needs besides.
        self._memory = int(2.2 * self._size) + 2**30 if arguments.memory == "used" else 0
        readers = arguments.readers
        self._reads: dict[int, list[float]] = {count: [] for count in readers}
        self._kept: dict[int, list[float]] = {count: [] for count in readers if 1 < count < 16}
        self._loads: dict[str, list[float]] = {name: [] for name in arguments.loads}
        self._peaks: dict[str, int] = {}

    def measure_round(self, cache: str) -> None:
        """Each of them once."""
        for count, times in self._reads.items():
            prepare(cache, self._files)
            use_memory(self._memory)
            times.append(plain_read(self._files, count))
        for count, times in self._kept.items():
            prepare(cache, self._files)
            use_memory(self._memory)
            times.append(plain_read(self._files, count, mmap.mmap(-1, self._size)))
        for name, times in self._loads.items():
            prepare(cache, self._files)
            seconds, self._peaks[name] = run_in_new_process(
                load, self.folder, self._dtype, *LOADS[name], self._memory
            )
            times.append(seconds)

    def report(self, cache: str) -> None:
        """Print the table."""
        rounds = len(next(iter(self._reads.values())))
        kind = SnapshotFolder.open(self.folder).quantization
        print(
            f"\n{self.folder}, quantization {kind}: {len(self._files)} files, "
            f"{self._size / 1e9:.2f} GB, {os.cpu_count()} CPUs"
        )
        print(f"{cache}: seconds (median of {rounds}), GB/s, x the best plain read")
        best = min(min(times) for times in self._reads.values())
        for count, times in self._reads.items():
            line(f"plain read, {count} readers", times, self._size, best)
        for count, times in self._kept.items():
            line(f"plain read that keeps, {count} readers", times, self._size, best)
        for name, times in self._loads.items():
            peak = self._peaks[name] / 1e9
            line(f"{name}, peak {peak:.2f} GB", times, self._size, best)

    def compare(self, first: Measured) -> None:
        """Print how long each load takes, as a share of another folder's."""
        for name, times in self._loads.items():
            share = statistics.median(times) / statistics.median(first._loads[name])
            print(f"{name}: {self.folder} takes {share:.2f} of the time of {first.folder}")


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
    """Read all files with so many threads.

    Args:
        files: To read.
        readers: Threads.
        keep: Memory of all files' size, in which every byte stays. Without it every thread has one
            small buffer, which it fills again and again.

    Returns:
        The seconds.
    """
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


def use_memory(size: int) -> None:
    """Use so many bytes of memory, or nearly all that is free if that is less, and free them."""
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    size = min(size, free - free // 16)
    if size <= 0:
        return
    with mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
        memory.madvise(mmap.MADV_HUGEPAGE)
        for place in range(0, size, mmap.PAGESIZE):
            memory[place] = 1


def load(path: Path, dtype: str, check_digests: bool, pack: bool, memory: int) -> float:
    """Load a snapshot once, in the process that this is called in; returns the seconds."""
    torch.set_num_threads(usable_cpus())
    if not pack:
        setattr(NetworkBuilder, "packs", lambda *_: False)  # noqa: B010 - mypy wants no assignment
    folder = SnapshotFolder.open(path)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    placement = Placement.on(device, folder.config.n_layer)
    if memory:
        run_in_new_process(use_memory, memory)  # it is not to count in this one's peak
    began = time.perf_counter()
    load_network(
        folder,
        getattr(torch, dtype),
        placement,
        quantization=folder.quantization,
        check_digests=check_digests,
    )
    return time.perf_counter() - began


if __name__ == "__main__":
    main()

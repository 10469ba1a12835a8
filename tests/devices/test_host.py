from __future__ import annotations

import os
from pathlib import Path

import psutil
import pytest

from gptj_predictor.devices.host import free_memory, usable_cpus

CPUS = len(os.sched_getaffinity(0))


def write(folder: Path, **files: str) -> Path:
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text + "\n")
    return folder


@pytest.mark.parametrize(
    ("quota", "cpus"), [("max 100000", CPUS), ("50000 100000", 1), ("99900000 100000", CPUS)]
)
def test_cpus_by_cgroup_v2(tmp_path: Path, quota: str, cpus: int) -> None:
    assert usable_cpus(write(tmp_path, cpu__max=quota)) == cpus


@pytest.mark.parametrize(("quota", "cpus"), [("-1", CPUS), ("50000", 1), ("99900000", CPUS)])
def test_cpus_by_cgroup_v1(tmp_path: Path, quota: str, cpus: int) -> None:
    (tmp_path / "cpu").mkdir()
    write(tmp_path / "cpu", cpu__cfs_quota_us=quota, cpu__cfs_period_us="100000")
    assert usable_cpus(tmp_path) == cpus


@pytest.mark.skipif(CPUS < 2, reason="a limit below one CPU cannot be seen")
def test_a_part_of_a_cpu_counts_as_one_more(tmp_path: Path) -> None:
    assert usable_cpus(write(tmp_path, cpu__max="110000 100000")) == 2


def test_cpus_by_affinity(tmp_path: Path) -> None:
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        assert usable_cpus(tmp_path) == 1
    finally:
        os.sched_setaffinity(0, before)


def test_memory(tmp_path: Path) -> None:
    machine = psutil.virtual_memory().available
    assert free_memory(tmp_path) == pytest.approx(machine, rel=0.1)
    write(tmp_path, memory__max="max", memory__current="5")
    assert free_memory(tmp_path) == pytest.approx(machine, rel=0.1)
    write(tmp_path, memory__max="1000", memory__current="400")
    assert free_memory(tmp_path) == 600
    write(tmp_path, memory__current="1200")
    assert free_memory(tmp_path) == 0

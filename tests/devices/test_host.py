"""What a container's limits leave, read from made-up trees of ``/proc`` and cgroups."""

from __future__ import annotations

import os
from pathlib import Path

import psutil
import pytest

from gptj_predictor.devices.host import free_memory, usable_cpus
from tests.support.cgroups import MIB, NO_LIMIT_V1, CgroupTree

CPUS = len(os.sched_getaffinity(0))


@pytest.mark.parametrize(
    ("quota", "cpus"), [("max 100000", CPUS), ("50000 100000", 1), ("99900000 100000", CPUS)]
)
def test_cpus_by_cgroup_v2(tmp_path: Path, quota: str, cpus: int) -> None:
    tree = CgroupTree(tmp_path, version=2)
    tree.group("/", **{"cpu.max": quota})
    assert usable_cpus(tmp_path) == cpus


@pytest.mark.parametrize(("quota", "cpus"), [("-1", CPUS), ("50000", 1), ("99900000", CPUS)])
def test_cpus_by_cgroup_v1(tmp_path: Path, quota: str, cpus: int) -> None:
    tree = CgroupTree(tmp_path, version=1)
    tree.group("/", **{"cpu.cfs_quota_us": quota, "cpu.cfs_period_us": "100000"})
    assert usable_cpus(tmp_path) == cpus


@pytest.mark.skipif(CPUS < 2, reason="a limit below one CPU cannot be seen")
def test_a_part_of_a_cpu_counts_as_one_more(tmp_path: Path) -> None:
    CgroupTree(tmp_path, version=2).group("/", **{"cpu.max": "110000 100000"})
    assert usable_cpus(tmp_path) == 2


@pytest.mark.parametrize("version", [1, 2])
def test_the_group_above_limits_cpus_too(tmp_path: Path, version: int) -> None:
    tree = CgroupTree(tmp_path, version=version, group="/pod/container")
    if version == 2:
        tree.group("/pod", **{"cpu.max": "50000 100000"})
        tree.group("/pod/container", **{"cpu.max": "max 100000"})
    else:
        tree.group("/pod", **{"cpu.cfs_quota_us": "50000", "cpu.cfs_period_us": "100000"})
        tree.group("/pod/container", **{"cpu.cfs_quota_us": "-1", "cpu.cfs_period_us": "100000"})
    assert usable_cpus(tmp_path) == 1


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
    tree = CgroupTree(tmp_path, version=2)
    tree.memory("/", limit="max", used=5)
    assert free_memory(tmp_path) == pytest.approx(machine, rel=0.1)
    tree.memory("/", limit=1000, used=400)
    assert free_memory(tmp_path) == 600
    tree.memory("/", limit=1000, used=1200)
    assert free_memory(tmp_path) == 0


def test_memory_by_cgroup_v1(tmp_path: Path) -> None:
    machine = psutil.virtual_memory().available
    tree = CgroupTree(tmp_path, version=1)
    tree.memory("/", limit=NO_LIMIT_V1, used=5)
    assert free_memory(tmp_path) == pytest.approx(machine, rel=0.1)
    tree.memory("/", limit=1200 * MIB, used=400 * MIB)
    assert free_memory(tmp_path) == 800 * MIB
    tree.memory("/", limit=1200 * MIB, used=1300 * MIB)
    assert free_memory(tmp_path) == 0


@pytest.mark.parametrize("version", [1, 2])
def test_page_cache_is_free_unless_it_is_mapped(tmp_path: Path, version: int) -> None:
    """The pages of weights that were read are given back; those of loaded libraries are not."""
    tree = CgroupTree(tmp_path, version=version)
    tree.memory(
        "/", limit=1000 * MIB, used=900 * MIB, active=300 * MIB, inactive=200 * MIB, mapped=50 * MIB
    )
    assert free_memory(tmp_path) == (1000 - 900 + 300 + 200 - 50) * MIB
    # Shared memory counts as mapped, too, and is in neither list of files.
    tree.memory("/", limit=1000 * MIB, used=900 * MIB, active=10 * MIB, mapped=50 * MIB)
    assert free_memory(tmp_path) == 100 * MIB


@pytest.mark.parametrize("version", [1, 2])
def test_the_tightest_of_nested_groups_counts(tmp_path: Path, version: int) -> None:
    tree = CgroupTree(tmp_path, version=version, group="/pod/container")
    tree.memory("/pod/container", limit=1000 * MIB, used=100 * MIB)
    tree.memory("/pod", limit=1200 * MIB, used=900 * MIB)
    assert free_memory(tmp_path) == 300 * MIB
    tree.memory("/pod/container", limit=1000 * MIB, used=800 * MIB)
    assert free_memory(tmp_path) == 200 * MIB
    tree.memory("/pod/neighbor", limit=10 * MIB, used=10 * MIB)
    assert free_memory(tmp_path) == 200 * MIB


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize(
    ("group", "mounted"),
    [
        ("/kubepods/pod1/c1", "/kubepods/pod1/c1"),  # a container without a cgroup namespace
        ("/", "/"),  # one with
        ("/kubepods/pod1/c1", "/"),  # the host's name, but the own group is all there is
        ("/kubepods/pod1/c1", "/docker/other"),
        ("/../outside", "/"),
    ],
)
def test_a_container_sees_its_own_group_at_the_mount(
    tmp_path: Path, version: int, group: str, mounted: str
) -> None:
    tree = CgroupTree(tmp_path, version=version, group=group, mounted=mounted)
    tree.memory("/", limit=1000 * MIB, used=100 * MIB)
    assert free_memory(tmp_path) == 900 * MIB


def test_a_part_of_the_tree_is_mounted(tmp_path: Path) -> None:
    tree = CgroupTree(tmp_path, version=1, group="/pod/container", mounted="/pod")
    tree.memory("/container", limit=1000 * MIB, used=100 * MIB)
    assert free_memory(tmp_path) == 900 * MIB


def test_a_limit_of_a_group_out_of_sight(tmp_path: Path) -> None:
    tree = CgroupTree(tmp_path, version=1)
    tree.memory("/", limit=NO_LIMIT_V1, used=100 * MIB, hierarchical=500 * MIB)
    assert free_memory(tmp_path) == 400 * MIB


def test_mount_points_with_spaces(tmp_path: Path) -> None:
    tree = CgroupTree(tmp_path, version=2, mount="/mnt/control groups")
    tree.memory("/", limit=1000, used=400)
    assert free_memory(tmp_path) == 600


def test_both_versions_side_by_side(tmp_path: Path) -> None:
    """systemd's hybrid: v2 is mounted too, without controllers."""
    CgroupTree(tmp_path, version=2, mount="/sys/fs/cgroup/unified").group("/")
    CgroupTree(tmp_path, version=1).memory("/", limit=1000, used=400)
    assert free_memory(tmp_path) == 600


@pytest.mark.parametrize("content", ["", "nonsense", "-1", "max"])
def test_unreadable_limits_are_none(tmp_path: Path, content: str) -> None:
    tree = CgroupTree(tmp_path, version=2)
    tree.group("/", **{"memory.max": content, "memory.current": "400", "memory.stat": content})
    machine = psutil.virtual_memory().available
    assert free_memory(tmp_path) == pytest.approx(machine if content != "-1" else 0, rel=0.1)

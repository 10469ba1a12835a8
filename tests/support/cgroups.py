"""Made-up trees of ``/proc/self`` and cgroups, of both versions."""

from __future__ import annotations

from pathlib import Path

MIB = 2**20

#: What cgroup v1 says where there is no limit: the largest number, rounded down to a page.
NO_LIMIT_V1 = 2**63 - 4096


class CgroupTree:
    """A folder that can stand for ``/``, as far as cgroups go."""

    def __init__(
        self,
        root: Path,
        *,
        version: int,
        group: str = "/",
        mounted: str = "/",
        mount: str | None = None,
    ) -> None:
        """Write what a process finds in ``/proc/self``, beside what is there already.

        Args:
            root: The folder.
            version: 1 or 2; the first has a mount for each controller.
            group: The process's, as ``/proc/self/cgroup`` names it.
            mounted: The group at the mount point.
            mount: The mount point.
        """
        self._version = version
        proc = root / "proc/self"
        proc.mkdir(parents=True, exist_ok=True)
        default = "/sys/fs/cgroup"
        controllers = {"memory": "memory", "cpu": "cpu,cpuacct"} if version == 1 else {"": ""}
        self._mounts = []
        with (proc / "cgroup").open("a") as names, (proc / "mountinfo").open("a") as mounts:
            mounts.write("22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw\n")
            for number, (name, options) in enumerate(controllers.items(), 4 if version == 1 else 0):
                point = mount or (f"{default}/{name}" if name else default)
                names.write(f"{number}:{options}:{group}\n")
                kind = "cgroup" if version == 1 else "cgroup2"
                escaped = point.replace(" ", "\\040")
                extra = f",{options}" if options else ""
                mounts.write(
                    f"3{number} 24 0:2{number} {mounted} {escaped} ro,nosuid master:9 - "
                    f"{kind} {kind} rw{extra}\n"
                )
                self._mounts.append(root / point.lstrip("/"))

    def group(self, name: str, **files: str) -> None:
        """Write files of a group, by its path below the mount point."""
        for mount in self._mounts:
            folder = mount / name.lstrip("/")
            folder.mkdir(parents=True, exist_ok=True)
            for file, text in files.items():
                (folder / file).write_text(f"{text}\n")

    def memory(
        self,
        name: str,
        *,
        limit: int | str,
        used: int,
        active: int = 0,
        inactive: int = 0,
        mapped: int = 0,
        hierarchical: int | None = None,
    ) -> None:
        """Write the memory controller's files of a group; all numbers are bytes."""
        if self._version == 2:
            stat = {"anon": used, "file_mapped": mapped}
            stat |= {"active_file": active, "inactive_file": inactive}
            names = ("memory.max", "memory.current")
        else:
            # Without "total_" they are of the group without those below it.
            stat = {"active_file": 0, "inactive_file": 0, "mapped_file": 0}
            stat |= {"total_active_file": active, "total_inactive_file": inactive}
            stat |= {"total_mapped_file": mapped}
            stat["hierarchical_memory_limit"] = int(limit if hierarchical is None else hierarchical)
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes")
        lines = "\n".join(f"{key} {value}" for key, value in stat.items())
        self.group(name, **{names[0]: str(limit), names[1]: str(used), "memory.stat": lines})

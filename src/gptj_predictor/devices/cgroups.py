"""The control groups of this process: folders whose files hold the limits of a container.

``/proc/self/cgroup`` names the group of each controller, ``/proc/self/mountinfo`` says where groups
are mounted (cgroups(7), proc(5)). A group's limit holds for the groups below it too, so all of them
count, from this process's own up to the one that is mounted. A container often sees its own group
only, mounted at the top, while ``/proc/self/cgroup`` names it by the host's path.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

#: Where files are looked up; tests put made-up trees here.
ROOT = Path("/")


@dataclass(frozen=True)
class Group:
    """One group of one controller.

    Attributes:
        path: The folder with the controller's files.
        version: 1 or 2; it decides the names of the files.
    """

    path: Path
    version: int

    def number(self, name: str) -> int | None:
        """The number in a file; ``None`` if it is not there or is no number, such as ``max``."""
        try:
            return int((self.path / name).read_text())
        except (OSError, ValueError):
            return None

    def numbers(self, name: str) -> dict[str, int]:
        """A file whose lines are ``KEY NUMBER``; empty if it is not there."""
        try:
            lines = (self.path / name).read_text().splitlines()
        except OSError:
            return {}
        pairs = [line.split() for line in lines]
        return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2 and pair[1].isdigit()}


def groups(controller: str, root: Path | None = None) -> list[Group]:
    """The groups that limit this process, its own first; empty where there are none.

    Args:
        controller: ``memory`` or ``cpu``.
        root: What to take for ``/``; :data:`ROOT` by default.
    """
    root = root or ROOT
    names = dict(_names(controller, root))
    return [
        Group(path, version)
        for version, mounted, mount in _mounts(controller, root)
        if version in names
        for path in _up(root / mount.lstrip("/"), _below(names[version], mounted))
    ]


def _names(controller: str, root: Path) -> Iterator[tuple[int, str]]:
    """Version of the hierarchy and path of the group in it, of all that have the controller."""
    for line in _lines(root / "proc/self/cgroup"):
        number, controllers, path = line.split(":", 2)
        if number == "0" and not controllers:
            yield 2, path
        elif controller in controllers.split(","):
            yield 1, path


def _mounts(controller: str, root: Path) -> Iterator[tuple[int, str, str]]:
    """Version, the group that is mounted, and where."""
    for line in _lines(root / "proc/self/mountinfo"):
        mount, _, filesystem = line.partition(" - ")
        kind, _, options = filesystem.split(" ", 2)
        is_v1 = kind == "cgroup" and controller in options.split(",")
        if is_v1 or kind == "cgroup2":
            _, _, _, mounted, point, *_ = mount.split(" ")
            yield 1 if is_v1 else 2, _unescaped(mounted), _unescaped(point)


def _below(name: str, mounted: str) -> Path:
    """A group's path below the one that is mounted; empty if it is not below it."""
    path = Path(name)
    if ".." not in path.parts and path.is_relative_to(mounted):
        return path.relative_to(mounted)
    return Path()


def _up(mount: Path, below: Path) -> Iterator[Path]:
    for path in (below, *below.parents) if below.parts else (below,):
        if (mount / path).is_dir():
            yield mount / path


def _unescaped(text: str) -> str:
    r"""A field of mountinfo, where a space is ``\\040``."""
    return re.sub(r"\\([0-7]{3})", lambda code: chr(int(code.group(1), 8)), text)


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text().splitlines()
    except OSError:
        return []

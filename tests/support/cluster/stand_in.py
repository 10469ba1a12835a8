"""Stand-ins for ``kubectl`` and ``helm``, for the tests of the suite's own parts.

``python stand_in.py FOLDER PROGRAM ARGUMENTS...`` knows no Kubernetes. It answers ``kubectl get``
from ``FOLDER/objects.json``, runs ``kubectl exec`` as a process of this machine, with ``/scripts``
in the folder, and writes every call down.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any


def option(words: list[str], name: str) -> str | None:
    """The value after an option."""
    return words[words.index(name) + 1] if name in words else None


def chosen(one: dict[str, Any], selector: str) -> bool:
    """Whether an object has all labels of a selector."""
    labels = one["metadata"].get("labels") or {}
    pairs = [pair.partition("=") for pair in selector.split(",") if pair]
    return all(labels.get(key) == value for key, _, value in pairs)


def get(folder: Path, words: list[str]) -> str:
    """``kubectl get KINDS [NAME]``, as JSON."""
    objects = json.loads((folder / "objects.json").read_text())
    found = [one for one in objects if one["kind"] in words[1].split(",")]
    selector = option(words, "--selector")
    if selector is not None:
        return json.dumps({"items": [one for one in found if chosen(one, selector)]})
    if words[2].startswith("--"):
        return json.dumps({"items": found})
    return "".join(json.dumps(one) for one in found if one["metadata"]["name"] == words[2])


def main() -> int:
    """Answer one call."""
    folder, program, *words = sys.argv[1:]
    here = Path(folder)
    if words[:1] == ["--namespace"]:
        words = words[2:]
    with (here / "calls").open("a") as calls:
        print(program, *words, file=calls)
    if program == "helm":
        if words[0] == "list":
            print((here / "releases").read_text())
        if words[0] == "upgrade":
            (here / "values.yaml").write_text(sys.stdin.read())
    elif words[0] == "api-versions":
        print((here / "versions").read_text())
    elif words[0] == "get":
        print(get(here, words))
    elif words[0] == "exec":
        command = [one.replace("/scripts", str(here / "scripts")) for one in words[3:]]
        command[0] = sys.executable if command[0] == "python" else command[0]
        return subprocess.run(command, check=False).returncode
    return 0


if __name__ == "__main__":
    sys.exit(main())

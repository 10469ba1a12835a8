"""The arrows of the house: who may import whom."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

import gptj_predictor

PACKAGE = Path(gptj_predictor.__file__).parent
NAME = "gptj_predictor"

#: For each room, the rooms it may use. A room is a folder, or a module at the top.
MAY_USE: dict[str, set[str]] = {
    "__init__": set(),
    "__main__": {"cli"},
    "bench": {
        "common",
        "demo",
        "engine",
        "launch",
        "sampling",
        "settings",
        "snapshot",
        "tokenizer",
    },
    "chat_template": set(),
    "cli": {
        "",
        "bench",
        "chat_template",
        "common",
        "demo",
        "devices",
        "engine",
        "launch",
        "pull",
        "server",
        "settings",
        "snapshot",
        "tokenizer",
    },
    "common": set(),
    "demo": set(),
    "devices": {"common", "model", "settings"},
    "engine": {"common", "model", "sampling"},
    "launch": {"common", "devices", "engine", "model", "settings", "snapshot", "tokenizer"},
    "model": set(),
    "pull": {"common", "devices", "model", "settings", "snapshot"},
    "sampling": {"common"},
    "server": {"", "chat_template", "common", "engine", "sampling", "settings", "tokenizer"},
    "settings": set(),
    "snapshot": {"common", "model", "settings"},
    "tokenizer": set(),
}

#: Third-party packages that a room does without.
MUST_NOT_USE = {
    "bench": {"fastapi", "kserve", "starlette", "uvicorn"},
    "pull": {"fastapi", "kserve", "pydantic"},
    "server": {"accelerate", "safetensors", "torch", "transformers"},
    "snapshot": {"fastapi", "kserve", "pydantic"},
}

#: All third-party packages of the rooms that must run where little is installed.
MAY_USE_ONLY = {
    "engine": {"numpy", "torch"},
    "model": {"torch", "transformers", "triton"},
    "sampling": {"numpy", "torch", "triton"},
}


def imports(path: Path) -> set[str]:
    """Every module that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide the arrows"
            module = node.module or ""
            # "from gptj_predictor import x" may name a module.
            found |= {
                f"{module}.{alias.name}" if module == NAME else module for alias in node.names
            }
    return found


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


FILES = sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_arrows(path: Path) -> None:
    own = room(path)
    for module in imports(path):
        top, _, rest = module.partition(".")
        if top == NAME:
            used = rest.split(".")[0]
            used = "" if used == "__version__" else used
            assert used == own or used in MAY_USE[own], f"{path} imports {module}"
        else:
            assert top not in MUST_NOT_USE.get(own, set()), f"{path} imports {module}"
            allowed = {*sys.stdlib_module_names, *MAY_USE_ONLY.get(own, {top})}
            assert top in allowed, f"{path} imports {module}"


def test_every_room_is_known() -> None:
    assert {room(path) for path in FILES} == set(MAY_USE)


def test_no_circle_between_modules() -> None:
    """Follow every import inside the package; no module may reach itself."""
    modules = {
        ".".join([NAME, *path.relative_to(PACKAGE).with_suffix("").parts]): imports(path)
        for path in FILES
    }

    def reach(module: str, trail: tuple[str, ...]) -> None:
        assert module not in trail, " -> ".join((*trail, module))
        for used in modules.get(module, ()):
            if used in modules:
                reach(used, (*trail, module))

    for module in modules:
        reach(module, ())

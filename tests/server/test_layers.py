"""The order of the server's modules: each may use only those further down."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import gptj_predictor.server

PACKAGE = Path(gptj_predictor.server.__file__).parent

#: From the socket to the engine. ``kserve_flags`` stands alone.
ORDER = (
    "process",
    "metrics",
    "metrics_vllm",
    "metrics_table",
    "trace_export",
    "traces",
    "http_protocol",
    "grpc_server",
    "grpc_calls",
    "routes.app",
    "routes.openai",
    "routes.v2",
    "routes.v1",
    "routes.generate",
    "routes.tokens",
    "routes.openapi",
    "kserve_quirks",
    "protocols.infer_grpc",
    "protocols.infer_rest",
    "protocols.infer",
    "protocols.generate",
    "protocols.v1",
    "protocols.openai_chat",
    "protocols.openai",
    "protocols.openai_logprobs",
    "protocols.openai_schema",
    "protocols.openai_answers",
    "protocols.details",
    "protocols.parameters",
    "protocols.tokens",
    "protocols.json_bodies",
    "predictor",
    "tensors",
    "event_stream",
    "errors",
    "gate",
    "http_requests",
    "drain",
    "generation",
    "text_stream",
    "generation_call",
    "active_requests",
    "token_calls",
    "admission",
    "access",
    "cors",
    "request_counts",
    "middleware",
    "error_body",
    "protocol",
    "callers",
    "api_keys",
    "tls",
)


def used(module: str) -> set[str]:
    """The server's modules that one of them imports."""
    tree = ast.parse((PACKAGE / f"{module.replace('.', '/')}.py").read_text())
    names = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    prefix = f"{gptj_predictor.server.__name__}."
    return {name.removeprefix(prefix) for name in names if name and name.startswith(prefix)}


@pytest.mark.parametrize("module", [*ORDER, "kserve_flags"])
def test_imports_point_one_way(module: str) -> None:
    below = ORDER[ORDER.index(module) + 1 :] if module in ORDER else ()
    assert used(module) <= set(below)


def test_every_module_has_its_place() -> None:
    modules = {
        ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
        for path in PACKAGE.rglob("*.py")
        if path.name != "__init__.py"
    }
    assert modules == {*ORDER, "kserve_flags"}

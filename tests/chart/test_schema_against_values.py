"""The schema knows the values and their comments, and nothing else."""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Iterator
from typing import Any

import helm_python
import pytest

from tests.support.charts import CHART

SCHEMA = json.loads((CHART / "values.schema.json").read_text())

#: Helm's own, for charts that are part of others.
NO_VALUE = {"global"}


def chart_files() -> Any:
    """The tool that makes the README's table of values."""
    path = CHART.parents[1] / "tools" / "chart_files.py"
    spec = importlib.util.spec_from_file_location("chart_files", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


#: Every value with a comment: its default and the comment. The tool refuses one without.
VALUES: dict[str, tuple[Any, str]] = {
    name: (default, text) for name, default, text in chart_files().documented(CHART / "values.yaml")
}


def followed(schema: dict[str, Any]) -> dict[str, Any]:
    """A schema, or the definition that it refers to."""
    if "$ref" in schema:
        return followed(SCHEMA["definitions"][schema["$ref"].rpartition("/")[2]])
    return schema


def entry(path: str) -> tuple[dict[str, Any], bool]:
    """A value's schema, and whether it must be there."""
    schema, required = SCHEMA, False
    for key in path.split("."):
        assert key in schema["properties"], f"{path} has no entry in the schema"
        required = key in schema["required"]
        schema = followed(schema["properties"][key])
    return schema, required


def keywords(schema: dict[str, Any], name: str) -> Iterator[Any]:
    """What a schema and its parts have for a keyword, without the parts of objects."""
    schema = followed(schema)
    if name in schema:
        yield schema[name]
    parts = [*schema.get("anyOf", []), *schema.get("allOf", [])]
    if schema.get("type") == "array":
        parts.append(schema["items"])
    for part in parts:
        yield from keywords(part, name)


def nullable(schema: dict[str, Any]) -> bool:
    """Whether null is allowed; a schema that says nothing of types allows it."""
    schema = followed(schema)
    if "allOf" in schema:
        return all(map(nullable, schema["allOf"]))
    if "anyOf" in schema and "type" not in schema:
        return any(map(nullable, schema["anyOf"]))
    if "enum" in schema:
        return None in schema["enum"]
    return "type" not in schema or "null" in schema["type"]


def entries(schema: dict[str, Any], prefix: str = "") -> Iterator[str]:
    """The paths of all entries, down to those of values."""
    for key, part in schema.get("properties", {}).items():
        path = f"{prefix}{key}"
        if path in VALUES:
            yield path
        else:
            parts = list(entries(followed(part), f"{path}."))
            yield from parts or [path]


def test_every_entry_is_a_value() -> None:
    assert set(entries(SCHEMA)) - set(VALUES) == NO_VALUE


def test_the_defaults_are_valid() -> None:
    """Helm's own check of the values; it fails with one that is not."""
    with helm_python.Chart.load(CHART) as chart:
        chart.validate_schema({})
        with pytest.raises(helm_python.HelmValuesError):
            chart.validate_schema({"timeoutSeconds": 0})


@pytest.mark.parametrize("path", VALUES)
def test_a_default_in_the_schema_is_the_values(path: str) -> None:
    default, _ = VALUES[path]
    schema, _ = entry(path)
    assert all(one == default for one in keywords(schema, "default"))


@pytest.mark.parametrize("path", VALUES)
def test_the_comment_says_what_is_allowed(path: str) -> None:
    """Each word of a choice, each upper limit, and what null and an empty text mean."""
    default, text = VALUES[path]
    schema, _ = entry(path)
    for choices in keywords(schema, "enum"):
        for choice in choices:
            word = f"`{choice}`" if choice else "Empty:"
            assert word in text, f"{path}: {choice!r} is not in the comment"
    for limit in keywords(schema, "maximum"):
        if limit > 0:  # temperature has 0 as a part of its own
            assert re.search(rf"(?<![\d.]){limit}(?![\d]|\.\d)", text), f"{path}: {limit}"
    assert ("null:" in text) == nullable(schema), path
    if default == "":
        assert "Empty:" in text, path


@pytest.mark.parametrize("path", VALUES)
def test_only_what_may_be_null_may_be_missing(path: str) -> None:
    """``--set path=null`` removes a value; a template that needs it would fail in Go's words."""
    schema, required = entry(path)
    assert required != nullable(schema), path


def test_an_entry_too_many_is_found() -> None:
    assert "gpu.counts" in set(entries({"properties": {"gpu": {"properties": {"counts": {}}}}}))


def test_a_missing_entry_is_found() -> None:
    with pytest.raises(AssertionError, match=r"gpu.counts has no entry"):
        entry("gpu.counts")

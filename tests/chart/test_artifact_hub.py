"""What Artifact Hub reads of Chart.yaml: https://artifacthub.io/docs/topics/annotations/helm/"""

from __future__ import annotations

import re
import tomllib
from typing import Any

import helm_python
import yaml

from tests.support.chart_values import MANY
from tests.support.charts import CHART, render

PREFIX = "artifacthub.io/"

#: The documented annotations, and whether their text is YAML.
DOCUMENTED = {
    "alternativeName": False,
    "category": False,
    "changes": True,
    "containsSecurityUpdates": False,
    "crds": True,
    "crdsExamples": True,
    "images": True,
    "license": False,
    "links": True,
    "maintainers": True,
    "operator": False,
    "operatorCapabilities": False,
    "prerelease": False,
    "recommendations": True,
    "screenshots": True,
    "signKey": True,
}
CATEGORIES = {
    "ai-machine-learning",
    "database",
    "integration-delivery",
    "monitoring-logging",
    "networking",
    "security",
    "skip-prediction",
    "storage",
    "streaming-messaging",
}
KINDS = {"added", "changed", "deprecated", "fixed", "removed", "security"}

with helm_python.Chart.load(CHART) as chart:
    ANNOTATIONS: dict[str, str] = {
        name.removeprefix(PREFIX): text
        for name, text in chart.metadata["annotations"].items()
        if name.startswith(PREFIX)
    }

PROJECT = tomllib.loads((CHART.parents[1] / "pyproject.toml").read_text())["project"]


def entries(name: str) -> list[dict[str, Any]]:
    """The list in an annotation."""
    found = yaml.safe_load(ANNOTATIONS[name])
    assert isinstance(found, list)
    return found


def test_the_names_are_documented() -> None:
    assert set(ANNOTATIONS) >= {"category", "changes", "images", "license", "links", "prerelease"}
    assert set(ANNOTATIONS) <= set(DOCUMENTED)
    for name, text in ANNOTATIONS.items():
        assert isinstance(text, str), name
        assert isinstance(yaml.safe_load(text), list) == DOCUMENTED[name], name


def test_single_words() -> None:
    assert ANNOTATIONS["category"] in CATEGORIES
    assert ANNOTATIONS["license"] == PROJECT["license"]
    alpha = any("3 - Alpha" in one or "4 - Beta" in one for one in PROJECT["classifiers"])
    assert ANNOTATIONS["prerelease"] == str(alpha).lower()


def test_changes() -> None:
    for change in entries("changes"):
        assert set(change) <= {"kind", "description", "links"}
        assert change["kind"] in KINDS
        assert re.fullmatch(r"[A-Z].*[^.]", change["description"])


def test_the_images_are_those_of_the_pods() -> None:
    pods = render(MANY, {"benchmark": {"batchSize": 1}}).pods()
    used = {pod["containers"][0]["image"] for pod in pods}
    assert {one["image"] for one in entries("images")} == used
    for one in entries("images"):
        assert set(one) <= {"name", "image", "platforms", "whitelisted"}
        # Artifact Hub scans what is not on its white list, and no registry has this image.
        assert one["whitelisted"] is ("/" not in one["image"])


def test_links() -> None:
    for one in entries("links"):
        assert set(one) == {"name", "url"}
        assert one["url"].startswith("https://")

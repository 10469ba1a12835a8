"""Settings of a cluster that nobody has, for the tests of the suite's own parts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.support.cluster.settings import Image, Settings


def made_up_settings(**changed: Any) -> Settings:
    """Settings, with some fields changed."""
    given: dict[str, Any] = {
        "kubeconfig": "/nowhere",
        "image": Image("registry:5000/gptj", "1"),
        "namespace": "suite",
        "storage_class": "local",
        "pull_policy": "Never",
        "patience": 1.0,
        "keep": False,
        "reports": Path("reports"),
        "kubectl": "kubectl",
        "helm": "helm",
    }
    return Settings(**given | changed)

"""Where the cluster suite runs, from the environment."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

#: What the suite reads: variable, default, meaning. A default of None must be given.
VARIABLES = (
    ("KUBECONFIG", None, "the cluster, whose administrator it names"),
    (
        "CLUSTER_IMAGE",
        None,
        "the predictor's image, NAME:TAG or NAME@sha256:..., as its nodes get it",
    ),
    ("CLUSTER_NAMESPACE", "gptj-cluster-test", "a namespace that the suite makes and deletes"),
    ("CLUSTER_STORAGE_CLASS", "", "storage class of the volume; empty is the cluster's default"),
    ("CLUSTER_PULL_POLICY", "IfNotPresent", "when the nodes pull the image"),
    ("CLUSTER_PATIENCE", "1", "factor for all times that the suite waits; a slow cluster wants 2"),
    ("CLUSTER_KEEP", "", "anything: the namespace stays when the suite ends"),
    ("CLUSTER_REPORTS", "cluster-reports", "folder for what the cluster says when a test fails"),
    ("KUBECTL", "kubectl", "the program"),
    ("HELM", "helm", "the program, version 3 or 4"),
)


class MissingError(Exception):
    """What the suite needs and does not have, as a text for a person."""


@dataclass(frozen=True)
class Image:
    """An image's name in the chart's terms; one of tag and digest is empty."""

    repository: str
    tag: str = ""
    digest: str = ""

    @classmethod
    def parse(cls, name: str) -> Image:
        """``name:tag`` or ``name@sha256:...``; a registry may have a port.

        Raises:
            MissingError: there is neither tag nor digest, or no name.
        """
        repository, _, digest = name.partition("@")
        head, _, tag = repository.rpartition(":")
        if digest:
            head, tag = repository, ""
        if not head or not (digest or tag) or "/" in tag:
            raise MissingError(f"CLUSTER_IMAGE is {name!r}, not NAME:TAG or NAME@sha256:...")
        return cls(head, tag, digest)

    def __str__(self) -> str:
        return self.repository + (f"@{self.digest}" if self.digest else f":{self.tag}")


@dataclass(frozen=True)
class Settings:
    """See :data:`VARIABLES`."""

    kubeconfig: str
    image: Image
    namespace: str
    storage_class: str
    pull_policy: str
    patience: float
    keep: bool
    reports: Path
    kubectl: str
    helm: str

    @classmethod
    def read(cls, environment: Mapping[str, str]) -> Settings:
        """Read them.

        Raises:
            MissingError: a variable without a default is not set, a program is not in the path, or
                a value makes no sense. The text says all that the suite needs.
        """
        given = {name: environment.get(name) or default for name, default, _ in VARIABLES}
        problems = [f"{name} is not set" for name, value in given.items() if value is None]
        known = {name: value or "" for name, value in given.items()}
        for variable in ("KUBECTL", "HELM"):
            if shutil.which(known[variable], path=environment.get("PATH")) is None:
                problems.append(f"the program {known[variable]} is not there")
        try:
            patience = float(known["CLUSTER_PATIENCE"])
        except ValueError:
            patience = 0.0
        if not 0 < patience < 100:
            problems.append(f"CLUSTER_PATIENCE is {known['CLUSTER_PATIENCE']!r}, not a factor")
        if problems:
            raise MissingError(needs(problems))
        return cls(
            kubeconfig=known["KUBECONFIG"],
            image=Image.parse(known["CLUSTER_IMAGE"]),
            namespace=known["CLUSTER_NAMESPACE"],
            storage_class=known["CLUSTER_STORAGE_CLASS"],
            pull_policy=known["CLUSTER_PULL_POLICY"],
            patience=patience,
            keep=bool(known["CLUSTER_KEEP"]),
            reports=Path(known["CLUSTER_REPORTS"]),
            kubectl=known["KUBECTL"],
            helm=known["HELM"],
        )


def needs(problems: list[str]) -> str:
    """What is wrong, and what the suite needs."""
    lines = [f"make test-cluster cannot run: {'; '.join(problems)}.", "", "It needs:"]
    lines += [
        "  a cluster with KServe (serving.kserve.io/v1beta1), and an administrator's access to it;",
        "  with Knative Serving there, Knative mode is tested too",
        "  the image on its nodes, or in a registry that they reach; kubectl; helm 3 or 4",
        "",
        "Variables:",
    ]
    for name, default, meaning in VARIABLES:
        shown = "needed" if default is None else f"default {default!r}"
        lines.append(f"  {name:22} {meaning} ({shown})")
    return "\n".join(lines)

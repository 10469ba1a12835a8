"""The Helm chart, rendered by Helm itself."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import helm_python
import kserve.models
import kubernetes.client
import yaml

CHART = Path(__file__).parents[2] / "charts" / "gptj-isvc"

#: Names of the values files in the chart's ``examples/``.
EXAMPLES = sorted(path.stem for path in CHART.glob("examples/*.yaml"))

#: safe_load's, in C where PyYAML has it. Without it reading takes longer than Helm's rendering.
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

Values = dict[str, Any]
Object = dict[str, Any]


def example_values(name: str) -> Values:
    """The values of one of :data:`EXAMPLES`."""
    return dict(yaml.safe_load((CHART / "examples" / f"{name}.yaml").read_text()))


def nested(path: str, value: object) -> Values:
    """``nested("a.b", 1)`` is ``{"a": {"b": 1}}``."""
    for key in reversed(path.split(".")):
        value = {key: value}
    assert isinstance(value, dict)
    return value


def merged(*values: Values) -> Values:
    """The values merged as Helm merges several ``--values``: a later one wins."""
    result: Values = {}
    for one in values:
        for key, value in one.items():
            both = isinstance(value, dict) and isinstance(result.get(key), dict)
            result[key] = merged(result[key], value) if both else value
    return result


@dataclass(frozen=True)
class Release:
    """What an install would create.

    Attributes:
        objects: All objects, hooks included.
        notes: The text that Helm prints.
    """

    objects: list[Object]
    notes: str

    def all(self, kind: str) -> list[Object]:
        """All objects of a kind."""
        return [one for one in self.objects if one["kind"] == kind]

    def one(self, kind: str, name: str = "") -> Object:
        """The only object of a kind whose name has this text."""
        [found] = [one for one in self.all(kind) if name in one["metadata"]["name"]]
        return found

    def has(self, kind: str, name: str = "") -> bool:
        """Whether there is an object of a kind whose name has this text."""
        return any(name in one["metadata"]["name"] for one in self.all(kind))

    @property
    def predictor(self) -> Object:
        """The InferenceService's predictor."""
        return dict(self.one("InferenceService")["spec"]["predictor"])

    @property
    def container(self) -> Object:
        """The predictor's container."""
        [container] = self.predictor["containers"]
        return dict(container)

    def pods(self) -> list[Object]:
        """The specs of all pods: predictor, Jobs, test."""
        specs = [self.predictor] if self.has("InferenceService") else []
        specs += [job["spec"]["template"]["spec"] for job in self.all("Job")]
        return specs + [pod["spec"] for pod in self.all("Pod")]


def render(*values: Values, name: str = "demo", namespace: str = "ml") -> Release:
    """Render the chart.

    Raises:
        helm_python.HelmError: the chart refuses the values.
    """
    with helm_python.Chart.load(CHART) as chart:
        files = chart.render(merged(*values), name=name, namespace=namespace)
    notes = files.pop(f"{CHART.name}/templates/NOTES.txt")
    objects = [one for file in files.values() for one in yaml.load_all(file, LOADER) if one]
    return Release(objects, notes)


def round_trip(data: Any, kind: str) -> Any:
    """Data through the Python class of its type and back. Fields that the class lacks are lost.

    Args:
        data: As in YAML.
        kind: As kserve's models name types: ``str``, ``list[T]``, ``dict(str, T)`` or a class.
    """
    if data is None:
        return None
    if match := re.fullmatch(r"list\[(.*)\]", kind):
        return [round_trip(one, match[1]) for one in data]
    if match := re.fullmatch(r"dict\(str, (.*)\)", kind):
        return {key: round_trip(one, match[1]) for key, one in data.items()}
    if kind in {"str", "int", "bool", "float"}:
        assert type(data).__name__ == kind, (data, kind)
        return data
    if kind == "V1beta1MetricQuantity":  # kserve names it and has no class for it
        return round_trip(data, "str")
    model = getattr(kserve.models, kind, None)
    if model is None:
        name = kind.replace("K8sIoApiAppsV1", "V1").replace("K8sIoApiCoreV1", "V1")
        instance = getattr(kubernetes.client, name).from_dict(data)
        return kubernetes.client.ApiClient().sanitize_for_serialization(instance)
    fields = {
        field: round_trip(data[key], model.openapi_types[field])
        for field, key in model.attribute_map.items()
        if key in data
    }
    instance = model(**fields)  # checks what is required
    return {
        key: getattr(instance, field)
        for field, key in model.attribute_map.items()
        if getattr(instance, field) is not None
    }

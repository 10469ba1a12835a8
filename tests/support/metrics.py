"""Reading a scrape of ``/metrics``."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families

from tests.support.servers import RunningServer

Labels = frozenset[tuple[str, str]]


class Scrape:
    """What ``/metrics`` says at one time."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.types: dict[str, str] = {}  # by name as in a query: a counter's has its _total
        self.help: dict[str, str] = {}
        self.samples: dict[tuple[str, Labels], float] = {}
        for family in text_string_to_metric_families(text):
            name = f"{family.name}_total" if family.type == "counter" else family.name
            self.types[name] = family.type
            self.help[name] = family.documentation
            for sample in family.samples:
                self.samples[sample.name, frozenset(sample.labels.items())] = sample.value

    @classmethod
    def of(cls, server: RunningServer) -> Scrape:
        """Scrape a server."""
        response = server.client.get("/metrics")
        assert response.status_code == 200
        return cls(response.text)

    def value(self, name: str, **labels: str) -> float:
        """One sample's value."""
        return self.samples[name, frozenset(labels.items())]

    def labels(self, name: str) -> set[frozenset[str]]:
        """The sets of label names that samples of a name have."""
        return {
            frozenset(key for key, _ in labels) for sample, labels in self.samples if sample == name
        }

    def values_of(self, name: str, label: str) -> list[str]:
        """The values of a label, in order."""
        return [dict(labels)[label] for sample, labels in self.samples if sample == name]

    def rises(self, before: Scrape) -> dict[str, float]:
        """What has risen since an earlier scrape, of our own counters and histograms' counts.

        The key is the name with its labels, as Prometheus spells it.
        """
        found = {}
        for (name, labels), value in self.samples.items():
            counts = name.endswith(("_total", "_count")) and name.startswith("gptj_")
            if counts and (rise := value - before.samples.get((name, labels), 0)):
                listed = ",".join(f'{key}="{text}"' for key, text in sorted(labels))
                found[f"{name}{{{listed}}}" if listed else name] = rise
        return found

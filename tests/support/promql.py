"""What a PromQL expression asks for, and whether a scrape has it."""

from __future__ import annotations

from dataclasses import dataclass

import promql_parser as promql

from tests.support.metrics import Scrape

#: Labels that Prometheus adds to what it scrapes of a pod.
OF_THE_TARGET = frozenset({"namespace", "pod"})


@dataclass(frozen=True)
class Selection:
    """One selector of an expression: a metric, and label, operator and value of each matcher."""

    name: str
    matchers: tuple[tuple[str, promql.MatchOp, str], ...]


def selections(expression: str) -> list[Selection]:
    """Every selector of an expression."""
    found = []
    for node in _nodes(expression):
        if isinstance(node, promql.VectorSelector):
            assert node.name, f"{expression}: a selector without a name"
            assert not node.matchers.or_matchers, expression
            matchers = tuple((m.name, m.op, m.value) for m in node.matchers.matchers)
            found.append(Selection(node.name, matchers))
    return found


def grouping_labels(expression: str) -> set[str]:
    """The labels that ``by``, ``without``, ``on`` and their like name."""
    labels: set[str] = set()
    for node in _nodes(expression):
        if isinstance(node, promql.AggregateExpr) and node.modifier is not None:
            labels |= set(node.modifier.labels)
        if isinstance(node, promql.BinaryExpr) and node.modifier is not None:
            matching = node.modifier.matching
            labels |= set(matching.labels) if matching is not None else set()
    return labels


def problems(expression: str, scrape: Scrape) -> list[str]:
    """What an expression asks for and a scrape does not have.

    Raises:
        ValueError: the expression is no PromQL.
    """
    found = []
    known: set[str] = set()
    for selection in selections(expression):
        name = selection.name
        have = scrape.labels(name)
        if not have:
            found.append(f"no metric {name}")
            continue
        labels = OF_THE_TARGET.union(*have)
        known |= labels
        for label, operator, value in selection.matchers:
            if label not in labels:
                found.append(f"{name} has no label {label}")
            elif label not in OF_THE_TARGET:
                equal = operator == promql.MatchOp.Equal
                if equal and value not in scrape.values_of(name, label):
                    found.append(f"{name} has no {label} {value!r}")
    found += [f"no label {label}" for label in sorted(grouping_labels(expression) - known)]
    return found


def _nodes(expression: str) -> list[promql.Expr]:
    nodes: list[promql.Expr] = []

    def visit(node: promql.Expr) -> None:
        nodes.append(node)

    promql.walk(promql.parse(expression), visit)
    return nodes

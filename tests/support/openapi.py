"""schemathesis against a server: what it sent, and what the answers say against the document."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import schemathesis
from schemathesis.config import SchemathesisConfig
from schemathesis.core.failures import Failure
from schemathesis.engine import events, from_schema

from tests.support.servers import NAME, RunningServer


@dataclass(frozen=True)
class Finding:
    """A check that failed.

    Attributes:
        check: Its name.
        operation: Method and path, as in the document.
        status: Of the answer.
        answer: Its beginning.
        request: The command that sends it again.
    """

    check: str
    operation: str
    status: int
    answer: str
    request: str


@dataclass
class Outcome:
    """Of a run.

    Attributes:
        findings: All checks that failed.
        statuses: How many answers had each status, by operation.
        errors: What kept schemathesis from testing an operation.
    """

    findings: list[Finding] = field(default_factory=list)
    statuses: Counter[tuple[str, int]] = field(default_factory=Counter)
    errors: list[str] = field(default_factory=list)

    @property
    def num_cases(self) -> int:
        """Requests that were sent."""
        return self.statuses.total()


def examine(
    server: RunningServer, *, max_examples: int, thorough: bool, headers: dict[str, str]
) -> Outcome:
    """Send what the document allows and what it does not.

    Args:
        server: Whose document it is.
        max_examples: Of each operation, at random.
        thorough: Whether there are also those of each field's bounds and types, one by one.
        headers: Sent with every request.
    """
    phases: dict[str, Any] = {"stateful": {"enabled": False}, "coverage": {"enabled": thorough}}
    generation = {"max-examples": max_examples, "deterministic": True, "no-shrink": True}
    config = SchemathesisConfig.from_dict(
        {
            "headers": headers,
            "parameters": {"path.model_name": NAME},
            "generation": generation,
            "phases": phases,
            "continue-on-failure": True,
            "request-timeout": 60,
        }
    )
    url = str(server.client.base_url.join("/openapi.json"))
    schema = schemathesis.openapi.from_url(url, config=config, headers=headers)
    outcome = Outcome()
    for event in from_schema(schema).execute():
        if isinstance(event, events.ScenarioFinished):
            _collect(event.recorder, outcome)
        elif isinstance(event, (events.NonFatalError, events.FatalError)):
            error = event.value if isinstance(event, events.NonFatalError) else event.exception
            outcome.errors.append(f"{type(error).__name__}: {error}")
    return outcome


@schemathesis.hook("before_call")
def _give_time(context: Any, case: Any, options: dict[str, Any]) -> None:
    """Most of the seconds that are drawn are over before anything can be answered."""
    seconds = (case.headers or {}).get("x-request-timeout")
    if seconds is not None and re.fullmatch(r"\d[\d.e+-]*", str(seconds)) and float(seconds) > 0:
        case.headers["x-request-timeout"] = "60"


def _collect(recorder: Any, outcome: Outcome) -> None:
    for case_id, interaction in recorder.interactions.items():
        response = interaction.response
        if response is None:
            outcome.errors.append(f"{recorder.label}: no answer")
            continue
        outcome.statuses[recorder.label, response.status_code] += 1
        for check in recorder.checks.get(case_id, []):
            if check.failure_info is not None:
                failure: Failure = check.failure_info.failure
                outcome.findings.append(
                    Finding(
                        check.name,
                        recorder.label,
                        response.status_code,
                        response.content[:400].decode("utf-8", "replace"),
                        f"{failure.title}: {failure.message}\n{check.failure_info.code_sample}",
                    )
                )

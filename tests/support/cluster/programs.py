"""``kubectl`` and ``helm``, as a user runs them, and waiting."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import yaml

from tests.support.charts import CHART, Object, Values
from tests.support.cluster.settings import Settings

T = TypeVar("T")

#: Seconds after which a program that still runs has hung.
HUNG = 900


class CommandError(AssertionError):
    """A program failed. The message has its command line and all that it said."""


def run(words: list[str], settings: Settings, given: str | None = None) -> str:
    """Run a program against the cluster and return what it printed.

    Raises:
        CommandError: its exit status is not 0.
    """
    done = subprocess.run(
        words,
        input=given,
        env={**os.environ, "KUBECONFIG": settings.kubeconfig},
        capture_output=True,
        text=True,
        check=False,
        timeout=HUNG * settings.patience,
    )
    if done.returncode:
        raise CommandError(f"{' '.join(words)}: {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout


def wait(
    condition: Callable[[], T | None],
    seconds: float,
    describe: Callable[[], object] = lambda: "",
    pause: float = 1.0,
) -> T:
    """Ask again and again until the answer is something; return it.

    Args:
        condition: Returns None, or anything false, while it is not so.
        seconds: Maximum time.
        describe: Called when the time is over, for the message.
        pause: Seconds between two questions.

    Raises:
        TimeoutError: it was not so in time.
    """
    end = time.monotonic() + seconds
    while not (answer := condition()):
        if time.monotonic() > end:
            raise TimeoutError(f"not within {seconds:.0f} s; {describe()}")
        time.sleep(pause)
    return answer


@dataclass(frozen=True)
class Kubectl:
    """``kubectl`` in the suite's namespace."""

    settings: Settings

    def __call__(self, *words: str, given: str | None = None) -> str:
        """Run it; ``given`` is its standard input."""
        namespace = ["--namespace", self.settings.namespace]
        return run([self.settings.kubectl, *namespace, *words], self.settings, given)

    def apply(self, *objects: Object) -> None:
        """Create the objects, or change them to be so."""
        self("apply", "--filename", "-", given=yaml.safe_dump_all(objects))

    def one(self, kind: str, name: str) -> Object | None:
        """An object, or None if there is none."""
        found = self("get", kind, name, "--ignore-not-found", "--output", "json")
        return dict(json.loads(found)) if found.strip() else None

    def all(self, kinds: str, selector: str = "") -> list[Object]:
        """All objects of these kinds with these labels."""
        found = self("get", kinds, "--selector", selector, "--output", "json")
        return list(json.loads(found)["items"])

    def groups(self) -> set[str]:
        """The API groups and versions that the cluster serves, such as ``apps/v1``."""
        return set(self("api-versions").split())

    def execute(self, pod: str, *words: str) -> list[str]:
        """The command line that runs a command in a pod."""
        namespace = ["--namespace", self.settings.namespace]
        return [self.settings.kubectl, *namespace, "exec", pod, "--", *words]


@dataclass(frozen=True)
class Helm:
    """``helm`` in the suite's namespace, with this chart."""

    settings: Settings

    def __call__(self, *words: str, given: str | None = None) -> str:
        """Run it; ``given`` is its standard input."""
        command = [self.settings.helm, "--namespace", self.settings.namespace, *words]
        return run(command, self.settings, given)

    def install(self, name: str, values: Values) -> str:
        """``helm upgrade --install``: the release has these values then, whatever it had."""
        words = ["upgrade", "--install", name, str(CHART), "--reset-values", "--values", "-"]
        return self(*words, given=yaml.safe_dump(values))

    def releases(self) -> list[str]:
        """The names of all releases, whole or not."""
        return self("list", "--short", "--deployed", "--failed", "--pending").split()


def load_json(text: str) -> Any:
    """The last line of what a script in a pod printed, which is JSON."""
    return json.loads(text.strip().splitlines()[-1])

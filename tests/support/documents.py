"""The code blocks of README and docs, and a shell to run them in.

A comment right before a block says what to do with it; without one a block is run, and the output
that follows it is compared:

* ``<!-- not run: REASON -->``: a command that cannot run here.
* ``<!-- not compared: REASON -->``: text that no command here prints.
* ``<!-- sampled -->``: a response with the same shape, whose texts begin with the prompts.
* ``<!-- numbers vary -->``: output that is the same but for its numbers.
* ``<!-- ids vary -->``: an answer of OpenAI's routes, which has an id, a time and a fingerprint.
* ``<!-- pieces vary -->``: a stream whose texts may come in smaller or larger pieces; the same.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml
from markdown_it import MarkdownIt

from tests.support.charts import Release, nested, render
from tests.support.servers import environment

ROOT = Path(__file__).parents[2]

#: README and every page of the site.
DOCUMENTS = sorted(
    str(path.relative_to(ROOT)) for path in (ROOT / "README.md", *ROOT.glob("docs/**/*.md"))
)

#: What is run, what a block before it prints, what is looked at.
COMMANDS = ("sh", "python")
OUTPUTS = ("json", "text")
PICTURES = ("mermaid",)
VALUES = ("yaml",)

COMMENT = re.compile(
    r"<!--\s*(not run|not compared|sampled|numbers vary|ids vary|pieces vary)(?::\s*(.*?))?\s*-->"
)
INCLUDE = re.compile(r'^--8<-- "([^":]+)(?::(\d+))?"$', re.MULTILINE)
#: Numbers with their units, and the commits in the names of versions.
NUMBER = re.compile(r"\b[0-9a-f]{12,40}\b|\d[\d.,:]*\s?([kMG]i?B|B|ms|s)?\b")

#: Flags of Helm without a value, which change nothing of what is rendered here.
SWITCHES = ("--reuse-values",)

#: The server's addresses in the documents, for HTTP and for gRPC.
ADDRESS, GRPC_ADDRESS = "localhost:8080", "localhost:8081"


@dataclass(frozen=True)
class Block:
    """One fenced block.

    Attributes:
        place: File and line, for messages.
        language: What stands after the opening fence.
        text: The content, with files included where the site includes them.
        treatment: What the comment before it asks for, or "".
        reason: Why, or "".
        output: The block right after it, if that shows its output.
    """

    place: str
    language: str
    text: str
    treatment: str
    reason: str
    output: Block | None = None

    @property
    def runs(self) -> bool:
        """Whether it is a command that runs here."""
        return self.language in COMMANDS and self.treatment != "not run"


def included(text: str) -> str:
    """A text with the files that it includes."""

    def lines(match: re.Match[str]) -> str:
        return "\n".join((ROOT / match[1]).read_text().splitlines()[int(match[2] or 1) - 1 :])

    return INCLUDE.sub(lines, text)


def blocks(document: str) -> list[Block]:
    """The blocks of a document in order; output is a block of its own, too."""
    found: list[Block] = []
    comment, adjacent = None, False
    for token in MarkdownIt().parse(included((ROOT / document).read_text())):
        if token.type == "html_block" and (match := COMMENT.search(token.content)):
            comment = match
        elif token.type == "fence":
            assert token.map is not None
            treatment, reason = (comment[1], comment[2] or "") if comment else ("", "")
            place = f"{document}:{token.map[0] + 1}"
            block = Block(place, token.info.strip(), token.content, treatment, reason)
            if adjacent and block.language in OUTPUTS and found[-1].language in COMMANDS:
                found[-1] = replace(found[-1], output=block)
            found.append(block)
            comment, adjacent = None, True
        else:
            comment, adjacent = None, False
    return found


class Shell:
    """Runs the blocks of one document in order, in a folder of their own.

    ``gptj-predictor serve`` ends as soon as it is ready; ``make`` takes this Python's environment
    for its own.
    """

    def __init__(self, folder: Path, *, port: int, grpc_port: int, hub: str) -> None:
        """Prepare.

        Args:
            folder: An empty folder.
            port: A running server's, which stands in for the documents' port 8080.
            grpc_port: The same for port 8081.
            hub: Address of the hub to pull from.
        """
        self._addresses = {
            ADDRESS: f"127.0.0.1:{port}",
            GRPC_ADDRESS: f"127.0.0.1:{grpc_port}",
        }
        self._home = folder / "home"
        self._work = self._home / "gptj-predictor"
        self._work.mkdir(parents=True)
        for name in ("benchmarks", "charts", "docs", "tools"):
            (self._work / name).symlink_to(ROOT / name)
        tools = folder / "bin"
        tools.mkdir()
        predictor = f"exec {sys.executable} -m tests.support.briefly"
        prefix = sys.prefix
        make = f"exec /usr/bin/make -C {ROOT} -o {prefix}/.serve VENV={prefix} BIN={tools}"
        for name, command in (
            ("gptj-predictor", predictor),
            ("make", make),
            ("python", f"exec {sys.executable}"),
        ):
            (tools / name).write_text(f'#!/bin/sh\n{command} "$@"\n')
            (tools / name).chmod(0o755)
        self._environment = environment(
            HF_ENDPOINT=hub,
            HF_HOME=str(folder / "hf"),
            HOME=str(self._home),
            PATH=f"{tools}:{os.environ['PATH']}",
            PYTHONPATH=f"{ROOT / 'src'}:{ROOT}",
        )

    def run(self, block: Block) -> str:
        """Run a block and return what it prints; it must succeed."""
        text = block.text
        for documented, real in self._addresses.items():
            text = text.replace(documented, real)
        shell = ["bash", "-e", "-o", "pipefail", "-c", text]
        done = subprocess.run(
            shell if block.language == "sh" else [sys.executable, "-c", text],
            cwd=self._work,
            env=self._environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )
        assert done.returncode == 0, f"{block.place}: {done.stdout}\n{done.stderr}"
        return done.stdout.replace(str(self._home), "/home/you")


def check_output(block: Block, printed: str) -> None:
    """Compare what a block printed with what the document shows."""
    shown = block.output
    if shown is None or shown.treatment == "not compared":
        return
    if shown.language == "json":
        now, then = json.loads(printed), json.loads(shown.text)
        if shown.treatment == "sampled":
            now, then = _shape(now, _prompts(block)), _shape(then, _prompts(block))
        if shown.treatment == "ids vary":
            now, then = _without_ids(now), _without_ids(then)
        assert now == then, f"{shown.place}: {printed}"
        return
    now, then = printed.rstrip(), shown.text.rstrip()
    if shown.treatment == "pieces vary":
        assert _in_one_piece(now) == _in_one_piece(then), f"{shown.place}: {printed}"
        return
    if shown.treatment == "numbers vary":
        now, then = NUMBER.sub("N", now), NUMBER.sub("N", then)
    assert now == then, f"{shown.place}: {printed}"


def _prompts(block: Block) -> list[str]:
    arguments = shlex.split(block.text)
    body = json.loads(arguments[arguments.index("-d") + 1])
    return [str(prompt) for prompt in body["instances"]]


def _without_ids(answer: dict[str, Any]) -> dict[str, Any]:
    """An answer without what is its own, if it is one of OpenAI's."""
    own = ("id", "created", "system_fingerprint") if "object" in answer else ()
    return {key: value for key, value in answer.items() if key not in own}


def _in_one_piece(stream: str) -> list[dict[str, Any]]:
    """The events of a stream; those that differ only in their text are put together."""
    merged: list[dict[str, Any]] = []
    for line in filter(None, stream.splitlines()):
        data = line.removeprefix("data: ")
        event: dict[str, Any] = json.loads(data) if data.startswith("{") else {"line": line}
        event = _without_ids(event)
        for choice in event.pop("choices", ()):
            event.update(choice)
        name = next((name for name in ("text", "text_output") if name in event), "")
        if merged and name and _head(event) == _head(merged[-1]):
            event[name] = merged.pop()[name] + event[name]
        merged.append(event)
    return merged


def _head(event: dict[str, Any]) -> dict[str, Any]:
    """What all pieces of a text have in common."""
    return {k: v for k, v in event.items() if k not in ("text", "text_output", "finish_reason")}


def _shape(answer: Any, prompts: list[str]) -> Any:
    """A response with each text replaced by the number of the prompt that it begins with."""
    if isinstance(answer, dict):
        return {key: _shape(value, prompts) for key, value in answer.items()}
    if isinstance(answer, list):
        return [_shape(value, prompts) for value in answer]
    [number] = [number for number, prompt in enumerate(prompts) if answer.startswith(prompt)]
    assert len(answer) > len(prompts[number]), answer
    return number


def helm_commands(document: str) -> Iterator[tuple[str, list[str]]]:
    """The place and the words of every ``helm install`` and ``helm upgrade`` of a document."""
    for block in blocks(document):
        if block.language == "sh":
            for line in block.text.replace("\\\n", " ").splitlines():
                if line.startswith(("helm install ", "helm upgrade ")):
                    yield block.place, shlex.split(line, comments=True)


def render_command(words: list[str]) -> Release:
    """Render what a ``helm install`` would install."""
    name, chart, *options = [word for word in words[2:] if word not in SWITCHES]
    assert (ROOT / chart).is_dir(), chart
    values: list[dict[str, Any]] = []
    namespace = "default"
    for flag, value in zip(options[::2], options[1::2], strict=True):
        if flag in ("-f", "--values"):
            values.append(yaml.safe_load((ROOT / value).read_text()))
        elif flag in ("--set", "--set-string"):
            path, _, text = value.partition("=")
            values.append(nested(path, text if flag == "--set-string" else yaml.safe_load(text)))
        elif flag in ("-n", "--namespace"):
            namespace = value
        else:
            raise AssertionError(f"{flag} is not known here")
    return render(*values, name=name, namespace=namespace)

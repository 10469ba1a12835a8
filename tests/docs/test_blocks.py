"""Every command in README and docs runs, or says why not; what it prints is what is shown."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.support.charts import render
from tests.support.documents import (
    COMMANDS,
    DOCUMENTS,
    OUTPUTS,
    PICTURES,
    VALUES,
    Block,
    Shell,
    blocks,
    check_output,
    helm_commands,
    render_command,
)
from tests.support.hub import HubServer
from tests.support.pulling import MODEL_ID, pickled
from tests.support.servers import RunningServer

BLOCKS = {document: blocks(document) for document in DOCUMENTS}
WITH_COMMANDS = [name for name, found in BLOCKS.items() if any(block.runs for block in found)]
HELM_COMMANDS = [command for name in DOCUMENTS for command in helm_commands(name)]
VALUES_BLOCKS = [one for found in BLOCKS.values() for one in found if one.language in VALUES]


@pytest.fixture(scope="session")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HubServer]:
    """A hub with the published model's files, at the demo's size."""
    with HubServer() as running:
        running.add(MODEL_ID, pickled(tmp_path_factory.mktemp("hub")))
        yield running


@pytest.mark.process
@pytest.mark.parametrize("document", WITH_COMMANDS)
def test_commands(document: str, server: RunningServer, hub: HubServer, tmp_path: Path) -> None:
    shell = Shell(tmp_path, port=server.port, grpc_port=server.grpc_port, hub=hub.endpoint)
    for block in BLOCKS[document]:
        if block.runs:
            check_output(block, shell.run(block))


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_block_is_run_compared_or_excused(document: str) -> None:
    """Nothing is left out in silence: what no test runs or compares gives its reason."""
    found = BLOCKS[document]
    outputs = [block.output for block in found if block.runs]
    for block in found:
        assert block.language in (*COMMANDS, *OUTPUTS, *PICTURES, *VALUES), block.place
        if block.treatment in ("not run", "not compared"):
            assert block.reason, f"{block.place}: no reason"
        if block.treatment == "not run":
            assert block.language in COMMANDS, block.place
        if block.language in OUTPUTS and block not in outputs:
            assert block.treatment == "not compared", f"{block.place}: nothing here prints it"


@pytest.mark.parametrize(("place", "words"), HELM_COMMANDS)
def test_helm_commands_render(place: str, words: list[str]) -> None:
    """There is no cluster here, but Helm takes the values and makes a predictor of the chart."""
    release = render_command(words)
    assert release.has("InferenceService"), place
    assert release.notes.strip(), place


@pytest.mark.parametrize("block", VALUES_BLOCKS, ids=lambda block: block.place)
def test_values_render(block: Block) -> None:
    assert render(yaml.safe_load(block.text)).has("InferenceService")


def test_readme_installs_the_chart() -> None:
    assert any(place.startswith("README.md:") for place, _ in HELM_COMMANDS)


def pieces(*texts: str, reason: str = "stop") -> str:
    """A stream of OpenAI's with one choice."""
    reasons = [None] * (len(texts) - 1) + [reason]
    choices = [{"text": t, "finish_reason": r} for t, r in zip(texts, reasons, strict=True)]
    events = [
        {"id": len(t), "object": "o", "choices": [c]} for t, c in zip(texts, choices, strict=True)
    ]
    return "\n\n".join(f"data: {json.dumps(one)}" for one in events) + "\n\ndata: [DONE]"


def output(shown: str, treatment: str = "", language: str = "text") -> Block:
    after = Block("b", language, shown, treatment, "")
    return Block("a", "sh", """curl -d '{"instances": ["One", "Two"]}' x""", "", "", after)


@pytest.mark.parametrize(
    ("shown", "printed"),
    [
        (output("a 1\n"), "a 2"),
        (output("a 1 s\n", "numbers vary"), "b 1 s"),
        (output('{"a": 1}', language="json"), '{"a": 2}'),
        (output(pieces("ab"), "pieces vary"), pieces("a", "c")),
        (output(pieces("ab"), "pieces vary"), pieces("a", "b", reason="length")),
        (output('["One."]', "sampled", "json"), '["Two."]'),
        (output('["One."]', "sampled", "json"), '["One"]'),
        (output('["One."]', "sampled", "json"), '[["One."]]'),
        (output('{"id": "1"}', "ids vary", "json"), '{"id": "2"}'),
        (
            output('{"object": "a", "id": "1", "b": 1}', "ids vary", "json"),
            '{"object": "a", "b": 2}',
        ),
    ],
)
def test_other_output_is_noticed(shown: Block, printed: str) -> None:
    with pytest.raises(AssertionError):
        check_output(shown, printed)


@pytest.mark.parametrize(
    ("shown", "printed"),
    [
        (output("a 1\n"), "a 1"),
        (output("done, 5.1MB, 0.2 s", "numbers vary"), "done, 24GB, 139 s\n"),
        (output('{"a": 1}', language="json"), '{"a":1}'),
        (output(pieces("ab"), "pieces vary"), pieces("a", "", "b")),
        (output('{"object": "a", "id": "1"}', "ids vary", "json"), '{"object": "a", "id": "2"}'),
        (output('["One.", "Two."]', "sampled", "json"), '["One, so", "Two or three"]'),
        (output("anything", "not compared"), "something"),
    ],
)
def test_same_output_passes(shown: Block, printed: str) -> None:
    check_output(shown, printed)

"""Chats, with a template and without one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, cast

import openai
import pytest
from kserve.errors import InvalidInput
from langchain_openai import ChatOpenAI

from gptj_predictor.chat_template import ChatTemplate
from gptj_predictor.server.error_body import error_body
from gptj_predictor.server.protocols.openai import Head
from gptj_predictor.server.protocols.openai_chat import ChatRequest, parse_request
from gptj_predictor.server.protocols.openai_schema import chat_schema
from gptj_predictor.settings import Limits
from tests.support.bad_bodies import check_error
from tests.support.chats import CHAT, TEMPLATE
from tests.support.openai_clients import check_refused, complete, texts
from tests.support.servers import NAME, RunningServer

LIMITS = Limits(context=2048, vocabulary=2048, max_instances=32, max_body_bytes=2_000_000)
HEAD = Head("1", "gpt-j", "fp_1", 1_700_000_000)
PATHS = ("/openai/v1/chat/completions", "/v1/chat/completions")


@pytest.fixture(scope="module")
def template() -> ChatTemplate:
    return ChatTemplate(TEMPLATE, {"eos_token": "<|endoftext|>"})


def body(messages: object = CHAT, **fields: object) -> str:
    return json.dumps({"messages": messages, **fields})


def parse(sent: str, template: ChatTemplate | None) -> ChatRequest:
    return parse_request(sent.encode(), LIMITS, HEAD, template)


#: What is sent, the ``param`` of the error, and what it must name.
UNREADABLE: dict[str, tuple[str, str | None, list[str]]] = {
    "a list": ("[1]", None, ["[1]", "an object"]),
    "no messages": ("{}", "messages", ["messages", "missing"]),
    "null": (body(None), "messages", ["null", "a list"]),
    "a text": (body("a"), "messages", ['"a"', "a list"]),
    "none": (body([]), "messages", ["[]", "a list"]),
    "text as message": (body(["a"]), "messages", ["messages[0]", '"a"', "an object"]),
    "no role": (body([{"content": "a"}]), "messages", ["messages[0].role", "null", "assistant"]),
    "role": (body([{"role": "me", "content": "a"}]), "messages", ['"me"', "system"]),
    "role as list": (body([{"role": [], "content": "a"}]), "messages", ["[]", "system"]),
    "no content": (body([{"role": "user"}]), "messages", ["messages[0].content", "null"]),
    "content": (body([{"role": "user", "content": 1}]), "messages", ["1", "a string"]),
    "part": (
        body([{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}]),
        "messages",
        ["messages[0].content[0]", "image_url", '"text"'],
    ),
    "unknown in a message": (
        body([*CHAT, {"role": "user", "contents": "a"}]),
        "messages",
        ["messages[4].contents", "did you mean content"],
    ),
    "name": (body([CHAT[0] | {"name": 1}]), "messages", ["messages[0].name", "1", "a string"]),
    "refused": (body(CHAT[2:]), "messages", ["refuses them", "The user speaks first"]),
    "prompt": (body(prompt="a"), "prompt", ["prompt: unknown"]),
    "echo": (body(echo=True), "echo", ["echo: unknown"]),
    "tools": (body(tools=[]), "tools", ["tools: unknown"]),
    "logprobs": (body(logprobs=2), "logprobs", ["2", "true or false"]),
    "top_logprobs alone": (body(top_logprobs=2), "top_logprobs", ["with logprobs"]),
    "top_logprobs": (body(logprobs=True, top_logprobs=21), "top_logprobs", ["21", "0 to 20"]),
    "stream_options": (body(stream_options={}), "stream_options", ["with stream"]),
    "two limits": (body(max_tokens=1, max_completion_tokens=1), "max_tokens", ["leave one out"]),
    "limit": (body(max_completion_tokens=2049), "max_completion_tokens", ["2049", "2048"]),
    "older limit": (body(max_tokens=0), "max_tokens", ["0", "1 to 2048"]),
    "n": (body(n=9), "n", ["9", "1 to 8"]),
    "top_k": (body(top_k=-1), "top_k", ["-1", "0 (off)"]),
    "min above max": (body(max_tokens=3, min_new_tokens=4), "min_new_tokens", ["max_tokens 3"]),
}


@pytest.mark.parametrize("name", UNREADABLE)
def test_refused(name: str, template: ChatTemplate) -> None:
    sent, param, named = UNREADABLE[name]
    with pytest.raises(InvalidInput) as caught:
        parse(sent, template)
    check_error(str(caught.value), named)
    assert error_body(PATHS[0], 400, str(caught.value))["error"]["param"] == param


def test_defaults_are_openais(template: ChatTemplate) -> None:
    """Up to the context, without top-k and top-p."""
    request = parse(body(), template)
    assert request.prompts == (template.prompt(CHAT),)
    parameters = request.parameters
    assert (parameters.max_new_tokens, parameters.max_length) == (None, 2048)
    assert (parameters.temperature, parameters.top_k, parameters.top_p) == (1, 0, 1)
    assert (request.logprobs, request.stream, parameters.logprobs) == (False, False, None)
    names = ["max_tokens", "max_completion_tokens", "n", "logprobs", "top_logprobs", "stream"]
    nothing = dict.fromkeys([*names, "stream_options", "user", "model", "stop", "seed"])
    assert parse(body(**nothing), template) == request


def test_every_field(template: ChatTemplate) -> None:
    request = parse(
        body(
            [{"role": "user", "content": [{"type": "text", "text": one} for one in "ab"]}],
            max_completion_tokens=7,
            n=2,
            logprobs=True,
            top_logprobs=3,
            seed=5,
            stream=True,
            stream_options={"include_usage": True},
        ),
        template,
    )
    assert request.prompts == ("User: ab\nAssistant:",)
    assert (request.logprobs, request.stream, request.include_usage) == (True, True, True)
    given = {"max_new_tokens": 7, "num_return_sequences": 2, "logprobs": 3, "seed": 5}
    assert request.parameters.model_dump(include=set(given)) == given


def test_schema() -> None:
    schema = chat_schema(LIMITS)
    assert "$ref" not in json.dumps(schema)
    assert schema["properties"]["messages"]["items"]["required"] == ["role", "content"]
    assert not {"prompt", "echo", "max_new_tokens"} & set(schema["properties"])


@pytest.fixture(scope="module")
def chatty(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    file = tmp_path_factory.mktemp("chat") / "template.jinja"
    file.write_text(TEMPLATE)
    with RunningServer("--chat_template", str(file)) as running:
        running.wait_until_ready()
        yield running


@pytest.fixture(scope="module", params=["/openai/v1", "/v1"])
def client(chatty: RunningServer, request: pytest.FixtureRequest) -> Iterator[openai.OpenAI]:
    address = f"http://127.0.0.1:{chatty.port}{request.param}"
    with openai.OpenAI(base_url=address, api_key="none", max_retries=0) as one:
        yield one


def ask(client: openai.OpenAI, **fields: Any) -> Any:
    messages = cast("Any", CHAT)
    return client.chat.completions.create(model=NAME, messages=messages, **fields)


@pytest.mark.process
def test_an_answer(chatty: RunningServer, client: openai.OpenAI, template: ChatTemplate) -> None:
    """The completion of the template's prompt."""
    fields: dict[str, Any] = {"seed": 3, "max_tokens": 20, "n": 2}
    expected = complete(chatty, template.prompt(CHAT), **fields)
    answer = ask(client, **fields, logprobs=True, top_logprobs=2)
    assert [choice.message.content for choice in answer.choices] == texts(expected)
    assert answer.choices[0].message.role == "assistant"
    assert (answer.object, answer.id[:9]) == ("chat.completion", "chatcmpl-")
    assert answer.usage.prompt_tokens == expected["usage"]["prompt_tokens"]
    for choice in answer.choices:
        tokens = choice.logprobs.content
        assert "".join(token.token for token in tokens) == choice.message.content
        assert all(len(token.top_logprobs) == 2 for token in tokens)
        assert all(bytes(token.bytes).decode() == token.token for token in tokens)


@pytest.mark.process
def test_a_stream(client: openai.OpenAI) -> None:
    fields: dict[str, Any] = {"temperature": 0, "max_completion_tokens": 20, "n": 2}
    at_once = ask(client, **fields)
    contents = {0: "", 1: ""}
    roles, reasons, tokens, usage = [], [], 0, None
    for event in ask(
        client, **fields, stream=True, logprobs=True, stream_options={"include_usage": True}
    ):
        assert event.object == "chat.completion.chunk"
        usage = event.usage
        for choice in event.choices:
            contents[choice.index] += choice.delta.content
            roles += [choice.delta.role] if choice.delta.role else []
            reasons += [choice.finish_reason] if choice.finish_reason else []
            tokens += len(choice.logprobs.content)
    assert list(contents.values()) == [choice.message.content for choice in at_once.choices]
    assert roles == ["assistant"] * 2
    assert reasons == ["length"] * 2
    assert tokens == 40
    assert usage is not None
    assert usage.completion_tokens == 40


@pytest.mark.process
def test_the_end_of_a_message(chatty: RunningServer, client: openai.OpenAI) -> None:
    """The token that ends it is neither in the text nor in the list."""
    biased = {"temperature": 0, "max_tokens": 4, "logit_bias": {"0": 100}, "logprobs": True}
    [choice] = ask(client, **biased).choices
    assert (choice.message.content, choice.finish_reason) == ("", "stop")
    assert choice.logprobs.content == []
    [event] = ask(client, **biased, stream=True)
    assert event.choices[0].logprobs.content == []


@pytest.mark.process
def test_langchain(chatty: RunningServer) -> None:
    address = f"http://127.0.0.1:{chatty.port}/openai/v1"
    llm = ChatOpenAI(
        model=NAME, base_url=address, api_key="none", temperature=0, max_completion_tokens=9
    )
    messages = [(one["role"], one["content"]) for one in CHAT]
    answer = llm.invoke(messages).content
    assert answer
    assert "".join(str(piece.content) for piece in llm.stream(messages)) == answer


@pytest.mark.process
@pytest.mark.parametrize("path", PATHS)
def test_errors(chatty: RunningServer, path: str) -> None:
    check_refused(chatty.post(body(CHAT[2:]), path), 400, None, "The user speaks first")
    check_refused(chatty.post(body(model="gpt-4"), path), 404, "model_not_found", "gpt-4")
    long = [{"role": "user", "content": " the" * 3000}]
    check_refused(chatty.post(body(long), path), 400, "context_length_exceeded", "messages has")


@pytest.mark.process
@pytest.mark.parametrize("path", PATHS)
def test_without_a_template(server: RunningServer, path: str) -> None:
    refused = server.post(body(), path)
    check_refused(refused, 400, None, "GPT-J has no chat template")
    assert "--chat_template" in refused.json()["error"]["message"]
    check_refused(server.client.get(path), 405, "method_not_supported", "use POST")

"""OpenAI's own client and langchain's against the real server."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from langchain_openai import OpenAI as LangchainCompletions

from tests.support.exact import Exact
from tests.support.secrets import KEYS, MountedSecret
from tests.support.servers import NAME, RunningServer, wait_for
from tests.support.strict import Strict

pytestmark = pytest.mark.process

PROMPT = "The secret to a happy life is to"
OTHER = "Right now is the perfect time to"

#: Where the clients are told to ask.
BASES = ("/openai/v1", "/v1")


def options(server: RunningServer, base: str = BASES[0], key: str = "none") -> dict[str, Any]:
    address = f"http://127.0.0.1:{server.port}{base}"
    return {"base_url": address, "api_key": key, "max_retries": 0, "timeout": 60}


@pytest.fixture(params=BASES)
def client(native: RunningServer, request: pytest.FixtureRequest) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(**options(native, request.param)) as one:
        yield one


def test_completion(client: openai.OpenAI, exact: Exact) -> None:
    answer = client.completions.create(
        model=NAME,
        prompt=[PROMPT, OTHER],
        max_tokens=9,
        temperature=0,
        logprobs=2,
        echo=True,
        n=2,
        extra_body={"repetition_penalty": 1.2, "details": True},
        user="me",
    )
    expected = [
        prompt + exact.generate(prompt, max_new_tokens=9, repetition_penalty=1.2)
        for prompt in (PROMPT, OTHER)
        for _ in range(2)
    ]
    assert [choice.text for choice in answer.choices] == expected
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 36
    assert answer.usage.prompt_tokens_details is not None
    logprobs = answer.choices[3].logprobs
    assert logprobs is not None
    assert logprobs.tokens is not None
    assert "".join(logprobs.tokens) == expected[3]
    assert answer.object == "text_completion"
    assert answer.system_fingerprint


def test_stream(client: openai.OpenAI, exact: Exact) -> None:
    texts = {0: "", 1: ""}
    usage = None
    for event in client.completions.create(
        model=NAME,
        prompt=[PROMPT, OTHER],
        max_tokens=30,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
    ):
        usage = event.usage
        for choice in event.choices:
            texts[choice.index] += choice.text
    assert texts == {
        number: exact.generate(prompt, max_new_tokens=30)
        for number, prompt in enumerate((PROMPT, OTHER))
    }
    assert usage is not None
    assert usage.completion_tokens == 60


def test_models(client: openai.OpenAI) -> None:
    [model] = client.models.list().data
    assert (model.id, model.object) == (NAME, "model")


def test_async(native: RunningServer, exact: Exact) -> None:
    """Several at a time, one of them as a stream that is left half read."""
    expected = exact.generate(PROMPT, max_new_tokens=30)

    async def run() -> None:
        async with openai.AsyncOpenAI(**options(native)) as client:
            asked: dict[str, Any] = {"model": NAME, "prompt": PROMPT, "temperature": 0}
            several = [client.completions.create(**asked, max_tokens=30) for _ in range(4)]
            async with await client.completions.create(
                **asked, max_tokens=2000, stream=True
            ) as left:
                async for event in left:
                    assert expected.startswith(event.choices[0].text)
                    break
            for answer in await asyncio.gather(*several):
                assert answer.choices[0].text == expected
            assert (await client.models.retrieve("EleutherAI/gpt-j-6B")).id == NAME

    asyncio.run(run())


@pytest.mark.parametrize(
    ("fields", "kind", "param", "code"),
    [
        ({"max_tokens": -1}, openai.BadRequestError, "max_tokens", None),
        ({"extra_body": {"top_k": -1}}, openai.BadRequestError, "top_k", None),
        (
            {"prompt": "a " * 5000},
            openai.BadRequestError,
            "prompt",
            "context_length_exceeded",
        ),
        ({"model": "gpt-4"}, openai.NotFoundError, "model", "model_not_found"),
    ],
    ids=["field", "ours", "long", "model"],
)
@pytest.mark.parametrize("stream", [False, True])
def test_errors(
    native: RunningServer,
    fields: dict[str, Any],
    kind: type[openai.APIStatusError],
    param: str,
    code: str | None,
    stream: bool,
) -> None:
    with openai.OpenAI(**options(native)) as client, pytest.raises(kind) as caught:
        client.completions.create(**{"model": NAME, "prompt": PROMPT} | fields, stream=stream)
    assert (caught.value.param, caught.value.code) == (param, code)
    assert caught.value.type == "invalid_request_error"
    assert caught.value.request_id


@pytest.mark.parametrize("base", BASES)
def test_keys(locked: RunningServer, base: str) -> None:
    asked: dict[str, Any] = {"model": NAME, "prompt": PROMPT}
    with openai.OpenAI(**options(locked, base, KEYS[0])) as client:
        assert client.completions.create(**asked).choices[0].text
    with (
        openai.OpenAI(**options(locked, base, "wrong")) as client,
        pytest.raises(openai.AuthenticationError) as caught,
    ):
        client.completions.create(**asked)
    assert caught.value.code == "invalid_api_key"


def test_error_in_a_stream(locked: RunningServer, key_secret: MountedSecret) -> None:
    fault = key_secret.folder / "fault"
    with openai.OpenAI(**options(locked, key=KEYS[0])) as client:
        events = client.completions.create(
            model=NAME, prompt=PROMPT, max_tokens=2000, stream=True, extra_body={"ignore_eos": True}
        )
        next(events)
        fault.write_text("exception")
        try:
            with pytest.raises(openai.APIError, match="internal error") as caught:
                list(events)
        finally:
            fault.unlink()
    assert caught.value.type == "server_error"


def test_too_many_and_too_late(strict: Strict) -> None:
    """A full queue is a rate limit, which the client may wait for by itself."""

    async def run() -> None:
        async with strict.busy(), openai.AsyncOpenAI(**options(strict.server)) as client:
            asked: dict[str, Any] = {"model": NAME, "prompt": PROMPT, "max_tokens": 1}
            waiting = [asyncio.create_task(client.completions.create(**asked)) for _ in range(4)]
            await strict.until("queued_requests", 4)
            with pytest.raises(openai.RateLimitError) as caught:
                await client.completions.create(**asked)
            assert caught.value.code == "rate_limit_exceeded"
            assert int(caught.value.response.headers["retry-after"]) >= 1
            patient = client.with_options(max_retries=9)
            again = asyncio.create_task(patient.completions.create(**asked))
            await asyncio.gather(*waiting, again)

    asyncio.run(run())


def test_langchain(native: RunningServer, exact: Exact) -> None:
    llm = LangchainCompletions(model=NAME, temperature=0, max_tokens=12, **options(native))
    expected = {prompt: exact.generate(prompt, max_new_tokens=12) for prompt in (PROMPT, OTHER)}
    assert llm.invoke(PROMPT) == expected[PROMPT]
    assert llm.batch([PROMPT, OTHER]) == list(expected.values())
    assert llm.generate([PROMPT, OTHER]).generations[1][0].text == expected[OTHER]
    pieces = list(llm.stream(PROMPT))
    assert "".join(pieces) == expected[PROMPT]
    assert len(pieces) > 5
    assert llm.invoke(PROMPT, stop=[" "]) == ""
    assert asyncio.run(llm.ainvoke(OTHER)) == expected[OTHER]
    best = LangchainCompletions(model=NAME, best_of=3, n=2, seed=1, **options(native))
    assert len(best.generate([PROMPT]).generations[0]) == 2


def test_unreadable_names_are_told(native: RunningServer) -> None:
    """What a client of a newer API sends is named, not passed over."""
    with openai.OpenAI(**options(native)) as client, pytest.raises(openai.BadRequestError) as error:
        client.completions.create(model=NAME, prompt=PROMPT, extra_body={"prompt_logprob": 1})
    assert "prompt_logprob: unknown; did you mean logprobs" in str(error.value)
    wait_for(lambda: "prompt_logprob: unknown" in native.log)

"""``/tokenize`` and ``/detokenize``, against the real server and beside the event loop."""

from __future__ import annotations

import asyncio
import threading
from typing import Any, cast

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from gptj_predictor.demo import DEMO_SNAPSHOT
from gptj_predictor.server.admission import QueueFullError
from gptj_predictor.server.token_calls import MAX_WAITING, TokenCalls
from gptj_predictor.tokenizer import Tokenizer
from tests.support.bad_bodies import check_error
from tests.support.servers import NAME, RunningServer

REFERENCE = AutoTokenizer.from_pretrained(DEMO_SNAPSHOT)
TOKENIZER = Tokenizer(DEMO_SNAPSHOT)

TEXTS = (
    "",
    "The secret to a happy life",
    "  two\n\tlines ",
    "n\u00e4ive \U0001f600",
    "<|endoftext|>a",
)


def ask(server: RunningServer, path: str, body: object) -> httpx.Response:
    return server.client.post(path, json=body)


@pytest.mark.process
@pytest.mark.parametrize("text", TEXTS)
def test_tokens_of_a_text_and_back(server: RunningServer, text: str) -> None:
    counted = ask(server, "/tokenize", {"prompt": text}).json()
    tokens = REFERENCE(text)["input_ids"]
    assert counted == {"tokens": tokens, "count": len(tokens), "max_model_len": 2048}
    assert ask(server, "/detokenize", {"tokens": tokens}).json() == {"prompt": text}


@pytest.mark.process
@pytest.mark.parametrize("more", [{"model": NAME}, {"model": None}, {"add_special_tokens": True}])
def test_what_other_clients_send_too(server: RunningServer, more: dict[str, Any]) -> None:
    answer = ask(server, "/tokenize", {"prompt": "a"} | more)
    assert answer.json() == ask(server, "/tokenize", {"prompt": "a"}).json()


@given(st.lists(st.integers(0, len(TOKENIZER) - 1), max_size=60))
def test_any_tokens_decode_as_the_reference_does(ids: list[int]) -> None:
    expected = REFERENCE.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    assert TOKENIZER.decode(ids) == expected


def test_a_padded_vocabulary_has_ids_without_a_text() -> None:
    assert TOKENIZER.decode([len(TOKENIZER), 300]) == TOKENIZER.decode([300])


BAD: dict[str, tuple[str, str, list[str]]] = {
    "no JSON": ("/tokenize", "{", ["not JSON"]),
    "a list": ("/tokenize", "[]", ["[]", "an object"]),
    "surrogate": ("/tokenize", '{"prompt": "\\ud800"}', ["surrogate"]),
    "no prompt": ("/tokenize", "{}", ["prompt", "missing"]),
    "prompt a list": ("/tokenize", '{"prompt": ["a"]}', ["prompt", '["a"]', "a string"]),
    "misspelled": ("/tokenize", '{"promt": "a"}', ["promt", "did you mean prompt"]),
    "model a number": ("/tokenize", '{"prompt": "a", "model": 3}', ["model", "3"]),
    "no flag": ("/tokenize", '{"prompt": "a", "add_special_tokens": 1}', ["add_special", "true"]),
    "no tokens": ("/detokenize", "{}", ["tokens", "missing", "a list"]),
    "tokens a string": ("/detokenize", '{"tokens": "1"}', ["tokens", '"1"', "a list"]),
    "a float": ("/detokenize", '{"tokens": [0, 2.0]}', ["tokens[1]", "2.0", "0 to 2047"]),
    "true": ("/detokenize", '{"tokens": [true]}', ["tokens[0]", "true", "0 to 2047"]),
    "negative": ("/detokenize", '{"tokens": [-1]}', ["tokens[0]", "-1", "0 to 2047"]),
    "beyond": ("/detokenize", '{"tokens": [5, 2048]}', ["tokens[1]", "2048", "0 to 2047"]),
    "huge": ("/detokenize", '{"tokens": [' + "9" * 30 + "]}", ["tokens[0]", "0 to 2047"]),
    "too many": ("/detokenize", f'{{"tokens": {[0] * 65537}}}', ["tokens", "65537", "65536"]),
}


@pytest.mark.process
@pytest.mark.parametrize("name", BAD)
def test_bad_input(server: RunningServer, name: str) -> None:
    path, sent, named = BAD[name]
    answer = server.post(sent, path)
    assert answer.status_code == 400
    check_error(answer.json()["error"], named)


@pytest.mark.process
def test_other_refusals(server: RunningServer) -> None:
    answer = ask(server, "/tokenize", {"prompt": "a", "model": "other"})
    assert answer.status_code == 404
    assert "other" in answer.json()["error"]
    assert ask(server, "/tokenize", {"prompt": "a" * 2_000_000}).status_code == 413
    for path in ("/tokenize", "/detokenize"):
        answer = server.client.get(path)
        assert answer.status_code == 405
        assert answer.headers["allow"] == "POST"


class SlowTokenizer:
    """Waits until it is let go."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self.threads: set[str] = set()

    def encode(self, text: str) -> list[int]:
        self.threads.add(threading.current_thread().name)
        assert self.go.wait(60)
        return [len(text)]


def test_calls_wait_beside_the_event_loop_and_not_without_end() -> None:
    async def run() -> None:
        slow, calls = SlowTokenizer(), TokenCalls()
        tokenizer = cast("Tokenizer", slow)
        waiting = [
            asyncio.create_task(calls.encode(tokenizer, "a" * n)) for n in range(MAX_WAITING + 1)
        ]
        await asyncio.sleep(0)
        with pytest.raises(QueueFullError, match="64 calls wait") as caught:
            await calls.encode(tokenizer, "one more")
        assert caught.value.retry_after == 1
        slow.go.set()
        assert await asyncio.gather(*waiting) == [[n] for n in range(MAX_WAITING + 1)]
        assert await calls.encode(tokenizer, "later") == [5]
        assert len(slow.threads) == 1
        assert threading.current_thread().name not in slow.threads

    asyncio.run(run())

"""What the parameters do, through HTTP, against transformers' own text."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.support.exact import Exact
from tests.support.servers import RunningServer

pytestmark = pytest.mark.process

PROMPTS = [
    "The secret to a happy life is to",
    "Message: I love it. Sentiment:",
    "Question: Show all teams;Answer:",
    "In the valley",
]


def texts(predictions: Any) -> list[str]:
    return [one["generated_text"] for sequences in predictions for one in sequences]


@pytest.mark.parametrize(
    "parameters",
    [
        {"max_length": 60},
        {"min_length": 50, "max_length": 60},
        {"max_new_tokens": 30},
        {"min_new_tokens": 25, "max_new_tokens": 30},
        {"max_length": 60, "repetition_penalty": 1.4},
        {"max_length": 60, "min_length": 55, "repetition_penalty": 0.7},
    ],
    ids=str,
)
def test_greedy_text_is_the_reference_s(
    native: RunningServer, exact: Exact, parameters: dict[str, Any]
) -> None:
    expected = [prompt + exact.generate(prompt, **parameters) for prompt in PROMPTS]
    assert texts(native.predict(PROMPTS, temperature=0, **parameters)) == expected
    assert texts(native.predict(PROMPTS, do_sample=False, **parameters)) == expected


def test_many_clients_at_once(native: RunningServer, exact: Exact) -> None:
    """Forty requests of different shapes, sixteen at a time, each with the text it has alone."""
    cases = [
        (PROMPTS[n % 4] + " the" * (n % 5), {"max_new_tokens": 1 + n % 23, "temperature": 0})
        for n in range(40)
    ]
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda case: native.predict([case[0]], **case[1], top_k=1), cases))
    for (prompt, parameters), answer in zip(cases, answers, strict=True):
        new = parameters["max_new_tokens"]
        assert answer[0]["generated_text"] == prompt + exact.generate(prompt, max_new_tokens=new)


def test_seed(native: RunningServer) -> None:
    """Same prompt, parameters and seed: same text, alone, in a batch and between strangers."""
    chosen = {"seed": 11, "temperature": 2, "max_new_tokens": 40}
    alone = native.predict(PROMPTS[:1], **chosen)[0]["generated_text"]
    assert texts(native.predict(PROMPTS, **chosen))[0] == alone
    with ThreadPoolExecutor(8) as pool:
        crowd = [pool.submit(native.predict, [PROMPTS[2]], max_new_tokens=90) for _ in range(7)]
        assert native.predict(PROMPTS[:1], **chosen)[0]["generated_text"] == alone
        for one in crowd:
            one.result()
    assert native.predict(PROMPTS[:1], **chosen | {"seed": 12})[0]["generated_text"] != alone


def test_without_a_seed_texts_differ(native: RunningServer) -> None:
    chosen = {"temperature": 2, "max_new_tokens": 40}
    assert len({texts([native.predict(PROMPTS[:1], **chosen)])[0] for _ in range(3)}) == 3
    assert len(set(texts(native.predict(PROMPTS[:1] * 4, **chosen)))) == 4


def test_num_return_sequences(native: RunningServer) -> None:
    chosen: dict[str, Any] = {"seed": 5, "temperature": 2, "max_new_tokens": 30}
    flat = native.predict(PROMPTS[:1], num_return_sequences=3, **chosen)
    assert [list(one) for one in flat] == [["generated_text"]] * 3
    assert len({one["generated_text"] for one in flat}) == 3
    assert flat[0] == native.predict(PROMPTS[:1], **chosen)[0]
    nested = native.predict(PROMPTS, num_return_sequences=2, **chosen)
    assert [len(sequences) for sequences in nested] == [2] * 4
    for prompt, sequences in zip(PROMPTS, nested, strict=True):
        assert all(one["generated_text"].startswith(prompt) for one in sequences)


@pytest.mark.parametrize("as_list", [False, True])
def test_stop(native: RunningServer, exact: Exact, as_list: bool) -> None:
    full = exact.generate(PROMPTS[0], max_new_tokens=40)
    stop = full[11:15]
    sent: dict[str, Any] = {"temperature": 0, "max_new_tokens": 40, "return_full_text": False}
    answer = native.predict(PROMPTS[:1], stop=["#~#", stop] if as_list else stop, **sent)
    assert answer[0]["generated_text"] == full[: full.index(stop)]
    assert native.predict(PROMPTS[:1], stop="#~#", **sent)[0]["generated_text"] == full


def test_return_full_text(native: RunningServer) -> None:
    chosen: dict[str, Any] = {"temperature": 0, "max_new_tokens": 5}
    with_prompt = native.predict(PROMPTS[:1], return_full_text=True, **chosen)
    without = native.predict(PROMPTS[:1], return_full_text=False, **chosen)
    assert with_prompt[0]["generated_text"] == PROMPTS[0] + without[0]["generated_text"]


def test_lengths_include_the_prompt(native: RunningServer, exact: Exact) -> None:
    prompt = " the" * 30
    text = native.predict([prompt], min_length=37, max_length=37)[0]["generated_text"]
    assert text.startswith(prompt)
    assert abs(len(exact.ids(text)) - 37) <= 2  # text may tokenize otherwise than it was made
    new = native.predict([prompt], min_length=37, max_length=37, max_new_tokens=60,
                         min_new_tokens=60)[0]["generated_text"]  # fmt: skip
    assert len(new) > len(text)


def test_the_whole_context(native: RunningServer) -> None:
    text = native.predict([" the" * 2040], max_length=2048, min_length=2048)[0]["generated_text"]
    assert text.startswith(" the" * 2040)

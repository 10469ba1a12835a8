"""What the parameters do, through HTTP, against transformers' own text."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest

from tests.support.engines import GREEDY
from tests.support.exact import Exact
from tests.support.reference import OutputPenalty
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


#: Greedy requests, and the words of ``generate`` for what they add.
CHANGED: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"logit_bias": {"300": 8, "14": -100}}, {"sequence_bias": {(300,): 8.0, (14,): -100.0}}),
    (
        {"logit_bias": {"300": 7.5}, "repetition_penalty": 1.3},
        {"sequence_bias": {(300,): 7.5}, "repetition_penalty": 1.3},
    ),
]


@pytest.mark.parametrize("case", CHANGED, ids=lambda case: str(case[0]))
def test_bias(
    native: RunningServer, exact: Exact, case: tuple[dict[str, Any], dict[str, Any]]
) -> None:
    sent, reference = case
    plain = exact.generate(PROMPTS[0], max_new_tokens=30)
    wanted = exact.generate(PROMPTS[0], max_new_tokens=30, **reference)
    assert wanted != plain
    chosen: dict[str, Any] = {"temperature": 0, "max_new_tokens": 30, "return_full_text": False}
    assert texts([native.predict(PROMPTS[:1], **chosen, **sent)]) == [wanted]


@pytest.mark.parametrize("penalties", [(2, 0), (0, 1.5), (-0.5, 0.75)])
def test_penalties_on_what_was_generated(
    native: RunningServer, exact: Exact, penalties: tuple[float, float]
) -> None:
    named: dict[str, Any] = dict(
        zip(("presence_penalty", "frequency_penalty"), penalties, strict=True)
    )
    penalty = OutputPenalty(len(exact.ids(PROMPTS[0])), replace(GREEDY, **named))
    wanted = exact.generate(PROMPTS[0], max_new_tokens=60, logits_processor=[penalty])
    assert wanted != exact.generate(PROMPTS[0], max_new_tokens=60)
    chosen: dict[str, Any] = {"temperature": 0, "max_new_tokens": 60, "return_full_text": False}
    assert texts([native.predict(PROMPTS[:1], **chosen, **named)]) == [wanted]


def test_stop_tokens(native: RunningServer, exact: Exact) -> None:
    full = exact.generate(PROMPTS[0], max_new_tokens=40)
    ids = exact.ids(full)
    stop = ids[9]
    chosen: dict[str, Any] = {"temperature": 0, "max_new_tokens": 40, "return_full_text": False}
    [one] = native.predict(PROMPTS[:1], stop_token_ids=[stop, 3], details=True, **chosen)
    before = ids.index(stop)
    assert one["generated_text"] == exact.tokenizer.decode(ids[:before])
    assert one["details"]["finish_reason"] == "stop_sequence"
    assert one["details"]["generated_tokens"] == before + 1


def test_end_of_text_can_be_ignored(native: RunningServer) -> None:
    chosen: dict[str, Any] = {"temperature": 0, "max_new_tokens": 9, "logit_bias": {"0": 100}}
    [ends] = native.predict(PROMPTS[:1], details=True, **chosen)
    assert ends["details"]["finish_reason"] == "eos_token"
    assert ends["details"]["generated_tokens"] == 1
    [goes_on] = native.predict(PROMPTS[:1], details=True, ignore_eos=True, **chosen)
    assert goes_on["details"]["finish_reason"] == "length"
    assert goes_on["details"]["generated_tokens"] == 9
    assert goes_on["generated_text"] == PROMPTS[0]  # end of text has no text


def test_logprobs(native: RunningServer, exact: Exact) -> None:
    """Each token's and the likeliest's, before bias and temperature, as the reference's."""
    sent: dict[str, Any] = {"max_new_tokens": 20, "temperature": 1.5, "seed": 4, "logprobs": 3}
    sent |= {"logit_bias": {"300": 4}, "details": True, "return_full_text": False}
    [one] = native.predict(PROMPTS[:1], **sent)
    tokens = one["details"]["tokens"]
    assert "".join(token["text"] for token in tokens) == one["generated_text"]
    ids = [*exact.ids(PROMPTS[0]), *(token["id"] for token in tokens)]
    wanted = exact.logprobs(ids)[-len(tokens) :]
    for token, row in zip(tokens, wanted, strict=True):
        assert token["logprob"] == pytest.approx(float(row[token["id"]]), abs=1e-4)
        likeliest = row.topk(3)
        top = token["top_logprobs"]
        assert [other["id"] for other in top] == likeliest.indices.tolist()
        assert [other["logprob"] for other in top] == pytest.approx(
            likeliest.values.tolist(), abs=1e-4
        )
        assert [other["text"] for other in top] == [exact.tokenizer.decode(o["id"]) for o in top]


def test_logprobs_end_with_the_text(native: RunningServer, exact: Exact) -> None:
    """What a stop string cut away has none; with 0 likeliest ones each token's own is there."""
    full = exact.generate(PROMPTS[0], max_new_tokens=40)
    sent: dict[str, Any] = {"temperature": 0, "max_new_tokens": 40, "return_full_text": False}
    [one] = native.predict(PROMPTS[:1], stop=full[11:15], logprobs=0, details=True, **sent)
    tokens = one["details"]["tokens"]
    assert "".join(token["text"] for token in tokens).startswith(one["generated_text"])
    assert "".join(token["text"] for token in tokens[:-1]) != one["generated_text"]
    assert all(token["top_logprobs"] == [] for token in tokens)

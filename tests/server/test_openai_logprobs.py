"""Log-probabilities of OpenAI's completions against transformers, in fp32."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
import torch

from tests.support.exact import Exact
from tests.support.harness import CHOICES, GENERATION, ROLLING, evaluate
from tests.support.openai_clients import COMPLETIONS, complete, stream, texts
from tests.support.servers import RunningServer

pytestmark = pytest.mark.process

PROMPT = "The secret to a happy life is to"
EOS = "<|endoftext|>"
LISTS = ("tokens", "token_logprobs", "top_logprobs", "text_offset")


def reference(exact: Exact, ids: list[int]) -> torch.Tensor:
    """The log-probability of every token after each of them: [tokens, vocabulary]."""
    with torch.no_grad():
        logits = exact.model(torch.tensor([ids])).logits[0]
    return torch.log_softmax(logits, dim=-1)


def likelihood(exact: Exact, ids: list[int], first: int = 1) -> float:
    """Of the tokens from ``first`` on, together."""
    logprobs = reference(exact, ids)
    return sum(float(logprobs[place - 1, ids[place]]) for place in range(first, len(ids)))


def only(answer: Any) -> dict[str, Any]:
    """The log-probabilities of the one choice; their lists are equally long."""
    [choice] = answer["choices"]
    logprobs: dict[str, Any] = choice["logprobs"]
    assert tuple(logprobs) == LISTS
    assert len({len(one) for one in logprobs.values()}) == 1
    return logprobs


def check_reference(exact: Exact, told: dict[str, Any], ids: list[int], first: int) -> None:
    """Tokens from ``first`` on, and their log-probabilities."""
    expected = reference(exact, ids)
    assert "".join(told["tokens"]) == exact.tokenizer.decode(ids[first:])
    for number, place in enumerate(range(first, len(ids))):
        logprob, top = told["token_logprobs"][number], told["top_logprobs"][number]
        if place == 0:
            assert (logprob, top) == (None, None)
            continue
        row = expected[place - 1]
        assert logprob == pytest.approx(float(row[ids[place]]), rel=1e-4, abs=1e-4)
        likeliest = sorted(top.values(), reverse=True)
        assert likeliest[:3] == pytest.approx(row.topk(3).values.tolist(), rel=1e-4, abs=1e-4)
        assert len(top) in (3, 4)  # the token itself, if it is not among them
        assert logprob in top.values()


def test_scoring(native: RunningServer, exact: Exact) -> None:
    """A prompt without a new token, also one that fills the context."""
    long = (PROMPT + " learn. ") * 300
    for text in (PROMPT, "a", long):
        ids = exact.ids(text)[:2048]
        answer = complete(native, ids, max_tokens=0, echo=True, logprobs=3, temperature=1)
        check_reference(exact, only(answer), ids, 0)
        assert answer["usage"]["completion_tokens"] == 0
        assert answer["choices"][0]["finish_reason"] == "length"


def test_new_tokens(native: RunningServer, exact: Exact) -> None:
    """Before temperature and the like have their effect; alone, and behind the prompt's."""
    fields: dict[str, Any] = {
        "logprobs": 3,
        "seed": 5,
        "temperature": 2,
        "top_k": 9,
        "max_tokens": 20,
    }
    [text] = texts(complete(native, PROMPT, **fields))
    prompt = exact.ids(PROMPT)
    told = only(complete(native, PROMPT, **fields))
    ids = [*prompt, *(exact.tokenizer.get_vocab()[one.replace(" ", "Ġ")] for one in told["tokens"])]
    check_reference(exact, told, ids, len(prompt))
    echoed = complete(native, PROMPT, **fields, echo=True)
    check_reference(exact, only(echoed), ids, 0)
    check_offsets(only(echoed), PROMPT + text)
    check_offsets(told, text)


def check_offsets(told: dict[str, Any], text: str) -> None:
    places = [*told["text_offset"], len(text)]
    assert [text[start:end] for start, end in pairwise(places)] == told["tokens"]


@pytest.mark.parametrize("echo", [False, True])
@pytest.mark.parametrize("fields", [{}, {"stop": ["e"]}, {"temperature": 5}, {"n": 2}], ids=str)
def test_streams_have_the_same(native: RunningServer, echo: bool, fields: dict[str, Any]) -> None:
    """Part by part, whatever is held back."""
    asked: dict[str, Any] = {"logprobs": 2, "max_tokens": 60, "seed": 2, "echo": echo, **fields}
    at_once = complete(native, PROMPT, **asked)["choices"]
    whole: list[dict[str, list[Any]]] = [{name: [] for name in LISTS} for _ in at_once]
    for event in stream(native, PROMPT, **asked):
        [choice] = event["choices"]
        for name in LISTS:
            whole[choice["index"]][name] += choice["logprobs"][name]
    for one, together in zip(at_once, whole, strict=True):
        assert together["tokens"] == one["logprobs"]["tokens"]
        assert together["text_offset"] == one["logprobs"]["text_offset"]
        for mine, other in zip(
            together["token_logprobs"], one["logprobs"]["token_logprobs"], strict=True
        ):
            assert mine is other or mine == pytest.approx(other, rel=1e-4, abs=1e-4)


def test_what_a_stop_string_cuts_away(native: RunningServer) -> None:
    """A token that begins before it stays."""
    plain = only(complete(native, PROMPT, temperature=0, logprobs=0))
    third = plain["tokens"][3]
    told = only(complete(native, PROMPT, temperature=0, logprobs=0, stop=third))
    assert told["tokens"] == plain["tokens"][:3]
    told = only(complete(native, PROMPT, temperature=0, logprobs=0, stop=third[1:]))
    assert told["tokens"] == plain["tokens"][:4]


def test_the_token_that_ends_a_text(native: RunningServer, exact: Exact) -> None:
    """It is in the lists, so that what is behind the prompt is one token; not in the text."""
    eos = exact.tokenizer.eos_token_id
    answer = complete(
        native, PROMPT, max_tokens=1, echo=True, logprobs=1, logit_bias={str(eos): 100}
    )
    [choice] = answer["choices"]
    assert (choice["text"], choice["finish_reason"]) == (PROMPT, "stop")
    told = only(answer)
    assert len(told["tokens"]) == len(exact.ids(PROMPT)) + 1
    assert (told["tokens"][-1], told["text_offset"][-1]) == (EOS, len(PROMPT))
    stopped = complete(
        native, PROMPT, temperature=0, logprobs=0, stop_token_ids=[exact.ids(" to")[0]]
    )
    assert stopped["choices"][0]["finish_reason"] == "stop"
    assert only(stopped)["tokens"][-1] == " to"
    assert not stopped["choices"][0]["text"].endswith(" to")


def test_logit_bias_and_penalties(native: RunningServer, exact: Exact) -> None:
    bias = {str(exact.ids(" snow")[0]): 100}
    [choice] = complete(native, PROMPT, logit_bias=bias, max_tokens=4)["choices"]
    assert choice["text"] == " snow" * 4
    fields: dict[str, Any] = {"temperature": 0, "max_tokens": 60}
    plain = complete(native, "a a a a a a", **fields)
    penalized = complete(native, "a a a a a a", **fields, frequency_penalty=2, presence_penalty=2)
    assert texts(plain) != texts(penalized)


def test_best_of(native: RunningServer) -> None:
    """The n best of the same texts, by the mean of their log-probabilities."""
    fields: dict[str, Any] = {"seed": 4, "max_tokens": 12, "temperature": 1.5}
    all_of_them = complete(native, PROMPT, **fields, n=8, logprobs=0)["choices"]

    def mean(choice: dict[str, Any]) -> float:
        values = choice["logprobs"]["token_logprobs"]
        return float(sum(values) / len(values))

    best = sorted(all_of_them, key=mean, reverse=True)
    answer = complete(native, PROMPT, **fields, n=3, best_of=8)
    assert texts(answer) == [choice["text"] for choice in best[:3]]
    assert all(choice["logprobs"] is None for choice in answer["choices"])
    assert answer["usage"]["completion_tokens"] > 8 * 6
    with_logprobs = complete(native, PROMPT, **fields, n=3, best_of=8, logprobs=2)
    assert texts(with_logprobs) == texts(answer)
    assert only({"choices": with_logprobs["choices"][:1]})["tokens"]


def test_lm_eval(
    native: RunningServer, exact: Exact, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Perplexity, accuracy and a text, as transformers has them."""
    documents = [PROMPT + " learn something new.", "Message: I love it. Sentiment: good", "Ünï ☃"]
    questions: list[dict[str, Any]] = [
        {"question": PROMPT, "choices": [" learn", " gorge", " sheep"], "answer": 0},
        {"question": "Right now is the", "choices": [" snow", " good"], "answer": 1},
        {"question": "Once upon a", "choices": [" time", " by the river"], "answer": 0},
    ]
    text = exact.generate(PROMPT, max_new_tokens=12).split(".")[0].split("\n")[0]
    results = evaluate(
        tmp_path_factory.mktemp("harness"),
        {
            "rolling": (ROLLING, [{"text": one} for one in documents]),
            "choices": (CHOICES, questions),
            "generation": (GENERATION, [{"question": PROMPT, "text": text}]),
        },
        address=f"{native.client.base_url.copy_with(path=COMPLETIONS)}",
        tokenizer=exact.folder,
    )
    bos = exact.tokenizer.bos_token_id
    together = sum(likelihood(exact, [bos, *exact.ids(one)]) for one in documents)
    num_bytes = sum(len(one.encode()) for one in documents)
    perplexity = math.exp(-together / num_bytes)
    assert results["rolling"]["byte_perplexity,none"] == pytest.approx(perplexity, rel=1e-4)
    right = 0
    for one in questions:
        start = exact.ids(str(one["question"]))
        scores = [
            likelihood(exact, start + exact.ids(choice), len(start)) for choice in one["choices"]
        ]
        right += scores.index(max(scores)) == one["answer"]
    assert results["choices"]["acc,none"] == pytest.approx(right / len(questions))
    assert results["generation"]["exact_match,none"] == 1

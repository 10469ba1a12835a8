"""What sampling parameters do to whole texts: transformers' ``generate``, token for token."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest

from gptj_predictor.engine.request import FinishReason
from gptj_predictor.sampling.params import SamplingParams
from tests.support.engines import GREEDY, RunningEngine
from tests.support.reference import EOS, ReferenceModel

#: Greedy: what changes the logits before the most likely token is taken.
CHANGED: list[dict[str, Any]] = [
    {"logit_bias": ((7, 6.0), (EOS, -100.0), (20, -4.5), (31, 8.0))},
    {"presence_penalty": 2.0},
    {"frequency_penalty": 1.1},
    {"presence_penalty": -1.0, "frequency_penalty": 0.6, "repetition_penalty": 1.3},
    {"frequency_penalty": -2.0, "logit_bias": ((11, 7.0), (12, 6.0))},
    {"ignore_eos": True},
    {"stop_token_ids": tuple(range(2, 66, 4))},
    {"stop_token_ids": tuple(range(1, 65, 4)), "ignore_eos": True, "presence_penalty": 0.5},
]

#: Sampled: of what all processors leave, a single token.
CHOSEN: list[dict[str, Any]] = [
    {"min_p": 1.0},
    {"typical_p": 1e-6},
    {"typical_p": 1e-6, "min_p": 0.05, "temperature": 2.0},
    {"typical_p": 1e-6, "top_k": 5, "repetition_penalty": 1.4},
    {"typical_p": 1e-6, "top_k": 30, "top_p": 0.6, "min_p": 0.1, "temperature": 1.5},
    {"min_p": 1.0, "logit_bias": ((7, 6.0),), "frequency_penalty": 0.7},
]


def requests(
    reference: ReferenceModel, cases: list[dict[str, Any]], **more: Any
) -> list[tuple[list[int], SamplingParams]]:
    """Prompts of every case, some with a minimum length."""
    draw = random.Random(4)
    made = []
    for case in cases:
        for _ in range(3):
            prompt = [draw.randrange(1, reference.vocabulary) for _ in range(draw.randint(1, 40))]
            length = len(prompt) + draw.randint(10, 60)
            low = draw.choice([0, length - 8])
            params = replace(GREEDY, max_length=length, min_length=low, **(more | case))
            made.append((prompt, params))
    return made


@pytest.mark.slow
@pytest.mark.parametrize("batch", [1, 40])
def test_texts_are_the_reference_s(small: ReferenceModel, batch: int) -> None:
    """All together, those that ask for nothing too, and one by one."""
    greedy = requests(small, [{}, *CHANGED])
    sampled = requests(small, CHOSEN, temperature=1.0)
    wanted = [small.greedy(*one) for one in greedy] + [small.only_choice(*one) for one in sampled]
    assert wanted[3:6] != wanted[6:9]  # the cases are different
    with RunningEngine(small.folder, max_batch_size=batch) as engine:
        submitted = [engine.submit(*one) for one in (*greedy, *sampled)]
        results = [one.result() for one in submitted]
    assert [tokens for tokens, _ in results] == wanted
    for (_, params), (tokens, reason) in zip((*greedy, *sampled), results, strict=True):
        if tokens[-1] == EOS and not params.ignore_eos:
            assert reason is FinishReason.EOS
        elif tokens[-1] in params.stop_token_ids:
            assert reason is FinishReason.STOP_SEQUENCE
        else:
            assert reason is FinishReason.LENGTH
    assert {reason for _, reason in results} == {
        FinishReason.EOS,
        FinishReason.STOP_SEQUENCE,
        FinishReason.LENGTH,
    }


def test_end_of_text_that_is_ignored_is_a_token_like_others(small: ReferenceModel) -> None:
    """It may come again and again, early or not, unless it is a stop token too."""
    always = replace(GREEDY, max_length=9, logit_bias=((EOS, 100.0),))
    with RunningEngine(small.folder) as engine:
        for params, tokens, reason in (
            (always, [EOS], FinishReason.EOS),
            (replace(always, ignore_eos=True), [EOS] * 7, FinishReason.LENGTH),
            (replace(always, ignore_eos=True, min_length=9), [EOS] * 7, FinishReason.LENGTH),
            (replace(always, stop_token_ids=(EOS,)), [EOS], FinishReason.EOS),
            (
                replace(always, ignore_eos=True, stop_token_ids=(EOS,)),
                [EOS],
                FinishReason.STOP_SEQUENCE,
            ),
        ):
            assert engine.submit([5, 6], params).result() == (tokens, reason)


def test_a_stop_token_waits_for_the_minimum_length(small: ReferenceModel) -> None:
    always = replace(GREEDY, max_length=40, stop_token_ids=(8,), logit_bias=((8, 100.0),))
    with RunningEngine(small.folder) as engine:
        assert engine.submit([5, 6], always).result() == ([8], FinishReason.STOP_SEQUENCE)
        tokens, reason = engine.submit([5, 6], replace(always, min_length=10)).result()
        assert (tokens.index(8), reason) == (8, FinishReason.STOP_SEQUENCE)

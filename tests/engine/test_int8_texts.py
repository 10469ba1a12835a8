"""The demo's texts and answers with int8 weights, beside those in bf16."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from gptj_predictor.model.network import GPTJNetwork
from tests.support.accuracy import (
    demo_model,
    demo_prompts,
    greedy,
    network_of,
    sentiment_score,
    sql_score,
)

NEW_TOKENS = 20

Score = Callable[[GPTJNetwork, int], float]


@pytest.fixture(scope="module")
def networks() -> dict[str, GPTJNetwork]:
    model = demo_model()
    return {
        "fp32": network_of(model, torch.float32),
        "bf16": network_of(model, torch.bfloat16),
        "int8": network_of(model, torch.bfloat16, "int8"),
    }


@pytest.mark.slow
def test_greedy_texts(networks: dict[str, GPTJNetwork], large: bool) -> None:
    """Of a hundred, at most five fewer are as in fp32 than are in bf16."""
    prompts = demo_prompts(600 if large else 100)
    texts = {name: greedy(network, prompts, NEW_TOKENS) for name, network in networks.items()}
    equal = {
        name: sum(a == b for a, b in zip(found, texts["fp32"], strict=True))
        for name, found in texts.items()
    }
    assert equal["bf16"] > 0.8 * len(prompts)
    assert equal["int8"] >= equal["bf16"] - 0.05 * len(prompts)


@pytest.mark.slow
@pytest.mark.parametrize("score", [sentiment_score, sql_score])
def test_answers(networks: dict[str, GPTJNetwork], score: Score, large: bool) -> None:
    count = 400 if large else 100
    assert score(networks["bf16"], count) > 0.9
    assert abs(score(networks["int8"], count) - score(networks["bf16"], count)) <= 0.01

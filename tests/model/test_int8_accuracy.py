"""What int8 weights cost in accuracy; ``benchmarks/int8_accuracy.py`` has the larger model."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import GPTJConfig

from tests.support.accuracy import (
    OUTLIER_KINDS,
    demo_model,
    demo_texts,
    deviation,
    exact_logits,
    network_of,
    our_logits,
    random_model,
    random_texts,
)

#: The error of logits with int8 weights, at most this many times that of bf16.
MOST_ERROR = 4.5


@pytest.mark.slow
@pytest.mark.parametrize("outliers", OUTLIER_KINDS)
@torch.inference_mode()
def test_error_of_logits(outliers: str) -> None:
    """Plain int8 of rows has 9 to 24 times bf16's error with outliers."""
    shape: dict[str, Any] = {"n_layer": 4, "n_embd": 512, "n_head": 4, "vocab_size": 1024}
    model = random_model(GPTJConfig(**shape, bos_token_id=0, eos_token_id=0))
    OUTLIER_KINDS[outliers](model)
    texts, exact = random_texts(1024, 4, 64), exact_logits(model)
    base, int8 = (
        deviation(our_logits(network_of(model, torch.bfloat16, quantization)), exact, texts)
        for quantization in ("none", "int8")
    )
    assert base.error < int8.error < MOST_ERROR * base.error


@pytest.mark.slow
@torch.inference_mode()
def test_error_of_the_demo() -> None:
    model, texts = demo_model(), demo_texts(16, 256)
    exact = exact_logits(model)
    base, int8 = (
        deviation(our_logits(network_of(model, torch.bfloat16, quantization)), exact, texts)
        for quantization in ("none", "int8")
    )
    assert base.error < int8.error < MOST_ERROR * base.error
    assert int8.top_1 > base.top_1 - 0.01

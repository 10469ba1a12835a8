"""Whole texts through the step that a GPU runs from graphs, in Triton's interpreter."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from gptj_predictor.engine.core import EngineCore
from gptj_predictor.engine.sequence import Sequence
from gptj_predictor.sampling.params import SamplingParams
from tests.support.engines import GREEDY, RunningEngine, load, make_config
from tests.support.gpu_step import with_kernels
from tests.support.recording import RecordedCapture
from tests.support.reference import ReferenceModel
from tests.support.requests import mixed_requests

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(torch.cuda.is_available(), reason="its tensors are on the CPU"),
]

Request = tuple[list[int], SamplingParams]


def generate(reference: ReferenceModel, requests: list[Request], **sizes: Any) -> list[list[int]]:
    """All at once, each decoding step a replay that is compared with its capture."""
    network = with_kernels(load(reference.folder))
    config = make_config(network, max_batch_size=len(requests), page_size=16, **sizes)
    core = EngineCore(network, config, RecordedCapture())
    core.prepare()
    sequences = [Sequence(list(prompt), params) for prompt, params in requests]
    for sequence in sequences:
        core.add(sequence)
    while core.has_work:
        core.step()
    lengths = [len(prompt) for prompt, _ in requests]
    return [
        sequence.token_ids[length:] for sequence, length in zip(sequences, lengths, strict=True)
    ]


def test_greedy_is_the_reference_s(small: ReferenceModel) -> None:
    """With the next step launched before the last one's tokens are read, as on a GPU."""
    requests = []
    for prompt, params in mixed_requests(small, 4, seed=3):
        short = prompt[-11:]
        end = len(short) + 7
        asked = replace(params, max_length=end, min_length=min(params.min_length, end))
        requests.append((short, asked))
    tokens = generate(small, requests, overlap=True)
    assert tokens == [small.greedy(*request) for request in requests]


#: One of each kind that the fused kernel draws, and two for the general sampler.
KINDS: list[dict[str, Any]] = [
    {"top_k": 20, "top_p": 0.9},
    {"top_p": 0.8, "min_length": 60},
    {"repetition_penalty": 1.3, "top_k": 10},
    {"typical_p": 0.8, "logprobs": 1},
]


def test_seeds_alone_and_in_a_crowd(small: ReferenceModel) -> None:
    """A text is what the general sampler draws for it on a CPU, whoever is beside it."""
    requests: list[Request] = [
        ([7, 3 + seed, 21], replace(GREEDY, temperature=1.2, seed=seed, max_length=8, **kind))
        for seed, kind in enumerate(KINDS)
    ]
    crowd = generate(small, requests)
    assert [generate(small, [request])[0] for request in requests[:2]] == crowd[:2]
    with RunningEngine(small.folder) as engine:
        submitted = [engine.submit(*request) for request in requests]
        assert [one.result()[0] for one in submitted] == crowd

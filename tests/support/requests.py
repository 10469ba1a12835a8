"""Random requests to an engine."""

from __future__ import annotations

import random

from gptj_predictor.sampling.params import SamplingParams
from tests.support.reference import ReferenceModel


def mixed_requests(
    reference: ReferenceModel, count: int, seed: int
) -> list[tuple[list[int], SamplingParams]]:
    draw = random.Random(seed)
    context = int(reference.model.config.n_positions)
    requests = []
    for _ in range(count):
        prompt = [
            draw.randrange(1, reference.vocabulary) for _ in range(draw.randint(1, context // 2))
        ]
        max_length = draw.randint(len(prompt) + 1, context)
        requests.append(
            (
                prompt,
                SamplingParams(
                    min_length=draw.choice([0, 0, draw.randint(1, max_length)]),
                    max_length=max_length,
                    temperature=0.0,
                    top_k=draw.choice([0, 5]),
                    top_p=draw.choice([1.0, 0.5]),
                    repetition_penalty=draw.choice([1.0, 1.0, 1.3, 0.8, 2.0]),
                    seed=draw.randrange(100),
                ),
            )
        )
    return requests

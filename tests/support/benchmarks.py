"""Results that nobody measured, for what is made of results."""

from __future__ import annotations

from gptj_predictor.bench.published import GPTJ_6B_PARAMETERS
from gptj_predictor.bench.results import Cell, Device, Results, Round, Run, Settings


def made_up(
    batch_size: int = 1,
    *,
    lengths: range = range(128, 2049, 128),
    factor: float = 1.0,
    parameters: int = GPTJ_6B_PARAMETERS,
    precision: str = "bfloat16",
) -> Results:
    """A card with 4.3 TB/s at 90 % of its limit, ``factor`` times as slow."""
    cells = []
    for batch in range(1, batch_size + 1):
        for tokens in lengths:
            new = tokens - 16
            limit = new * (11.69e9 + batch * (16 + new / 2) * 458_752) / 4.3e12
            rounds = [
                Round(
                    seconds=limit / 0.9 * factor * noise,
                    first_token_seconds=0.004 * noise,
                    counted_tokens=batch * new,
                )
                for noise in (1.01, 1, 0.99)
            ]
            cells.append(Cell.of(batch, tokens, new, rounds, limit))
    return Results(
        run=Run(
            path="in process",
            model="EleutherAI/gpt-j-6B",
            commit="f" * 40,
            parameters=parameters,
            precision=precision,
            device=Device(type="cuda", names=["A made-up card"], memory_bytes=150 * 10**9),
            bandwidth=4.3e12,
            first_token="event",
            versions={"torch": "2.13.0"},
            started="2026-01-01T00:00:00Z",
        ),
        settings=Settings(
            batch_size=batch_size,
            lengths=list(lengths),
            prompt_tokens=16,
            warmup_rounds=1,
            rounds=3,
            seed=0,
            sampling={"top_k": 50},
        ),
        cells=cells,
    )

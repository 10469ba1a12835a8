"""What a GPU's step runs, here in Triton's interpreter on tensors of the CPU."""

from __future__ import annotations

import numpy as np
import torch

import tests.support.interpreted  # noqa: F401  (quicker)
from gptj_predictor.sampling.fused import sample_rows
from gptj_predictor.sampling.params import SamplingParams
from gptj_predictor.sampling.rows import MAX_ENDS, RowFields, RowTable


def sample_fused(
    eos: tuple[int, ...],
    logits: torch.Tensor,
    params: list[SamplingParams],
    table: torch.Tensor,
    indices: list[int],
    lengths: list[int],
) -> tuple[list[int], list[int]]:
    """The fused kernel's tokens, and which rows are not for it."""
    rows = RowTable(table.shape[0], logits.shape[1], eos)
    for index, chosen in zip(indices, params, strict=True):
        rows.set(index, chosen)
    count = len(params)
    fields = RowFields(
        seeds=np.zeros(count, np.int64),
        temperatures=np.zeros(count, np.float32),
        top_ps=np.zeros(count, np.float32),
        log_min_ps=np.zeros(count, np.float32),
        top_ks=np.zeros(count, np.int32),
        ends=np.zeros((count, MAX_ENDS), np.int32),
    )
    places = np.array(indices), np.array(lengths)
    rows.read(*places, fields)
    out = torch.full((count,), -7)
    sample_rows(
        logits,
        **{name: torch.from_numpy(values) for name, values in vars(fields).items()},
        batch_indices=torch.from_numpy(places[0]),
        lengths=torch.from_numpy(places[1]),
        token_table=table,
        out=out,
    )
    return out.tolist(), rows.general(places[0]).tolist()

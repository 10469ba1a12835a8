"""Projections that launch Triton kernels, for networks that are not on a GPU."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from gptj_predictor.model.projections import MakeProjection
from gptj_predictor.model.row_quantization import Inputs
from gptj_predictor.model.triton_linear.projection import TritonProjection, Workspace


def triton_projections(shared: Workspace) -> MakeProjection:
    """What makes them, all with one workspace."""

    def make(
        weight: torch.Tensor,
        bias: torch.Tensor,
        scales: torch.Tensor | None,
        parts: Sequence[Inputs] | None,
    ) -> TritonProjection:
        return TritonProjection(weight, bias, scales, shared)

    return make

"""What a GPU's step runs, here in Triton's interpreter on tensors of the CPU."""

from __future__ import annotations

import numpy as np
import torch

from gptj_predictor.model.attention import Attention
from gptj_predictor.model.config import NetworkConfig
from gptj_predictor.model.network import GPTJNetwork, Placement
from gptj_predictor.model.triton_attention import TritonAttention
from gptj_predictor.sampling.fused import sample_rows
from gptj_predictor.sampling.params import SamplingParams
from gptj_predictor.sampling.rows import MAX_ENDS, RowFields, RowTable
from gptj_predictor.snapshot.layout import NetworkLayout
from tests.support import triton_interpreter  # noqa: F401  (quicker)
from tests.support.engines import CPU


def with_kernels(network: GPTJNetwork) -> GPTJNetwork:
    """The same network as a GPU computes it: plain weights, our kernels."""
    weights = {
        name: weight.to_dense() if weight.is_mkldnn else weight
        for name, weight in network.weights.items()
    }
    attentions: dict[torch.device, Attention] = {CPU: TritonAttention(processors=4)}
    config, dtype, placement = network.config, network.dtype, network.placement
    return GPTJNetwork(config, dtype, placement, weights, attentions)


def random_network(config: NetworkConfig, dtype: torch.dtype) -> GPTJNetwork:
    """One as a GPU computes it."""
    generator = torch.Generator().manual_seed(1)
    weights = {
        name: torch.randn(parameter.shape, generator=generator).to(dtype)
        for name, parameter in NetworkLayout(config).parameters.items()
    }
    placement = Placement.on(CPU, config.n_layer)
    return GPTJNetwork(config, dtype, placement, weights, {CPU: TritonAttention(processors=4)})


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
    places = np.array(indices, np.int64), np.array(lengths, np.int64)
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

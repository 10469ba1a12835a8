"""What a GPU's step runs, here in Triton's interpreter on tensors of the CPU."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from gptj_predictor.model.attention import Attention
from gptj_predictor.model.config import NetworkConfig
from gptj_predictor.model.network import GPTJNetwork, Placement
from gptj_predictor.model.quantization import WeightQuantization
from gptj_predictor.model.triton_attention import TritonAttention
from gptj_predictor.model.triton_linear.cuts import Card
from gptj_predictor.model.triton_linear.projection import Workspace
from gptj_predictor.sampling.fused import sample_rows
from gptj_predictor.sampling.params import SamplingParams
from gptj_predictor.sampling.rows import MAX_ENDS, RowFields, RowTable
from gptj_predictor.snapshot.layout import NetworkLayout
from tests.support import triton_interpreter  # noqa: F401  (quicker)
from tests.support.engines import CPU
from tests.support.projections import triton_projections
from tests.support.quantized import with_int8
from tests.support.recording import Recording


def with_kernels(network: GPTJNetwork, quantization: WeightQuantization = "none") -> GPTJNetwork:
    """The same network as a GPU computes it: plain weights or int8 ones of them, our kernels."""
    weights = {
        name: weight.to_dense() if weight.is_mkldnn else weight
        for name, weight in network.weights.items()
    }
    if quantization == "int8":
        weights = with_int8(weights)
    return _network(network.config, network.dtype, weights)


def _network(
    config: NetworkConfig, dtype: torch.dtype, weights: dict[str, torch.Tensor]
) -> GPTJNetwork:
    attentions: dict[torch.device, Attention] = {CPU: TritonAttention(processors=4)}
    make = triton_projections(Workspace(Card("an Ampere", 80, 4), CPU))
    placement = Placement.on(CPU, config.n_layer)
    return GPTJNetwork(config, dtype, placement, weights, attentions, make)


def kernels_win(calls: list[Callable[[], object]]) -> float:
    """A clock by which what launches a product's kernel is the quickest."""
    with Recording(execute=False) as recording:
        for call in calls:
            call()
    return 1.0 if "multiply" in recording.names else 2.0


def cublas_wins(calls: list[Callable[[], object]]) -> float:
    """A clock by which it is the slowest."""
    return -kernels_win(calls)


def random_network(
    config: NetworkConfig, dtype: torch.dtype, quantization: WeightQuantization = "none"
) -> GPTJNetwork:
    """One as a GPU computes it."""
    generator = torch.Generator().manual_seed(1)
    weights = {
        name: torch.randn(parameter.shape, generator=generator).to(dtype)
        for name, parameter in NetworkLayout(config).parameters.items()
    }
    return _network(config, dtype, with_int8(weights) if quantization == "int8" else weights)


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

"""Engines on a network, as large as the card allows."""

from __future__ import annotations

import gc

import torch

from gptj_predictor.devices.cuda_graphs import capture_for
from gptj_predictor.devices.memory import activation_bytes
from gptj_predictor.engine.core import EngineConfig, EngineCore
from gptj_predictor.engine.engine import Engine
from gptj_predictor.model.network import GPTJNetwork

PAGE_SIZE = 16
#: Left free beside weights, KV cache and what a step takes: graphs, libraries, the profiler.
RESERVE_BYTES = 4 * 2**30
#: On a CPU, which is for dry runs: more than they need.
CPU_PAGES = 1024


def pages_for(sequences: int, length: int) -> int:
    """Pages of so many sequences of so many tokens."""
    return sequences * -(-length // PAGE_SIZE)


def fitting_pages(network: GPTJNetwork, *, batch: int, prefill_tokens: int) -> int:
    """Pages that are left room for beside the largest step."""
    config, device = network.config, network.placement.head
    if device.type != "cuda":
        return CPU_PAGES
    step = activation_bytes(
        tokens=prefill_tokens,
        logit_rows=batch,
        hidden=config.n_embd,
        inner=config.inner_size,
        vocabulary=config.vocab_size,
        value_bytes=network.dtype.itemsize,
    )
    free_all()
    free = torch.cuda.mem_get_info(device)[0]
    page_bytes = 2 * config.n_layer * config.n_embd * network.dtype.itemsize * PAGE_SIZE
    return (free - step - RESERVE_BYTES) // page_bytes - 1  # the null page


def engine_config(*, batch: int, pages: int, prefill_tokens: int, caching: bool) -> EngineConfig:
    """Of an engine that runs so many sequences at once."""
    return EngineConfig(
        max_batch_size=batch,
        max_prefill_tokens=prefill_tokens,
        page_size=PAGE_SIZE,
        num_pages=pages,
        enable_prefix_caching=caching,
    )


def make_engine(network: GPTJNetwork, config: EngineConfig) -> Engine:
    """With graphs where they can be captured."""
    return Engine(network, config, capture_for(network))


def make_core(network: GPTJNetwork, config: EngineConfig) -> EngineCore:
    """The same without a thread, ready to step in the calling one."""
    core = EngineCore(network, config, capture_for(network))
    core.prepare()
    return core


def free_all() -> None:
    """Give back the memory of what nobody holds any more."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()

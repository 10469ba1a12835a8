"""Engines on a network, as large as the card allows."""

from __future__ import annotations

import gc
import sys

import torch

from gptj_predictor.devices.cuda_graphs import CudaCapture, capture_for
from gptj_predictor.devices.memory import gpu_cache_bytes, kv_cache_pages
from gptj_predictor.engine.core import EngineConfig, EngineCore
from gptj_predictor.engine.sizing import CudaGauge, measure_step
from gptj_predictor.model.network import GPTJNetwork

PAGE_SIZE = 16
#: Of what weights and the largest step leave, the KV cache gets what the server gives it.
KV_CACHE_SHARE = 0.9
#: On a CPU, which is for dry runs: more than they need.
CPU_PAGES = 1024


def pages_for(sequences: int, length: int) -> int:
    """Pages of so many sequences of so many tokens."""
    return sequences * -(-length // PAGE_SIZE)


def fitting_pages(
    network: GPTJNetwork, config: EngineConfig, capture: CudaCapture | None, engines: int = 1
) -> int:
    """Pages that fit beside the largest step and the graphs, which are tried as the server does.

    Args:
        network: With its weights in place.
        config: An engine's; its number of pages is not used.
        capture: What will capture the engine's decoding.
        engines: How many there will be at a time; together they have so many pages.

    Returns:
        0 if there is room for none, or not even for the step.
    """
    device = network.placement.head
    if device.type != "cuda":
        return CPU_PAGES
    try:
        taken = measure_step(network, config, capture, CudaGauge([device]))[device]
    except torch.OutOfMemoryError:
        return 0
    finally:
        if capture is not None:
            capture.renew_pool()
        free_all()
    return pages_beside(network, torch.cuda.mem_get_info(device)[0], taken * engines)


def pages_beside(network: GPTJNetwork, free: int, taken: int) -> int:
    """Pages for the KV cache of ``free`` bytes of which steps and graphs take some; 0 if none."""
    config, layers = network.config, network.placement.layers
    try:
        return kv_cache_pages(
            dict.fromkeys(layers, gpu_cache_bytes(free, taken, KV_CACHE_SHARE)),
            layers,
            page_size=PAGE_SIZE,
            token_bytes=2 * config.n_embd * network.dtype.itemsize,
            max_pages=sys.maxsize,
        )
    except ValueError:
        return 0


def engine_config(*, batch: int, pages: int, prefill_tokens: int, caching: bool) -> EngineConfig:
    """Of an engine that runs so many sequences at once."""
    return EngineConfig(
        max_batch_size=batch,
        max_prefill_tokens=prefill_tokens,
        page_size=PAGE_SIZE,
        num_pages=pages,
        enable_prefix_caching=caching,
    )


def make_core(network: GPTJNetwork, config: EngineConfig) -> EngineCore:
    """An engine without a thread, ready to step in the calling one; with graphs where possible."""
    core = EngineCore(network, config, capture_for(network))
    core.prepare()
    return core


def free_all() -> None:
    """Give back the memory of what nobody holds any more."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()

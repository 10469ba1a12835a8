"""What an engine says of itself, step by step."""

from __future__ import annotations

from dataclasses import replace

from gptj_predictor.engine.core import EngineCore
from gptj_predictor.engine.sequence import Sequence
from tests.support.engines import CPU, GREEDY, load, make_config
from tests.support.reference import ReferenceModel

PROMPT = list(range(1, 11))  # two full pages of four tokens, and two tokens
PARAMS = replace(GREEDY, min_length=13, max_length=13)


def test_stats_count_what_happened(small: ReferenceModel) -> None:
    network = load(small.folder)
    core = EngineCore(network, make_config(network, max_batch_size=1))
    pages = core.info().config.num_pages
    start = {
        "num_waiting": 0,
        "num_running": 0,
        "used_pages": 0,
        "free_pages": pages,
        "num_steps": 0,
        "num_prompt_tokens": 0,
        "num_generated_tokens": 0,
        "num_preemptions": 0,
        "num_prefix_query_tokens": 0,
        "num_prefix_hit_tokens": 0,
    }

    def stats() -> dict[str, object]:
        return {name: getattr(core.stats(), name) for name in start}

    assert stats() == start
    first, second = Sequence(list(PROMPT), PARAMS), Sequence(list(PROMPT), PARAMS)
    core.add(first)
    core.add(second)
    assert stats() == start | {"num_waiting": 2}
    core.step()
    assert stats() == start | {
        "num_waiting": 1,
        "num_running": 1,
        "used_pages": 3,
        "free_pages": pages - 3,
        "num_steps": 1,
        "num_prompt_tokens": 10,
        "num_generated_tokens": 1,
        "num_prefix_query_tokens": 10,
    }
    while core.has_work:
        core.step()
    assert stats() == start | {
        "num_steps": 6,
        "num_prompt_tokens": 20,
        "num_generated_tokens": 6,
        "num_prefix_query_tokens": 20,
        "num_prefix_hit_tokens": 8,
    }
    assert first.token_ids == second.token_ids


def test_info_is_the_network_and_the_sizes(small: ReferenceModel) -> None:
    network = load(small.folder)
    config = make_config(network)
    info = EngineCore(network, config).info()
    model = small.model
    assert info.config is config
    assert info.max_context == 128
    assert info.kv_cache_tokens == config.num_pages * config.page_size
    assert info.kv_bytes_per_token == 2 * 2 * 48 * 4  # keys and values, layers, hidden size, fp32
    weights = sum(weight.numel() for weight in model.parameters())
    without_bias = 3 * 48 * 2  # q, k and v of both layers have room for one
    assert info.step_weight_bytes == 4 * (weights + without_bias - 67 * 48)
    assert info.devices == (CPU,)
    assert list(info.attention) == [CPU]
    assert (info.precision, info.quantization) == ("float32", "none")

"""A real server under a memory limit: its largest load does not take more than the limit leaves."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from gptj_predictor.settings import CPU_KV_CACHE_SHARE
from tests.support.cgroups import MIB, CgroupTree
from tests.support.metrics import Scrape
from tests.support.servers import RunningServer
from tests.support.sparse import write_sparse_snapshot

#: A server that looks up its cgroups in a made-up tree, whose path is in the environment.
LIMITED = """
import os, pathlib
from gptj_predictor.devices import cgroups

cgroups.ROOT = pathlib.Path(os.environ["CGROUP_ROOT"])
from gptj_predictor.__main__ import main
main()
"""

#: Bytes that the limit leaves beside the weights.
LEFT = 400 * MIB

#: Prompts that together have more tokens than LEFT holds: 32 KiB each.
PROMPTS, WORDS = 8, 1900


@pytest.fixture(scope="module")
def snapshot(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small network whose KV cache is large."""
    folder = tmp_path_factory.mktemp("snapshot")
    shape = {
        "n_layer": 32,
        "n_embd": 128,
        "n_head": 2,
        "vocab_size": 2048,
        "bos_token_id": 0,
        "eos_token_id": 0,
    }
    write_sparse_snapshot(folder, "F32", **shape)
    return folder


def test_the_largest_load_fits_the_limit(tmp_path: Path, snapshot: Path) -> None:
    flags = ("--model", str(snapshot), "--device", "cpu", "--precision", "native")
    used = 300 * MIB
    CgroupTree(tmp_path, version=1).memory("/", limit=used + LEFT, used=used)
    with RunningServer(*flags, program=LIMITED, CGROUP_ROOT=str(tmp_path)) as server:
        server.wait_until_ready()
        process = psutil.Process(server.process.pid)
        before = process.memory_info().rss
        with ThreadPoolExecutor(PROMPTS) as callers:
            texts = [f"{number}" + " the" * WORDS for number in range(PROMPTS)]
            answers = [
                callers.submit(server.predict, [text], max_new_tokens=4, min_new_tokens=4)
                for text in texts
            ]
            highest = 0
            while not all(answer.done() for answer in answers):
                highest = max(highest, process.memory_info().rss - before)
                time.sleep(0.01)
            for answer in answers:
                answer.result()
        scrape = Scrape(server.client.get("/metrics").text)
        assert scrape.value("gptj_prompt_tokens_total") * 32 * 1024 > LEFT
        capacity = scrape.value("gptj_kv_cache_pages") * 16 * 32 * 1024
        assert 0.9 * CPU_KV_CACHE_SHARE * LEFT < capacity <= CPU_KV_CACHE_SHARE * LEFT
        assert highest < LEFT

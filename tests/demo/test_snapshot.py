"""The bundled snapshot is what its card says."""

from __future__ import annotations

import json
from typing import Any

import torch
from transformers import AutoTokenizer, GPTJForCausalLM

from gptj_predictor.demo import DEMO_SNAPSHOT
from gptj_predictor.snapshot.folder import SnapshotFolder
from gptj_predictor.snapshot.load import check_tensors


def test_it_is_small_and_whole() -> None:
    assert sum(file.stat().st_size for file in DEMO_SNAPSHOT.iterdir()) <= 6_000_000
    folder = SnapshotFolder.open(DEMO_SNAPSHOT)
    check_tensors(folder)
    assert folder.config.n_positions == 2048
    assert folder.dtype is torch.bfloat16


def test_transformers_loads_it_without_a_remark() -> None:
    loaded: Any = GPTJForCausalLM.from_pretrained(DEMO_SNAPSHOT, output_loading_info=True)
    info = loaded[1]
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert not info["mismatched_keys"]


def test_any_text_survives_its_tokenizer() -> None:
    tokenizer = AutoTokenizer.from_pretrained(DEMO_SNAPSHOT)
    for text in ("SELECT * FROM team;", " tabs\tand\n\nlines ", "naïve 日本語 🦄", "\x00\x7f"):
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_no_trace_of_where_it_was_made() -> None:
    """The configuration does not name the folder that it was saved to."""
    for file in DEMO_SNAPSHOT.glob("*.json"):
        raw = json.loads(file.read_text())
        assert "_name_or_path" not in raw

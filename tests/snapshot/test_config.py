"""Every ``config.json`` is read as transformers reads it."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from transformers import AutoConfig, GPTJConfig

from gptj_predictor.demo import DEMO_SNAPSHOT
from gptj_predictor.model.config import NetworkConfig
from gptj_predictor.snapshot.config import parse_config

NAMES = [field.name for field in dataclasses.fields(NetworkConfig) if field.name != "eos_token_ids"]
GPTJ = {"model_type": "gptj"}


def assert_same(ours: NetworkConfig, theirs: GPTJConfig) -> None:
    assert {n: getattr(ours, n) for n in NAMES} == {n: getattr(theirs, n) for n in NAMES}
    ends = theirs.eos_token_id
    assert list(ours.eos_token_ids) == (
        [] if ends is None else [ends] if isinstance(ends, int) else ends
    )


def test_defaults() -> None:
    assert_same(NetworkConfig(), GPTJConfig())


@pytest.mark.parametrize(
    "raw",
    [
        {},
        json.loads((DEMO_SNAPSHOT / "config.json").read_text()),
        GPTJConfig(n_inner=77, tie_word_embeddings=True, activation_function="relu").to_dict(),
        {"n_inner": None, "eos_token_id": None},
        {"eos_token_id": [3, 1]},
        {"hidden_size": 64, "num_attention_heads": 4, "num_hidden_layers": 3},
        {"max_position_embeddings": 99, "n_positions": 77},
        {"something": "else", "eos_token_ids": "else"},
    ],
    ids=str,
)
def test_values(raw: dict[str, object], tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(raw | GPTJ))
    assert_same(parse_config(raw), AutoConfig.from_pretrained(tmp_path))


@pytest.mark.parametrize("value", ["two", 2.5, 2, True, None, [1], {}], ids=repr)
@pytest.mark.parametrize("name", [*NAMES, "eos_token_id"])
def test_types_are_refused_as_by_transformers(name: str, value: object, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({name: value} | GPTJ))
    try:
        theirs = AutoConfig.from_pretrained(tmp_path)
    except Exception:  # many types
        with pytest.raises(ValueError, match=name):
            parse_config({name: value})
    else:
        assert_same(parse_config({name: value}), theirs)


def test_a_type_is_refused_under_another_name() -> None:
    """transformers takes it, and fails when it computes with it."""
    with pytest.raises(ValueError, match="n_embd is 'two'"):
        parse_config({"hidden_size": "two"})

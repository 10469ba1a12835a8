"""Snapshots with int8 weights, as a pull makes them."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

import torch

from gptj_predictor.model.quantization import quantize, scales_of
from gptj_predictor.pull.convert import Storage, convert, open_checkpoint
from gptj_predictor.pull.resolve import scale_sharers
from gptj_predictor.snapshot.folder import read_config
from gptj_predictor.snapshot.layout import is_multiplied, scale_of


def store_int8(source: Path, folder: Path, dtype: torch.dtype) -> Path:
    """Convert a snapshot to int8 weights out of values in a dtype; the new folder.

    Only the tensors of a tied head are left out.
    """
    folder.mkdir()
    for file in source.iterdir():
        if file.suffix == ".json":
            shutil.copy(file, folder)
    weights = [file.name for file in source.glob("*.safetensors")]
    storage = Storage(dtype, scale_sharers(read_config(source)))
    convert(open_checkpoint(source, weights), folder, storage, lambda: None)
    return folder


def with_int8(weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A network's plain weights, those of products as int8 with their scales."""
    made = dict(weights)
    for name, weight in weights.items():
        if is_multiplied(name):
            scales = made[scale_of(name)] = scales_of(weight)
            made[name] = quantize(weight, scales)
    return made

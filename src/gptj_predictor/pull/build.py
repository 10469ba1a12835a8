"""Building a snapshot out of the downloaded files: all of it but the manifest."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch

from gptj_predictor.common.dtypes import dtype_name
from gptj_predictor.common.files import write_whole
from gptj_predictor.pull.convert import (
    check_checkpoint,
    convert,
    is_servable,
    open_checkpoint,
    stored_bytes,
)
from gptj_predictor.pull.job import Job, Plan, bytes_in
from gptj_predictor.snapshot.folder import read_json_object


def build(job: Job, plan: Plan) -> None:
    """Make the snapshot's files: moved as they are, if that will do, or else converted.

    Shards that a killed pull has written whole are kept.

    Raises:
        SnapshotError: the checkpoint is damaged, belongs to something else, would run code, or has
            values that the precision cannot hold; or there is no room.
        OSError: it cannot be written.
    """
    files = [file.name for file in plan.weights if not file.name.endswith(".json")]
    if is_servable(plan.source, files, plan.dtype):
        shutil.rmtree(plan.build, ignore_errors=True)
        plan.source.rename(plan.build)
        return
    sources = open_checkpoint(plan.source, files)
    check_checkpoint(sources, plan.shapes, plan.listing.model_id)
    plan.build.mkdir(exist_ok=True)
    for leftover in plan.build.iterdir():  # what a killed pull had half written, under any name
        if leftover.suffix != ".safetensors":
            leftover.unlink()
    for small in plan.small:
        shutil.copy(plan.source / small.name, plan.build)
    kept = {name: sources[name] for name in (*plan.shapes, "lm_head.weight") if name in sources}
    job.make_room(stored_bytes(kept, plan.dtype) - bytes_in(plan.build))
    convert(kept, plan.build, plan.dtype, job.check)
    _set_dtype(plan.build / "config.json", plan.dtype or next(iter(kept.values())).dtype)


def _set_dtype(config: Path, dtype: torch.dtype) -> None:
    """Say in a configuration what the weights are stored in, as transformers does."""
    content = read_json_object(config)
    content.pop("torch_dtype", None)
    content["dtype"] = dtype_name(dtype)
    write_whole(config, json.dumps(content, indent=2, sort_keys=True) + "\n")

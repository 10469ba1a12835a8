"""Building a snapshot out of the downloaded files: all of it but the manifest."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

from gptj_predictor.common.dtypes import dtype_name
from gptj_predictor.common.files import write_whole
from gptj_predictor.pull.convert import (
    Storage,
    check_checkpoint,
    convert,
    is_servable,
    open_checkpoint,
    stored_bytes,
)
from gptj_predictor.pull.job import Job, Plan, bytes_in
from gptj_predictor.snapshot.folder import read_json_object

#: Of a ``config.json`` beside int8 weights.
QUANTIZATION_CONFIG = {"quant_method": "gptj-predictor", "weights": "int8", "scales": "per output"}


def build(job: Job, plan: Plan) -> None:
    """Make the snapshot's files: moved as they are, if that will do, or else converted.

    Shards that a killed pull has written whole are kept.

    Raises:
        SnapshotError: the checkpoint is damaged, belongs to something else, would run code, or has
            values that the precision cannot hold; or there is no room.
        OSError: it cannot be written.
    """
    files = [file.name for file in plan.weights if not file.name.endswith(".json")]
    if is_servable(plan.source, files, plan.storage):
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
    job.make_room(stored_bytes(kept, plan.storage) - bytes_in(plan.build))
    convert(kept, plan.build, plan.storage, job.check)
    storage = plan.storage
    if storage.dtype is None:
        storage = replace(storage, dtype=next(iter(kept.values())).dtype)
    describe_weights(plan.build / "config.json", storage)


def describe_weights(config: Path, storage: Storage) -> None:
    """Say in a configuration how the weights are stored, as transformers does.

    Of int8 weights it says so under a method that transformers does not know, and so warns of:
    without that it would take the integers for the weights in silence.
    """
    content = read_json_object(config)
    content.pop("torch_dtype", None)
    if storage.dtype is not None:
        content["dtype"] = dtype_name(storage.dtype)
    if storage.quantized:
        content["quantization_config"] = QUANTIZATION_CONFIG
    write_whole(config, json.dumps(content, indent=2, sort_keys=True) + "\n")

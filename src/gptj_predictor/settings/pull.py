"""What the commands of the model cache do: ``gptj-predictor snapshot``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from gptj_predictor.settings.metadata import Positional, Switch, UnsetMeans
from gptj_predictor.settings.names import DEFAULT_MODEL_ID, MOUNTED_MODEL, TAG_PATTERN
from gptj_predictor.settings.server import Precision, Quantization


class PullSettings(BaseModel):
    """What ``gptj-predictor snapshot pull`` brings, and how; each field is an argument of it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model_id: Annotated[str, Positional("MODEL_ID")] = Field(
        DEFAULT_MODEL_ID, min_length=1, description="OWNER/NAME on the Hugging Face hub."
    )
    revision: str = Field("main", min_length=1, description="Branch, tag or commit of the model.")
    precision: Precision = Field(
        Precision.AUTO,
        description="Precision to store. auto: that of the GPU here, else bfloat16, or the "
        "checkpoint's own if that has 16 bits.",
    )
    quantization: Quantization = Field(
        Quantization.AUTO,
        description="auto, none: weights of --precision; int8: the products' weights as 8-bit "
        "integers with scales, made of weights in --precision; the files are half as large.",
    )
    dest: Path = Field(MOUNTED_MODEL, description="The model cache: the folder to fill.")
    tag: Annotated[str | None, UnsetMeans("none")] = Field(
        None,
        pattern=f"^{TAG_PATTERN}$",
        description="A name for what is pulled; serve --tag waits for just that.",
    )
    retries: int = Field(
        6, ge=0, description="Repeated attempts to download a file; pauses double from 1 second."
    )
    offline: Annotated[bool, Switch()] = Field(
        False, description="Use what is there, and no network."
    )
    verify: Annotated[bool, Switch()] = Field(
        False,
        description="Read all of a version that is there, and make it anew if it is damaged.",
    )
    keep_source: Annotated[bool, Switch()] = Field(
        False, description="Keep what was downloaded beside what was made of it."
    )


class SnapshotSettings(BaseModel):
    """Where ``snapshot verify`` and ``snapshot prune`` look."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    folder: Annotated[Path, Positional("DIR")] = Field(
        MOUNTED_MODEL, description="A model cache, a model's root in it, or one version."
    )


class InfoSettings(SnapshotSettings):
    """Where ``snapshot info`` looks, and how it prints."""

    as_json: Annotated[bool, Switch("json")] = Field(False, description="Print it as JSON.")

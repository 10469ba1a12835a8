"""Every setting and its default, in one place."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    field_validator,
)

from gptj_predictor.devices.precision import Precision

#: Where KServe mounts the volume that ``storageUri`` names.
MOUNTED_MODEL = Path("/mnt/models")

#: The id that the wire name is made from when none is given.
DEFAULT_MODEL_ID = "EleutherAI/gpt-j-6B"


#: Tags of snapshots: names of files.
TAG_PATTERN = r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}"

_DEVICE = re.compile(r"cpu|cuda(:\d{1,3})?")


def _temperature(value: float) -> float:
    if value != 0 and not 0.01 <= value <= 5:
        raise ValueError("0, or 0.01 to 5")
    return value


StopString = Annotated[str, StringConstraints(min_length=1, max_length=64)]


class GenerationParameters(BaseModel):
    """How text is generated: a request's ``parameters``, and the server's defaults for them.

    The model adds its own limits (:class:`Limits`): lengths end at the context, ``top_k`` at the
    vocabulary.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    min_length: int = Field(
        1, ge=0, description="Least total length in tokens, prompt included; at most the context."
    )
    max_length: int = Field(
        1024,
        ge=1,
        description="Greatest total length in tokens, prompt included; at most the context.",
    )
    min_new_tokens: int | None = Field(
        None, ge=0, description="Least number of new tokens; wins over min_length."
    )
    max_new_tokens: int | None = Field(
        None, ge=1, description="Greatest number of new tokens; wins over max_length."
    )
    temperature: Annotated[float, AfterValidator(_temperature)] = Field(
        1.0, ge=0, le=5, description="0 for the most likely token each time, or 0.01 to 5."
    )
    top_k: int = Field(
        50, ge=0, description="Sample among the k most likely tokens; 0 for all of them."
    )
    top_p: float = Field(
        0.9, gt=0, le=1, description="Sample among the likeliest tokens that sum to p."
    )
    repetition_penalty: float = Field(
        1.0, ge=0.1, le=10, description="Above 1 avoids tokens of the prompt and the output."
    )
    do_sample: bool = Field(True, description="false takes the most likely token each time.")
    seed: int | None = Field(
        None, ge=0, lt=2**63, description="Same prompt, parameters and seed: same text."
    )
    num_return_sequences: int = Field(1, ge=1, le=8, description="Texts per prompt.")
    stop: StopString | Annotated[list[StopString], Field(min_length=1, max_length=4)] | None = (
        Field(
            None,
            description="The text ends before this string; up to 4 strings of up to 64 characters.",
        )
    )
    return_full_text: bool = Field(
        True, description="Whether generated_text begins with the prompt."
    )

    def over(self, defaults: GenerationParameters) -> GenerationParameters:
        """These parameters, with the defaults where nothing was said.

        A default length gives way to a length that was said: it never contradicts a request.
        """
        said = self.model_dump(exclude_unset=True)
        merged = defaults.model_dump() | said
        if "max_length" in said and "max_new_tokens" not in said:
            merged["max_new_tokens"] = None
        if "min_length" in said and "min_new_tokens" not in said:
            merged["min_new_tokens"] = None
        return GenerationParameters.model_construct(_fields_set=set(said), **merged)

    @property
    def stop_strings(self) -> tuple[str, ...]:
        """``stop`` as a tuple."""
        if self.stop is None:
            return ()
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)


@dataclass(frozen=True)
class Limits:
    """What the loaded model and the server allow.

    Attributes:
        context: Tokens of the longest sequence.
        vocabulary: Number of tokens.
        max_instances: Prompts in one request.
        max_body_bytes: Size of a request's body.
    """

    context: int
    vocabulary: int
    max_instances: int
    max_body_bytes: int

    def allowed(self) -> dict[str, str]:
        """For every parameter, what a client may send."""
        length = f"an integer from 1 to {self.context}"
        length_or_zero = f"an integer from 0 to {self.context}"
        return {
            "min_length": length_or_zero,
            "max_length": length,
            "min_new_tokens": length_or_zero,
            "max_new_tokens": length,
            "temperature": "0, or a number from 0.01 to 5",
            "top_k": f"an integer from 0 (off) to {self.vocabulary}",
            "top_p": "a number above 0 and up to 1",
            "repetition_penalty": "a number from 0.1 to 10",
            "do_sample": "true or false",
            "seed": f"an integer from 0 to {2**63 - 1}",
            "num_return_sequences": "an integer from 1 to 8",
            "stop": "a string of 1 to 64 characters, or a list of 1 to 4 of them",
            "return_full_text": "true or false",
        }

    def exceeded_by(self, parameters: GenerationParameters) -> str | None:
        """The name of a parameter beyond the model's own limits, if there is one."""
        greatest = {
            "min_length": self.context,
            "max_length": self.context,
            "min_new_tokens": self.context,
            "max_new_tokens": self.context,
            "top_k": self.vocabulary,
        }
        for name, limit in greatest.items():
            value = getattr(parameters, name)
            if value is not None and value > limit:
                return name
        return None


class ServerSettings(BaseModel):
    """How the server is set up; each field is a flag of ``gptj-predictor serve``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str | None = Field(
        None,
        min_length=1,
        description="Snapshot folder, folder with a model's versions, or a model id found in the "
        "cache. Default: what is in the cache, or the bundled demo if that does not exist.",
    )
    cache: Path = Field(
        MOUNTED_MODEL, description="Folder that gptj-predictor snapshot pull fills."
    )
    tag: str | None = Field(
        None,
        pattern=f"^{TAG_PATTERN}$",
        description="Serve the version that a pull gave this tag. Default: the latest pull's.",
    )
    wait_for_snapshot: float = Field(
        0, ge=0, description="Seconds to wait for a pull to publish a snapshot before giving up."
    )
    check_digests: bool = Field(
        True, description="Compare what is loaded with the digests that the pull noted."
    )
    model_id: str = Field(
        DEFAULT_MODEL_ID,
        min_length=1,
        description="Model id that --model_name is made from where it is not given.",
    )
    precision: Precision = Field(
        Precision.AUTO,
        description="auto: by device; native: as the checkpoint is stored; or fp16, bfloat16.",
    )
    device: str = Field(
        "auto",
        description="auto (as many GPUs as the weights need, then host memory), cpu, cuda, cuda:N, "
        "or several with commas, used in their order.",
    )
    threads: int | None = Field(
        None,
        ge=1,
        description="CPU threads. Default: what the container's CPU limit allows, or fewer for a "
        "small model.",
    )
    max_batch_size: int = Field(
        256, ge=1, description="Sequences that are decoded together; more wait their turn."
    )
    max_prefill_tokens: int | None = Field(
        None,
        ge=1,
        description="Prompt tokens that one step takes in beside those that decode; fewer make "
        "shorter pauses for these. Default: 2048 on a GPU, 256 on a CPU.",
    )
    page_size: int = Field(16, ge=1, le=256, description="Tokens per page of the KV cache.")
    kv_cache_share: float = Field(
        0.9, gt=0, lt=1, description="Share of the free GPU memory that the KV cache takes."
    )
    kv_cache_gib: float | None = Field(
        None,
        gt=0,
        description="Size of the KV cache on each device in GiB instead. Default on a CPU: a "
        "quarter of the free memory, at most 4.",
    )
    enable_prefix_caching: bool = Field(
        True, description="Keep and share the cache of prompts that begin alike."
    )
    cuda_graphs: bool = Field(True, description="Replay decoding from CUDA graphs on a GPU.")
    max_instances: int = Field(32, ge=1, description="Prompts in one request.")
    max_body_bytes: int = Field(2_000_000, ge=1, description="Greatest size of a request's body.")
    receive_timeout_seconds: float = Field(
        30, gt=0, description="Time for a request to arrive whole; then its connection is closed."
    )

    @field_validator("device")
    @classmethod
    def _known_device(cls, value: str) -> str:
        if value == "auto" or all(map(_DEVICE.fullmatch, value.split(","))):
            return value
        raise ValueError("allowed are auto, or cpu, cuda and cuda:N with commas between them")


class BenchmarkSettings(BaseModel):
    """What ``gptj-predictor benchmark`` measures; each field is a flag of it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    batch_size: int = Field(1, ge=1, description="Greatest batch; all from 1 on are measured.")
    min_tokens: int = Field(128, ge=2, description="Shortest response in tokens, prompt included.")
    max_tokens: int = Field(
        2048,
        ge=2,
        description="Longest response in tokens, prompt included; the default gives way to a "
        "shorter context.",
    )
    step: int = Field(128, ge=1, description="From one length to the next.")
    prompt_tokens: int = Field(16, ge=1, description="Tokens of every prompt.")
    warmup_rounds: int = Field(
        1, ge=0, description="Rounds before the measured ones at every batch and length."
    )
    rounds: int = Field(3, ge=1, description="Measured rounds at every batch and length.")
    seed: int = Field(0, ge=0, lt=2**63, description="Decides prompts and sampling.")
    output: Path = Field(Path("benchmark-results"), description="Folder for the results.")
    url: str | None = Field(
        None,
        pattern="^https?://",
        description="Measure a running service: its address, or that of its V1 endpoint. --model "
        "then names the snapshot that it serves, for the tokenizer. Default: the engine in this "
        "process.",
    )
    reference: str = Field(
        "A100-2",
        description="Published column that the report compares with: V100, RTX5000, A5000, A40, "
        "A100-1 or A100-2.",
    )


def wire_name(model_id: str) -> str:
    """The model id as it stands in a URL: lower case, only letters, digits, ``_`` and ``-``."""
    return re.sub(r"[^a-z0-9_-]", "-", model_id.lower())

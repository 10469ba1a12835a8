"""How the server and its engine are set up: ``gptj-predictor serve``."""

from __future__ import annotations

import enum
import ipaddress
import re
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, field_validator

from gptj_predictor.settings.metadata import UnsetMeans, ZeroMeans
from gptj_predictor.settings.names import DEFAULT_MODEL_ID, MOUNTED_MODEL, TAG_PATTERN

#: Prompt tokens in one step where nothing is set. On a GPU 2,048 tokens fill its arithmetic units;
#: on a CPU fewer already do, and a step takes longer.
GPU_PREFILL_TOKENS = 2048
CPU_PREFILL_TOKENS = 256

#: The KV cache on a CPU where nothing is set. Its memory is shared with others: this share of what
#: is free after loading, and no more than the limit in bytes.
CPU_KV_CACHE_SHARE = 0.25
CPU_KV_CACHE_LIMIT_BYTES = 4 * 2**30

#: Host memory that the KV cache on a CPU leaves free beside a step's: for requests, answers, the
#: threads' own memory, and what the allocator holds back.
CPU_RESERVE_BYTES = 256 * 2**20

#: Share of a GPU's free memory that weights may fill; the rest is for the KV cache and activations.
GPU_WEIGHT_SHARE = 0.85
#: The same for host memory, of which a server needs little else.
CPU_WEIGHT_SHARE = 0.9

#: Bytes of weights that are worth a CPU thread, which reads so much in about a millisecond. With
#: less the threads wait for each other longer than they compute, the more so beside other programs:
#: a step of the demo took 1.7 ms on one thread or two, and beside one busy program 1.7 or 11.
THREAD_BYTES = 16 * 2**20

_DEVICE = re.compile(r"cpu|cuda(:\d{1,3})?")

#: As a browser writes it: scheme, host and port, nothing behind (RFC 6454, section 6.2).
_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://(\[[0-9a-f:.]+\]|[a-z0-9_.-]+)(:\d{1,5})?")


class Precision(enum.StrEnum):
    """What a user may ask for with ``--precision``."""

    AUTO = "auto"
    NATIVE = "native"
    FP16 = "fp16"
    BFLOAT16 = "bfloat16"


class Quantization(enum.StrEnum):
    """What a user may ask for with ``--quantization``."""

    AUTO = "auto"
    NONE = "none"
    INT8 = "int8"


class LogFormat(enum.StrEnum):
    """What ``--log_format`` may be."""

    TEXT = "text"
    JSON = "json"


class MetricsCompat(enum.StrEnum):
    """Whose names the metrics have beside our own: ``--metrics_compat``."""

    NONE = "none"
    VLLM = "vllm"


class ServerSettings(BaseModel):
    """How the server is set up; each field is a flag of ``gptj-predictor serve``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: Annotated[
        str | None,
        UnsetMeans("what is in the model cache, or the bundled demo if that does not exist"),
    ] = Field(
        None,
        min_length=1,
        description="Snapshot folder, folder with a model's versions, or a model id found in the "
        "model cache.",
    )
    cache: Path = Field(
        MOUNTED_MODEL,
        description="The model cache: the folder that gptj-predictor snapshot pull fills.",
    )
    tag: Annotated[str | None, UnsetMeans("the latest pull's version")] = Field(
        None,
        pattern=f"^{TAG_PATTERN}$",
        description="Serve the version that a pull gave this tag.",
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
    quantization: Quantization = Field(
        Quantization.AUTO,
        description="auto: as the snapshot is stored; none: weights of --precision; int8: the "
        "products' weights as 8-bit integers, half of 16 bits, made while loading where the "
        "snapshot does not store them.",
    )
    device: str = Field(
        "auto",
        description="auto (as many GPUs as the weights need, then host memory), cpu, cuda, cuda:N, "
        "or several with commas, used in their order.",
    )
    threads: Annotated[
        int | None,
        UnsetMeans("what the container's CPU limit allows, fewer for a small model"),
    ] = Field(None, ge=1, description="CPU threads.")
    max_batch_size: int = Field(
        256, ge=1, description="Sequences that are decoded together; more wait their turn."
    )
    max_prefill_tokens: Annotated[
        int | None,
        UnsetMeans(f"{GPU_PREFILL_TOKENS} on a GPU, {CPU_PREFILL_TOKENS} on a CPU"),
    ] = Field(
        None,
        ge=1,
        description="Prompt tokens that one step takes in beside the sequences that decode; fewer "
        "make shorter pauses for these.",
    )
    page_size: int = Field(16, ge=1, le=256, description="Tokens per page of the KV cache.")
    kv_cache_share: float = Field(
        0.9, gt=0, lt=1, description="Share of the free GPU memory that the KV cache takes."
    )
    kv_cache_gib: Annotated[
        float | None,
        UnsetMeans(
            f"on a GPU by --kv_cache_share, on a CPU {CPU_KV_CACHE_SHARE:.0%} of the free memory, "
            f"at most {CPU_KV_CACHE_LIMIT_BYTES >> 30} GiB"
        ),
    ] = Field(None, gt=0, description="Size of the KV cache on each device in GiB.")
    enable_prefix_caching: bool = Field(
        True, description="Keep and share the KV cache of prompts that begin alike."
    )
    cuda_graphs: bool = Field(True, description="Replay decoding from CUDA graphs on a GPU.")
    max_queued_requests: int = Field(
        512,
        ge=1,
        description="Requests that wait for their first place in the batch; more are refused.",
    )
    max_queued_tokens: int = Field(
        500_000,
        ge=1,
        description="Prompt tokens that wait for a place in the batch; more are refused.",
    )
    max_request_seconds: float = Field(
        3600,
        gt=0,
        description="Seconds that a request may take. A client may ask for less with the header "
        "x-request-timeout.",
    )
    drain_delay: float = Field(
        0,
        ge=0,
        description="Seconds after a signal in which new requests are still served, because "
        "routers learn late that the server is not ready.",
    )
    grace_period: float = Field(
        30,
        gt=0,
        description="Seconds from a signal to the end of the process. Shortly before it, running "
        "texts end with what they have.",
    )
    step_timeout_seconds: Annotated[float, ZeroMeans("off")] = Field(
        300,
        ge=0,
        description="Seconds that a step may take. After them the server counts as hanging: it "
        "ends, with exit code 1.",
    )
    chat_template: Annotated[Path | None, UnsetMeans("none, and chats are refused")] = Field(
        None,
        description="File with a chat template in Jinja, for OpenAI's chat completions. GPT-J has "
        "none of its own.",
    )
    max_instances: int = Field(32, ge=1, description="Prompts in one request.")
    max_body_bytes: int = Field(
        2_000_000, ge=1, description="Maximum size of a request's body in bytes."
    )
    receive_timeout_seconds: float = Field(
        30,
        gt=0,
        description="Seconds for a request to arrive whole; then its connection is closed.",
    )

    # Who may ask, and what the log says of it.
    api_key_file: Annotated[Path | None, UnsetMeans("none, and everyone may ask")] = Field(
        None,
        description="File with one API key a line, read again when it changes; a request must "
        "carry one of them as Authorization: Bearer KEY.",
    )
    open_metrics: bool = Field(
        False, description="With --api_key_file: answer /metrics without a key."
    )
    trusted_proxies: Annotated[str, UnsetMeans("none, and the header is passed over")] = Field(
        "",
        description="Addresses or networks, with commas between them, whose X-Forwarded-For "
        "header says who the caller is.",
    )
    cors_origins: Annotated[str, UnsetMeans("none, and no other page may ask")] = Field(
        "",
        description="Origins whose pages a browser lets ask, with commas between them, such as "
        "https://example.com; or * for all.",
    )
    log_format: LogFormat = Field(
        LogFormat.TEXT, description="text: lines for people; json: one JSON object a line."
    )
    log_prompts: bool = Field(False, description="Log prompts and texts too.")
    metrics_compat: MetricsCompat = Field(
        MetricsCompat.NONE,
        description="vllm: /metrics also has the metrics that routers, autoscalers and dashboards "
        "of vLLM know.",
    )

    @field_validator("device")
    @classmethod
    def _known_device(cls, value: str) -> str:
        if value == "auto" or all(map(_DEVICE.fullmatch, value.split(","))):
            return value
        raise ValueError("allowed are auto, or cpu, cuda and cuda:N with commas between them")

    @field_validator("trusted_proxies")
    @classmethod
    def _addresses_or_networks(cls, value: str) -> str:
        for part in _parts(value):
            try:
                ipaddress.ip_network(part)
            except ValueError as error:
                raise ValueError(
                    f"{error}; allowed are addresses and networks such as 10.0.0.0/8, with commas "
                    "between them"
                ) from None
        return value

    @field_validator("cors_origins")
    @classmethod
    def _origins(cls, value: str) -> str:
        for part in _parts(value):
            if part != "*" and not _ORIGIN.fullmatch(part):
                raise ValueError(
                    f"{part!r} is no origin; allowed are * and origins such as https://example.com "
                    "or http://localhost:3000, with commas between them"
                )
        return value

    @property
    def origins(self) -> tuple[str, ...]:
        """``cors_origins``, one by one."""
        return _parts(self.cors_origins)

    @property
    def proxies(self) -> tuple[str, ...]:
        """``trusted_proxies``, one by one."""
        return _parts(self.trusted_proxies)


def _parts(value: str) -> tuple[str, ...]:
    """What stands between commas."""
    return tuple(filter(None, (part.strip() for part in value.split(","))))

"""``results.json``: model, machine, settings and figures. These classes are its schema.

Times are in seconds, sizes in bytes, rates per second; what is not known is ``null``. New fields do
not change the number in the schema's name; another meaning of a field does.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from gptj_predictor.bench.errors import PlanError
from gptj_predictor.common.files import write_whole

SCHEMA = "gptj-predictor-benchmark/1"
RESULTS_FILE = "results.json"


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class Device(_Part):
    """What computes. Clocks and power are those at the start, while nothing ran."""

    type: str = Field(description="cpu or cuda.")
    names: list[str] = Field(description="Of every device that holds a part of the model.")
    memory_bytes: int | None = Field(None, description="Of all of them.")
    compute_capability: str | None = None
    driver: str | None = Field(None, description="Of the GPU.")
    clocks: dict[str, str] | None = Field(None, description="As nvidia-smi names and prints them.")
    threads: int | None = Field(None, description="That compute, on a CPU.")


class Run(_Part):
    """The model and the machine.

    The model is described by the snapshot that ``--model`` names. Over HTTP only its tokenizer is
    compared with the server's, and the server's device is unknown.
    """

    path: Literal["in process", "HTTP"]
    model: str | None = Field(description="Id in the snapshot's manifest, or bundled demo.")
    commit: str | None = Field(None, description="From the manifest.")
    parameters: int = Field(description="Number of weights in the checkpoint.")
    precision: str | None = Field(None, description="What was computed in.")
    quantization: str | None = Field(
        None, description="Of the weights that were multiplied with: none or int8."
    )
    device: Device | None = None
    bandwidth: float | None = Field(
        None,
        description="Bytes a second: of a copy within a GPU's memory, read and written bytes "
        "counted, or of a plain read on a CPU. Null with several devices and over HTTP.",
    )
    attention: dict[str, str] | None = Field(
        None, description="How each device attends. Null over HTTP, like the next."
    )
    cuda_graphs: bool | None = Field(
        None, description="Whether decoding was replayed from CUDA graphs."
    )
    products: dict[str, str] | None = Field(
        None,
        description="How products were computed where a measurement at the start chose, by "
        "device, product and rows. Null over HTTP.",
    )
    kv_cache_tokens: int | None = Field(None, description="Tokens that the KV cache has room for.")
    first_token: Literal["event", "stream", "one-token request"] = Field(
        description="How first_token_seconds were measured: within the round by the engine's "
        "events or by a stream's first pieces of text, or by separate requests for one token after "
        "other prompts."
    )
    versions: dict[str, str] = Field(description="Over HTTP: the client's.")
    started: str = Field(description="UTC.")
    resumed: list[str] = Field([], description="UTC, each time that the run was resumed.")


class Settings(_Part):
    """What was asked for."""

    batch_size: int
    lengths: list[int] = Field(description="Tokens of a response, prompt included.")
    prompt_tokens: int
    warmup_rounds: int
    rounds: int
    seed: int
    sampling: dict[str, int | float]
    engine: dict[str, str | int | float | bool | None] = Field(
        {}, description="The engine's settings; empty over HTTP."
    )


class Round(_Part):
    """One batch, from its submission until its last sequence has ended."""

    seconds: float
    first_token_seconds: float = Field(
        description="Time to first token (TTFT): until every sequence had its first token."
    )
    counted_tokens: int = Field(
        description="New tokens of all sequences together. In process: counted one by one. Over "
        "HTTP: the response's texts are tokenized, which may give other tokens than the server "
        "sampled."
    )


class Cell(_Part):
    """A batch size and a length. It has figures if the status is ``done``."""

    batch: int
    tokens: int = Field(description="Of each response, prompt included.")
    new_tokens: int = Field(description="Of each response, without the prompt.")
    status: Literal["done", "does_not_fit", "failed"]
    reason: str | None = Field(None, description="Why there are no figures.")
    rounds: list[Round] = []
    seconds: float | None = Field(None, description="Median (p50) of the rounds.")
    seconds_p95: float | None = Field(
        None, description="95th percentile, interpolated between the rounds."
    )
    first_token_seconds: float | None = Field(None, description="Median (p50) of the rounds.")
    first_token_seconds_p95: float | None = None
    output_token_seconds: float | None = Field(
        None,
        description="Time per output token (TPOT), median (p50) of the rounds. A round's is "
        "(seconds - first_token_seconds) / (new_tokens - 1): what every further token took that "
        "all sequences got. Null with one new token.",
    )
    output_token_seconds_p95: float | None = None
    tokens_per_second_per_sequence: float | None = Field(
        None, description="new_tokens / seconds: the prompt's time counts, its tokens do not."
    )
    tokens_per_second: float | None = Field(None, description="The same for the whole batch.")
    limit_seconds: float | None = Field(
        None,
        description="Time to read, at run.bandwidth, what every step must read: all weights but "
        "the embedding, and the KV cache of all sequences.",
    )
    limit_share: float | None = Field(None, description="limit_seconds / seconds.")
    peak_memory_bytes: int | None = Field(
        None,
        description="GPU: allocated while the cell ran, weights and the whole KV cache included. "
        "CPU: the process's maximum resident size so far.",
    )

    @property
    def key(self) -> tuple[int, int]:
        """Batch size and tokens, which identify a cell."""
        return self.batch, self.tokens

    @classmethod
    def of(
        cls, batch: int, tokens: int, new_tokens: int, rounds: list[Round], limit: float | None
    ) -> Cell:
        """A cell with the figures of its rounds; ``limit`` becomes ``limit_seconds``."""
        seconds, seconds_p95 = _percentiles([one.seconds for one in rounds])
        first, first_p95 = _percentiles([one.first_token_seconds for one in rounds])
        further, further_p95 = None, None
        if new_tokens > 1:
            further, further_p95 = _percentiles(
                [(one.seconds - one.first_token_seconds) / (new_tokens - 1) for one in rounds]
            )
        return cls(
            batch=batch,
            tokens=tokens,
            new_tokens=new_tokens,
            status="done",
            rounds=rounds,
            seconds=seconds,
            seconds_p95=seconds_p95,
            first_token_seconds=first,
            first_token_seconds_p95=first_p95,
            output_token_seconds=further,
            output_token_seconds_p95=further_p95,
            tokens_per_second_per_sequence=new_tokens / seconds,
            tokens_per_second=batch * new_tokens / seconds,
            limit_seconds=limit,
            limit_share=None if limit is None else limit / seconds,
        )


def _percentiles(values: list[float]) -> tuple[float, float]:
    median, high = np.percentile(values, [50, 95])
    return float(median), float(high)


class Results(_Part):
    """The whole file."""

    schema_: Literal["gptj-predictor-benchmark/1"] = Field(
        "gptj-predictor-benchmark/1", alias="schema"
    )
    run: Run
    settings: Settings
    cells: list[Cell] = Field([], description="In the order in which they were measured.")

    @property
    def wanted(self) -> list[tuple[int, int]]:
        """Batch size and tokens of every cell that the settings ask for, in order."""
        batches = range(1, self.settings.batch_size + 1)
        return [(batch, tokens) for batch in batches for tokens in self.settings.lengths]

    @property
    def missing(self) -> list[tuple[int, int]]:
        """The wanted cells that have not been measured, or that failed but not for memory."""
        settled = {cell.key for cell in self.cells if cell.status != "failed"}
        return [key for key in self.wanted if key not in settled]

    def cell(self, batch: int, tokens: int) -> Cell | None:
        """The cell of a batch size and a length, if it is there."""
        return next((cell for cell in self.cells if cell.key == (batch, tokens)), None)

    def with_cell(self, cell: Cell) -> Results:
        """A copy with this cell added, or put in the place of an older one."""
        others = [other for other in self.cells if other.key != cell.key]
        return self.model_copy(update={"cells": [*others, cell]})

    def write(self, folder: Path) -> None:
        """Write ``results.json``. A reader finds the old file or the new one, never a part."""
        text = json.dumps(self.model_dump(mode="json", by_alias=True), indent=1) + "\n"
        write_whole(folder / RESULTS_FILE, text)


def read_results(path: Path) -> Results:
    """Read ``results.json``.

    Raises:
        PlanError: it cannot be read, or is of another schema.
    """
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise PlanError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise PlanError(f"{path} is not JSON: {error}") from error
    schema = content.get("schema") if isinstance(content, dict) else None
    if schema != SCHEMA:
        raise PlanError(f"{path} has schema {schema!r}; this version reads {SCHEMA!r}")
    try:
        return Results.model_validate(content)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        where = ".".join(map(str, problem["loc"]))
        raise PlanError(f"{path}: {where}: {problem['msg']}") from None


def read_earlier(folder: Path, *, resume: bool) -> Results | None:
    """The results of an earlier run in the folder; ``None`` if there are none.

    Raises:
        PlanError: there are some and ``resume`` is not set, or they cannot be read.
    """
    path = folder / RESULTS_FILE
    if not path.exists():
        return None
    if not resume:
        raise PlanError(
            f"{path} exists; --resume goes on with it, another --output leaves it as it is"
        )
    return read_results(path)


def difference(earlier: Results, now: Results) -> str | None:
    """Why a run cannot be resumed: the first difference that matters; ``None`` if it can."""
    volatile = {"bandwidth", "products", "kv_cache_tokens", "started", "resumed"}
    for part, left, right in (
        ("run", earlier.run.model_dump(exclude=volatile), now.run.model_dump(exclude=volatile)),
        ("settings", earlier.settings.model_dump(), now.settings.model_dump()),
    ):
        for each in (left, right):
            if each.get("device"):
                each["device"] = {**each["device"], "clocks": None}
        for name in left:
            if left[name] != right[name]:
                return f"{part}.{name} was {left[name]!r} and is {right[name]!r}"
    return None

"""What ``gptj-predictor benchmark`` measures, compares and reports."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from gptj_predictor.settings.metadata import Positional, Switch, UnsetMeans

#: The published column that a report compares with.
DEFAULT_REFERENCE = "A100-2"


class BenchmarkSettings(BaseModel):
    """What ``gptj-predictor benchmark`` measures; each field is a flag of it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    batch_size: int = Field(1, ge=1, description="Maximum batch; all from 1 on are measured.")
    min_tokens: int = Field(
        128, ge=2, description="Minimum length of a response in tokens, prompt included."
    )
    max_tokens: int = Field(
        2048,
        ge=2,
        description="Maximum length of a response in tokens, prompt included; the default gives "
        "way to a shorter context.",
    )
    step: int = Field(128, ge=1, description="Tokens from one length to the next.")
    prompt_tokens: int = Field(16, ge=1, description="Tokens of every prompt.")
    warmup_rounds: int = Field(
        1, ge=0, description="Rounds before the measured ones at every batch and length."
    )
    rounds: int = Field(3, ge=1, description="Measured rounds at every batch and length.")
    seed: int = Field(0, ge=0, lt=2**63, description="Decides prompts and sampling.")
    output: Path = Field(Path("benchmark-results"), description="Folder for the results.")
    url: Annotated[str | None, UnsetMeans("the engine in this process")] = Field(
        None,
        pattern="^https?://",
        description="Measure a running service: its address, or that of its V1 endpoint. --model "
        "then names the snapshot that it serves, for the tokenizer.",
    )
    stream: bool = Field(
        True,
        description="With --url: whether answers are streamed, and so their first tokens timed; "
        "false for a service that cannot.",
    )
    api_key_file: Annotated[Path | None, UnsetMeans("none")] = Field(
        None, description="With --url: file whose first API key is sent with every request."
    )
    ca_file: Annotated[Path | None, UnsetMeans("the authorities that everyone trusts")] = Field(
        None,
        description="With --url: PEM file with the authority that must have signed an https "
        "service's certificate.",
    )
    reference: str = Field(
        DEFAULT_REFERENCE,
        description="Published column that the report compares with: V100, RTX5000, A5000, A40, "
        "A100-1 or A100-2.",
    )
    resume: Annotated[bool, Switch()] = Field(False, description="Go on with what --output holds.")


class CompareSettings(BaseModel):
    """Which results ``gptj-predictor benchmark compare`` compares."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    before: Annotated[Path, Positional("A.json")] = Field(description="A results.json.")
    after: Annotated[Path, Positional("B.json")] = Field(description="The results.json to judge.")
    threshold: float = Field(1.1, ge=1, description="Ratio of times that is too slow.")


class ReportSettings(BaseModel):
    """What ``gptj-predictor benchmark report`` writes anew."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    results: Annotated[Path, Positional("RESULTS.json")] = Field(description="A results.json.")
    reference: str = Field(
        DEFAULT_REFERENCE, description="Published column that the report compares with."
    )

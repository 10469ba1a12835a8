"""How text is generated: the parameters of a request, their defaults and their bounds."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints

from gptj_predictor.settings.lengths import Lengths
from gptj_predictor.settings.metadata import (
    ModelLimit,
    RequestOnly,
    UnsetMeans,
    ZeroMeans,
    ZeroOrFrom,
    allowed_values,
    marker,
)

StopString = Annotated[str, StringConstraints(min_length=1, max_length=64)]
TokenId = Annotated[int, Field(ge=0), ModelLimit("last_token_id")]
Bias = Annotated[float, Field(ge=-100, le=100)]


#: A token id as a key of a JSON object, in one spelling, so that none is there twice.
_CANONICAL_ID = "^(0|[1-9][0-9]{0,17})$"


def _read_token_id(name: object) -> object:
    return int(name) if isinstance(name, str) and re.fullmatch(_CANONICAL_ID, name) else name


TokenIdName = Annotated[TokenId, BeforeValidator(_read_token_id)]


class GenerationParameters(BaseModel):
    """A request's ``parameters``, and the server's defaults for them.

    The model adds its own limits, see :class:`Limits`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    min_length: Annotated[int, ModelLimit("context")] = Field(
        1, ge=0, description="Minimum total length in tokens, prompt included."
    )
    max_length: Annotated[int, ModelLimit("context")] = Field(
        1024, ge=1, description="Maximum total length in tokens, prompt included."
    )
    min_new_tokens: Annotated[int | None, ModelLimit("context"), UnsetMeans("unset")] = Field(
        None, ge=0, description="Minimum number of new tokens; wins over min_length."
    )
    max_new_tokens: Annotated[int | None, ModelLimit("context"), UnsetMeans("unset")] = Field(
        None, ge=1, description="Maximum number of new tokens; wins over max_length."
    )
    temperature: Annotated[float, Field(ge=0, le=5), ZeroOrFrom(0.01)] = Field(
        1.0, description="Above 1 flattens the distribution; 0 takes the most likely token."
    )
    top_k: Annotated[int, ModelLimit("vocabulary"), ZeroMeans("off")] = Field(
        50, ge=0, description="Sample among the k most likely tokens; 0 for all of them."
    )
    top_p: float = Field(
        0.9, gt=0, le=1, description="Sample among the most likely tokens that sum to p."
    )
    repetition_penalty: float = Field(
        1.0, ge=0.1, le=10, description="Above 1 avoids tokens of the prompt and the output."
    )
    do_sample: bool = Field(True, description="false takes the most likely token each time.")
    seed: Annotated[int | None, UnsetMeans("a new one each time")] = Field(
        None, ge=0, lt=2**63, description="Same prompt, parameters and seed: same text."
    )
    num_return_sequences: int = Field(1, ge=1, le=8, description="Texts per prompt.")
    stop: Annotated[
        StopString | Annotated[list[StopString], Field(min_length=1, max_length=4)] | None,
        UnsetMeans("none"),
    ] = Field(None, description="The text ends before the first of these strings.")
    return_full_text: bool = Field(
        True, description="Whether generated_text begins with the prompt."
    )
    min_p: float = Field(
        0.0, ge=0, le=1, description="Drop tokens less likely than this share of the likeliest."
    )
    typical_p: float = Field(
        1.0, gt=0, le=1, description="Sample among the most typical tokens that sum to p."
    )
    presence_penalty: float = Field(
        0.0, ge=-2, le=2, description="Taken from the logits of tokens that were generated."
    )
    frequency_penalty: float = Field(
        0.0, ge=-2, le=2, description="The same, as often as they were generated."
    )
    logit_bias: Annotated[
        Annotated[
            dict[TokenIdName, Bias],
            Field(max_length=300, json_schema_extra={"propertyNames": {"pattern": _CANONICAL_ID}}),
        ]
        | None,
        RequestOnly(),
        UnsetMeans("none"),
    ] = Field(None, description="Added to the logits of these tokens before all else.")
    stop_token_ids: Annotated[
        Annotated[list[TokenId], Field(max_length=16)] | None, RequestOnly(), UnsetMeans("none")
    ] = Field(
        None,
        description="The text ends before the first of these, not below its minimum length.",
    )
    ignore_eos: bool = Field(False, description="Whether end of text does not end the text.")
    logprobs: Annotated[int | None, RequestOnly(), UnsetMeans("none")] = Field(
        None,
        ge=0,
        le=20,
        description="With details: each generated token's log-probability, and those of so many "
        "likeliest, before any other parameter has its effect.",
    )
    details: bool = Field(
        False, description="Whether each text comes with how it ended, its tokens and its seed."
    )

    def over(self, defaults: GenerationParameters) -> GenerationParameters:
        """These parameters where they were given, and the defaults elsewhere.

        For the four lengths see :meth:`Lengths.over`. ``model_fields_set`` keeps what was given.
        """
        given = self.model_dump(exclude_unset=True)
        lengths = asdict(self.lengths.over(defaults.lengths))
        del lengths["given"]
        merged = defaults.model_dump() | given | lengths
        return GenerationParameters.model_construct(_fields_set=set(given), **merged)

    @property
    def lengths(self) -> Lengths:
        """The four parameters in tokens."""
        return Lengths(
            min_length=self.min_length,
            max_length=self.max_length,
            min_new_tokens=self.min_new_tokens,
            max_new_tokens=self.max_new_tokens,
            given=frozenset(self.model_fields_set),
        )

    @property
    def stop_strings(self) -> tuple[str, ...]:
        """``stop`` as a tuple."""
        if self.stop is None:
            return ()
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)


#: The parameters that have token ids.
_TOKEN_IDS = ("logit_bias", "stop_token_ids")

#: The other parameters that the model bounds, and by which of its limits.
_LIMITED = {
    name: limit.name
    for name, field in GenerationParameters.model_fields.items()
    if (limit := marker(field, ModelLimit)) is not None
}


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
        """For every parameter, what a client may send, in words."""
        limits = {
            "context": self.context,
            "vocabulary": self.vocabulary,
            "last_token_id": self.vocabulary - 1,
        }
        return {
            name: allowed_values(field, limits)
            for name, field in GenerationParameters.model_fields.items()
        }

    def maxima(self) -> dict[str, int]:
        """The greatest value of each parameter that the model bounds."""
        return {name: getattr(self, limit) for name, limit in _LIMITED.items()}

    def exceeded_by(self, parameters: GenerationParameters) -> str | None:
        """The name of a parameter that was given and is beyond the model's own limits, if any."""
        for name, limit in _LIMITED.items():
            value = getattr(parameters, name)
            given = name in parameters.model_fields_set
            if given and value is not None and value > getattr(self, limit):
                return name
        for name in _TOKEN_IDS:
            if max(getattr(parameters, name) or [0]) >= self.vocabulary:
                return name
        return None

    def shrink_defaults(self, defaults: GenerationParameters) -> GenerationParameters:
        """The server's defaults; those that nobody set are cut to what this model has.

        The built-in ``max_length`` and ``top_k`` are for GPT-J-6B; a smaller model has less of
        both.
        """
        update: dict[str, Any] = {
            name: min(value, getattr(self, limit))
            for name, limit in _LIMITED.items()
            if name not in defaults.model_fields_set
            and (value := getattr(defaults, name)) is not None
        }
        # model_copy would note these as given.
        merged = defaults.model_dump() | update
        return GenerationParameters.model_construct(
            _fields_set=set(defaults.model_fields_set), **merged
        )

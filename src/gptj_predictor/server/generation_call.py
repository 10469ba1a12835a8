"""A request for texts as every protocol makes it, and what comes of it: plain values."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from kserve.errors import InvalidInput

from gptj_predictor.engine.engine import Handle
from gptj_predictor.engine.request import FinishReason, Timeline, TokenLogprobs
from gptj_predictor.sampling.params import SamplingParams
from gptj_predictor.server.active_requests import ActiveRequest
from gptj_predictor.settings import GenerationParameters, LengthError


@dataclass(frozen=True)
class FieldNames:
    """What a protocol calls the fields that an error may name.

    Attributes:
        prompts: The list of prompts.
        is_list: Whether it is one; else it is the one prompt.
        parameters: What stands before a parameter's name.
        renamed: Parameters that have another name there than in ``GenerationParameters``.
    """

    prompts: str = "instances"
    is_list: bool = True
    parameters: str = "parameters."
    renamed: Mapping[str, str] = field(default_factory=dict)

    def prompt(self, number: int) -> str:
        """One prompt."""
        return f"{self.prompts}[{number}]" if self.is_list else self.prompts

    def parameter(self, name: str) -> str:
        """One parameter, without what stands before it."""
        return self.renamed.get(name, name)

    def explain(self, error: LengthError) -> str:
        """What is wrong with lengths, after the parameter at fault."""
        if error.parameter is None:
            return str(error)
        return f"{self.parameters}{self.parameter(error.parameter)}: {error}"


#: A text, or its tokens.
Prompt = str | tuple[int, ...]


@dataclass(frozen=True)
class GenerationRequest:
    """What every protocol's request becomes.

    Attributes:
        prompts: One per instance; token ids are below the vocabulary's size.
        parameters: What the client gave, over the server's defaults; ``model_fields_set`` has the
            names of those that the client gave.
        stream: Whether the client wants each piece of text as it comes.
        names: For errors.
        scores_prompts: Whether log-probabilities are wanted of the prompts' tokens too.
    """

    prompts: tuple[Prompt, ...]
    parameters: GenerationParameters
    stream: bool = False
    names: FieldNames = FieldNames()
    scores_prompts: bool = field(default=False, kw_only=True)


@dataclass(frozen=True)
class GenerationCall:
    """A request, what may end it early, and what has come of it.

    Attributes:
        request: What is asked for.
        active: What may end it early.
        handles: Its sequences in the engine, instance by instance.
        texts: Theirs, once all have ended.
    """

    request: GenerationRequest
    active: ActiveRequest
    handles: list[Handle] = field(default_factory=list)
    texts: list[GeneratedText] = field(default_factory=list)

    @property
    def timelines(self) -> list[Timeline]:
        """How far each sequence has come."""
        return [one.timeline for one in self.texts or self.handles]


@dataclass(frozen=True)
class TokenizedPrompt:
    """One instance, ready for the engine: ``params`` differ between its sequences in the seed."""

    text: str  # spelled from its tokens if these were given
    token_ids: list[int]
    params: tuple[SamplingParams, ...]


@dataclass(frozen=True)
class GeneratedToken:
    """One token of a text whose log-probabilities were asked for."""

    start: int  # where it begins in the text, in characters; within a character where that does
    logprobs: TokenLogprobs


@dataclass(frozen=True)
class GeneratedText:
    """One sequence's text and how it came about."""

    text: str  # without the prompt
    finish_reason: FinishReason
    num_generated_tokens: int  # that the text was made of
    seed: int
    timeline: Timeline
    prompt: TokenizedPrompt
    #: If log-probabilities were asked for; what a stop string cut away has none.
    tokens: tuple[GeneratedToken, ...] = ()
    #: Of the prompt's tokens from the second on, if they were asked for.
    prompt_logprobs: tuple[TokenLogprobs, ...] = ()
    #: A token as a text of its own.
    spell: Callable[[int], str] = str

    @property
    def has_logprobs(self) -> bool:
        """Whether log-probabilities of its tokens were asked for."""
        return any(params.logprobs is not None for params in self.prompt.params)


@dataclass(frozen=True)
class Piece:
    """What has come of one sequence since its last piece; together they are its text."""

    instance: int  # the prompt's number
    sequence: int  # among those of the prompt
    text: str
    tokens: tuple[GeneratedToken, ...]  # those that begin in what has come by now
    end: GeneratedText | None  # the whole, with the last piece
    #: With the first piece, if they were asked for; see :class:`GeneratedText`.
    prompt_logprobs: tuple[TokenLogprobs, ...] = ()


class PromptTooLongError(InvalidInput):
    """A prompt leaves no room for what is asked for."""


class GenerationFailedError(RuntimeError):
    """The engine could not finish a sequence; the text is for the log, not for the client."""


class OutOfMemoryError(GenerationFailedError):
    """The device's memory did not suffice, although the sequence was tried alone."""


class EndedEarlyError(RuntimeError):
    """The request has ended before any of its sequences had a token.

    Attributes:
        reason: ``DEADLINE``, ``SHUTDOWN`` or ``CANCELLED``.
    """

    def __init__(self, reason: FinishReason) -> None:
        super().__init__(reason.value)
        self.reason = reason

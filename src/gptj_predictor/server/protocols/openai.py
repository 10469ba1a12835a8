"""OpenAI's completions: ``POST /openai/v1/completions``, also ``/v1/completions``.

Its clients get OpenAI's defaults, whatever the server's flags say of the other protocols.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

from kserve.errors import InvalidInput

from gptj_predictor.engine.request import FinishReason
from gptj_predictor.server.error_body import openai_error
from gptj_predictor.server.errors import Problem
from gptj_predictor.server.event_stream import KEEP_ALIVE, KEEP_ALIVE_SECONDS, event
from gptj_predictor.server.generation import Generation
from gptj_predictor.server.generation_call import (
    FieldNames,
    GeneratedText,
    GenerationRequest,
    Piece,
    Prompt,
)
from gptj_predictor.server.protocols.details import details_of
from gptj_predictor.server.protocols.json_bodies import parse_json, shown
from gptj_predictor.server.protocols.openai_logprobs import LogprobsFormat, mean_logprob
from gptj_predictor.server.protocols.openai_schema import (
    DEFAULTS,
    RENAMED,
    CompletionFields,
    read_fields,
)
from gptj_predictor.server.protocols.parameters import read_parameters, settle
from gptj_predictor.settings import Limits
from gptj_predictor.tokenizer import Tokenizer

#: The last event of a stream that succeeds.
DONE = b"data: [DONE]\n\n"

#: A text that was cut off for whatever reason has reached a limit.
FINISH_REASONS = {FinishReason.EOS: "stop", FinishReason.STOP_SEQUENCE: "stop"}
CUT_OFF = "length"


@dataclass(frozen=True)
class Head:
    """What an answer begins with, streamed or not."""

    id: str  # without what stands before it
    model: str
    system_fingerprint: str
    created: int  # in seconds since 1970

    @classmethod
    def of(cls, request_id: str, model: str, system_fingerprint: str) -> Head:
        """A request's that comes now."""
        return cls(request_id, model, system_fingerprint, int(time.time()))

    def body(self, prefix: str, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        """An answer, or an event of one."""
        return {
            "id": f"{prefix}-{self.id}",
            "object": kind,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.system_fingerprint,
            "choices": choices,
        }


@dataclass(frozen=True, kw_only=True)
class CompletionRequest(GenerationRequest):
    """A request for completions.

    Attributes:
        head: What its answer begins with.
        model: What the client calls the model, if it does.
        n: Texts per prompt of the answer; as many are generated as ``parameters`` say.
        echo: Whether texts begin with their prompts.
        logprobs: Whether log-probabilities are wanted.
        include_usage: Whether a stream says what it has used.
    """

    head: Head
    model: str | None = None
    n: int = 1
    echo: bool = False
    logprobs: bool = False
    include_usage: bool = False


def parse_request(body: bytes, limits: Limits, head: Head) -> CompletionRequest:
    """Read a body.

    Args:
        body: JSON in UTF-8, whatever its Content-Type says.
        limits: What the model and the server allow.
        head: What the answer will begin with.

    Raises:
        InvalidInput: naming the field, its value and what is allowed.
    """
    raw = parse_json(body)
    if not isinstance(raw, dict):
        raise InvalidInput(f"the body is {shown(raw)}; it must be an object with a prompt")
    fields, given = read_fields(raw, CompletionFields, limits)
    prompts, is_list = _prompts(fields.prompt, limits)
    names = FieldNames(prompts="prompt", is_list=is_list, parameters="", renamed=RENAMED)
    _check_together(fields)
    if fields.best_of is not None:
        given["num_return_sequences"] = fields.best_of
    if fields.logprobs is not None or _chooses(fields):
        given["logprobs"] = fields.logprobs or 0
    only_scores = given.get("max_new_tokens") == 0
    if only_scores:  # no other protocol has it
        del given["max_new_tokens"]
    parameters = read_parameters(given, DEFAULTS, limits, names)
    if only_scores:
        parameters = parameters.model_copy(update={"max_new_tokens": 0})
        parameters = settle(parameters, DEFAULTS, limits, names)
    return CompletionRequest(
        prompts=prompts,
        parameters=parameters,
        stream=fields.stream,
        scores_prompts=fields.echo and fields.logprobs is not None,
        names=names,
        head=head,
        model=fields.model,
        n=fields.n,
        echo=fields.echo,
        logprobs=fields.logprobs is not None,
        include_usage=fields.stream_options is not None and fields.stream_options.include_usage,
    )


def _check_together(fields: CompletionFields) -> None:
    """Find fields that contradict each other."""
    if fields.stream_options is not None and not fields.stream:
        raise InvalidInput("stream_options: only allowed with stream")
    if fields.max_tokens == 0 and not fields.echo:
        raise InvalidInput("max_tokens: 0 is only allowed with echo")
    if fields.best_of is not None and fields.best_of < fields.n:
        raise InvalidInput(f"best_of: {fields.best_of} is below n {fields.n}")
    if fields.stream and _chooses(fields):
        raise InvalidInput(
            f"best_of: {fields.best_of} is above n {fields.n}, and a stream cannot choose; leave "
            "one of the two out"
        )


def _chooses(fields: CompletionFields) -> bool:
    return fields.best_of is not None and fields.best_of > fields.n


def _prompts(given: Any, limits: Limits) -> tuple[tuple[Prompt, ...], bool]:
    """The prompts, and whether they came as a list of prompts."""
    if given is None:
        return ("",), False
    if isinstance(given, str):
        return (given,), False
    if not isinstance(given, list) or not given:
        raise InvalidInput(
            f"prompt: {shown(given)} is not allowed; use a string, a list of token ids, or a list "
            "of strings or of such lists"
        )
    if isinstance(given[0], int):
        return (_token_ids(given, "prompt", limits),), False
    if len(given) > limits.max_instances:
        raise InvalidInput(f"prompt: {len(given)} prompts; allowed are 1 to {limits.max_instances}")
    kind = str if isinstance(given[0], str) else list
    for number, one in enumerate(given):
        if not isinstance(one, kind):
            allowed = "a string" if kind is str else "a list of token ids"
            raise InvalidInput(f"prompt[{number}]: {shown(one)} is not allowed; use {allowed}")
    if kind is str:
        return tuple(given), True
    return tuple(
        _token_ids(one, f"prompt[{number}]", limits) for number, one in enumerate(given)
    ), True


def _token_ids(given: list[Any], name: str, limits: Limits) -> tuple[int, ...]:
    for place, one in enumerate(given):
        if type(one) is not int or not 0 <= one < limits.vocabulary:
            raise InvalidInput(
                f"{name}[{place}]: {shown(one)} is not allowed; use token ids, which are integers "
                f"from 0 to {limits.vocabulary - 1}"
            )
    return tuple(given)


def format_response(
    request: CompletionRequest, texts: list[list[GeneratedText]], tokenizer: Tokenizer
) -> dict[str, Any]:
    """Texts per prompt as a body."""
    write = LogprobsFormat(tokenizer, request.echo).write
    choices: list[dict[str, Any]] = []
    for text in (text for sequences in texts for text in _best(request, sequences)):
        scored = text.prompt_logprobs if request.echo else None
        logprobs = write(text.prompt, text.tokens, scored) if request.logprobs else None
        prompt = text.prompt.text if request.echo else ""
        content = {"text": prompt + text.text}
        choices.append(choice_of(request, len(choices), content, logprobs, text))
    return _body(request, choices) | {"usage": usage(texts)}


def _best(request: CompletionRequest, texts: list[GeneratedText]) -> list[GeneratedText]:
    if request.n == len(texts):
        return texts
    return sorted(texts, key=lambda text: mean_logprob(text.tokens), reverse=True)[: request.n]


async def events(
    request: CompletionRequest, generation: Generation, tokenizer: Tokenizer
) -> AsyncIterator[bytes]:
    """Every piece of text as it comes; last, the usage if it is wanted, and ``[DONE]``."""
    write = LogprobsFormat(tokenizer, request.echo).write
    more = {"usage": None} if request.include_usage else {}
    begun: set[int] = set()

    def one(piece: Piece) -> bytes:
        index = piece.instance * request.n + piece.sequence
        prompt, echoes = generation.prompts[piece.instance], request.echo and index not in begun
        begun.add(index)
        scored = piece.prompt_logprobs if echoes else None
        logprobs = write(prompt, piece.tokens, scored) if request.logprobs else None
        content = {"text": prompt.text + piece.text if echoes else piece.text}
        choice = choice_of(request, index, content, logprobs, piece.end)
        return event(_body(request, [choice]) | more)

    async for data in streamed(generation, one):
        yield data
    if request.include_usage:
        yield event(_body(request, []) | {"usage": usage(await generation.texts())})
    yield DONE


async def streamed(generation: Generation, one: Callable[[Piece], bytes]) -> AsyncIterator[bytes]:
    """Every piece as an event, and comments while none comes.

    Raises:
        Exception: see :meth:`Generation.texts`.
    """
    late: list[Piece] = []
    async for pieces in generation.pieces(KEEP_ALIVE_SECONDS):
        # Sequences that end without a token may be the request's failure: wait for the others.
        late += [piece for piece in pieces if _is_empty(piece)]
        yield b"".join(one(piece) for piece in pieces if not _is_empty(piece)) or KEEP_ALIVE
    await generation.texts()
    if late:
        yield b"".join(map(one, late))


def _is_empty(piece: Piece) -> bool:
    return piece.end is not None and not piece.end.num_generated_tokens


def error_event(problem: Problem) -> bytes:
    """The last event of a stream that fails."""
    return event({"error": openai_error(problem.status, problem.text, problem.code)})


def usage(texts: list[list[GeneratedText]]) -> dict[str, Any]:
    """Tokens of a request; a prompt counts once, however many texts it has."""
    firsts = [sequences[0].timeline for sequences in texts]
    prompt_tokens = sum(one.num_prompt_tokens for one in firsts)
    new_tokens = sum(text.num_generated_tokens for sequences in texts for text in sequences)
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": new_tokens,
        "total_tokens": prompt_tokens + new_tokens,
        "prompt_tokens_details": {"cached_tokens": sum(one.num_cached_tokens for one in firsts)},
    }


def finish_reason(end: GeneratedText | None) -> str | None:
    """OpenAI's word for it; ``None`` while more comes."""
    return None if end is None else FINISH_REASONS.get(end.finish_reason, CUT_OFF)


def _body(request: CompletionRequest, choices: list[dict[str, Any]]) -> dict[str, Any]:
    return request.head.body("cmpl", "text_completion", choices)


def choice_of(
    request: GenerationRequest,
    index: int,
    content: dict[str, Any],
    logprobs: dict[str, Any] | None,
    end: GeneratedText | None,
) -> dict[str, Any]:
    """One of the choices: what it says, and how it ended if it has."""
    reason = finish_reason(end)
    choice = {"index": index, **content, "logprobs": logprobs, "finish_reason": reason}
    if end is not None and request.parameters.details:
        choice["details"] = details_of(end)
    return choice

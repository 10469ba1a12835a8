"""OpenAI's chat: ``POST /openai/v1/chat/completions``, also ``/v1/chat/completions``.

GPT-J is no chat model. With a template a chat is a completion of the prompt that the template makes
of its messages.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any

from kserve.errors import InvalidInput

from gptj_predictor.chat_template import ChatTemplate, ChatTemplateError
from gptj_predictor.server.event_stream import event
from gptj_predictor.server.generation import Generation
from gptj_predictor.server.generation_call import (
    FieldNames,
    GeneratedText,
    GeneratedToken,
    GenerationRequest,
    Piece,
)
from gptj_predictor.server.protocols.details import bounded
from gptj_predictor.server.protocols.json_bodies import parse_json, shown, unknown_name
from gptj_predictor.server.protocols.openai import DONE, Head, choice_of, streamed, usage
from gptj_predictor.server.protocols.openai_schema import ROLES, ChatFields, read_fields
from gptj_predictor.server.protocols.parameters import read_parameters
from gptj_predictor.settings import GenerationParameters, Limits
from gptj_predictor.tokenizer import Tokenizer

NO_TEMPLATE = (
    "GPT-J has no chat template; ask for completions, or have the server started with "
    "--chat_template"
)


@dataclass(frozen=True, kw_only=True)
class ChatRequest(GenerationRequest):
    """A request for a chat's next message.

    Attributes:
        head: What its answer begins with.
        model: What the client calls the model, if it does.
        logprobs: Whether log-probabilities are wanted.
        include_usage: Whether a stream says what it has used.
    """

    head: Head
    model: str | None = None
    logprobs: bool = False
    include_usage: bool = False


def parse_request(
    body: bytes, limits: Limits, head: Head, template: ChatTemplate | None
) -> ChatRequest:
    """Read a body.

    Args:
        body: JSON in UTF-8, whatever its Content-Type says.
        limits: What the model and the server allow.
        head: What the answer will begin with.
        template: Makes the prompt.

    Raises:
        InvalidInput: naming the field, its value and what is allowed; or there is no template.
    """
    if template is None:
        raise InvalidInput(NO_TEMPLATE)
    raw = parse_json(body)
    if not isinstance(raw, dict):
        raise InvalidInput(f"the body is {shown(raw)}; it must be an object with messages")
    fields, given = read_fields(raw, ChatFields, limits)
    if fields.stream_options is not None and not fields.stream:
        raise InvalidInput("stream_options: only allowed with stream")
    if fields.top_logprobs is not None and not fields.logprobs:
        raise InvalidInput("top_logprobs: only allowed with logprobs true")
    if fields.max_tokens is not None and fields.max_completion_tokens is not None:
        raise InvalidInput("max_tokens: another name of max_completion_tokens; leave one out")
    limit_name = "max_tokens" if fields.max_completion_tokens is None else "max_completion_tokens"
    limit = fields.max_tokens or fields.max_completion_tokens
    if limit is not None:
        given["max_new_tokens"] = limit
    if fields.logprobs:
        given["logprobs"] = fields.top_logprobs or 0
    try:
        prompt = template.prompt(_messages(fields.messages))
    except ChatTemplateError as error:
        raise InvalidInput(f"messages: {error}") from None
    names = FieldNames(
        prompts="messages",
        is_list=False,
        parameters="",
        renamed={"max_new_tokens": limit_name, "num_return_sequences": "n"},
    )
    # OpenAI's chat has no limit but the context.
    defaults = GenerationParameters(temperature=1, top_k=0, top_p=1, max_length=limits.context)
    return ChatRequest(
        prompts=(prompt,),
        parameters=read_parameters(given, defaults, limits, names),
        stream=fields.stream,
        names=names,
        head=head,
        model=fields.model,
        logprobs=fields.logprobs,
        include_usage=fields.stream_options is not None and fields.stream_options.include_usage,
    )


def _messages(given: Any) -> list[dict[str, str]]:
    """Role and content of every message."""
    if not isinstance(given, list) or not given:
        raise InvalidInput(
            f"messages: {shown(given)} is not allowed; use a list of objects with role and content"
        )
    return [_message(one, f"messages[{number}]") for number, one in enumerate(given)]


def _message(given: Any, name: str) -> dict[str, str]:
    if not isinstance(given, dict):
        raise InvalidInput(f"{name}: {shown(given)} is not allowed; use an object")
    for key in given:
        if key not in ("role", "content", "name"):
            known = ["role", "content", "name"]
            raise InvalidInput(unknown_name([name, key], known))
    role = given.get("role")
    if role not in ROLES:
        raise InvalidInput(f"{name}.role: {shown(role)} is not allowed; use {', '.join(ROLES)}")
    message = {"role": role, "content": _content(given.get("content"), f"{name}.content")}
    if (author := given.get("name")) is not None:
        if not isinstance(author, str):
            raise InvalidInput(f"{name}.name: {shown(author)} is not allowed; use a string")
        message["name"] = author
    return message


def _content(given: Any, name: str) -> str:
    """A text, or the texts of parts put together."""
    if isinstance(given, str):
        return given
    if not isinstance(given, list):
        raise InvalidInput(
            f"{name}: {shown(given)} is not allowed; use a string or a list of parts"
        )
    for number, part in enumerate(given):
        is_text = isinstance(part, dict) and part.keys() == {"type", "text"}
        if not is_text or part["type"] != "text" or not isinstance(part["text"], str):
            raise InvalidInput(
                f'{name}[{number}]: {shown(part)} is not allowed; use {{"type": "text", "text": '
                "a string}"
            )
    return "".join(part["text"] for part in given)


def format_response(
    request: ChatRequest, texts: list[list[GeneratedText]], tokenizer: Tokenizer
) -> dict[str, Any]:
    """The texts as a body."""
    choices = []
    for index, text in enumerate(texts[0]):
        message = {"role": "assistant", "content": text.text, "refusal": None}
        logprobs = _logprobs(request, text.tokens, text, tokenizer)
        choices.append(choice_of(request, index, {"message": message}, logprobs, text))
    head = request.head.body("chatcmpl", "chat.completion", choices)
    return head | {"usage": usage(texts)}


async def events(
    request: ChatRequest, generation: Generation, tokenizer: Tokenizer
) -> AsyncIterator[bytes]:
    """Every piece of text as it comes; last, the usage if it is wanted, and ``[DONE]``."""
    more = {"usage": None} if request.include_usage else {}
    begun: set[int] = set()

    def chunk(choices: list[dict[str, Any]]) -> dict[str, Any]:
        return request.head.body("chatcmpl", "chat.completion.chunk", choices)

    def one(piece: Piece) -> bytes:
        delta = {"content": piece.text}
        if piece.sequence not in begun:
            begun.add(piece.sequence)
            delta = {"role": "assistant"} | delta
        logprobs = _logprobs(request, piece.tokens, piece.end, tokenizer)
        choice = choice_of(request, piece.sequence, {"delta": delta}, logprobs, piece.end)
        return event(chunk([choice]) | more)

    async for data in streamed(generation, one):
        yield data
    if request.include_usage:
        yield event(chunk([]) | {"usage": usage(await generation.texts())})
    yield DONE


def _logprobs(
    request: ChatRequest,
    tokens: Sequence[GeneratedToken],
    end: GeneratedText | None,
    tokenizer: Tokenizer,
) -> dict[str, Any] | None:
    """Log-probabilities of a message's tokens; the one that ends it is not among them."""
    if not request.logprobs:
        return None

    def one(token_id: int, logprob: float) -> dict[str, Any]:
        spelling = tokenizer.spelling(token_id)
        token = spelling.decode("utf-8", "replace")
        return {"token": token, "logprob": bounded(logprob), "bytes": list(spelling)}

    content = [
        one(token.logprobs.token_id, token.logprobs.logprob)
        | {"top_logprobs": [one(*likely) for likely in token.logprobs.top]}
        for token in tokens
        if end is None or token.start < len(end.text)
    ]
    return {"content": content, "refusal": None}

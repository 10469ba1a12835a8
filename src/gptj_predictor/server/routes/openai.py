"""OpenAI's routes, under ``/openai/v1`` and, as far as V1 has no other use for them, ``/v1``."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any, TypeVar

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from kserve.errors import ModelNotFound
from kserve.protocol.dataplane import DataPlane

from gptj_predictor.server.generation import Generation
from gptj_predictor.server.generation_call import GeneratedText
from gptj_predictor.server.middleware import request_id_of
from gptj_predictor.server.predictor import GPTJPredictor
from gptj_predictor.server.protocols.json_bodies import cut
from gptj_predictor.server.protocols.openai import (
    CompletionRequest,
    Head,
    error_event,
    events,
    format_response,
    parse_request,
)
from gptj_predictor.server.protocols.openai_answers import (
    ChatCompletion,
    Completion,
    ModelCard,
    ModelList,
    OpenAIErrorResponse,
)
from gptj_predictor.server.protocols.openai_chat import ChatRequest
from gptj_predictor.server.protocols.openai_chat import events as chat_events
from gptj_predictor.server.protocols.openai_chat import format_response as format_chat
from gptj_predictor.server.protocols.openai_chat import parse_request as parse_chat
from gptj_predictor.server.protocols.openai_schema import chat_schema, completion_schema
from gptj_predictor.server.routes.generate import WireFormat, generate
from gptj_predictor.server.routes.openapi import (
    TEXT_STATUSES,
    errors,
    event_stream,
    json_body,
    reference,
)
from gptj_predictor.tokenizer import Tokenizer

#: Short requests, for the document.
EXAMPLE = {"prompt": "The secret to a happy life is to", "max_tokens": 12}
CHAT_EXAMPLE = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 12}

#: Short streams, for the document.
STREAMED = """data: {"id":"cmpl-1","object":"text_completion","created":0,"model":"gpt-j",\
"system_fingerprint":"fp_1","choices":[{"index":0,"text":" learn","finish_reason":"length"}]}

data: [DONE]

"""
CHAT_STREAMED = """data: {"id":"chatcmpl-1","object":"chat.completion.chunk","created":0,\
"model":"gpt-j","choices":[{"index":0,"delta":{"content":"Hi"},"finish_reason":"stop"}]}

data: [DONE]

"""
CHAT_CHUNK = {
    "type": "object",
    "description": "As OpenAI's chat.completion.chunk: choices with a delta instead of a message.",
    "properties": {"object": {"const": "chat.completion.chunk"}, "choices": {"type": "array"}},
    "required": ["object", "choices"],
}

Asked = TypeVar("Asked", CompletionRequest, ChatRequest)

PREFIXES = ("/openai/v1", "/v1")


def openai_routes(dataplane: DataPlane, predictor: GPTJPredictor) -> APIRouter:
    """The model and its completions."""
    router = APIRouter(tags=["OpenAI"])
    card = ModelCard(
        id=predictor.name, created=predictor.created, max_model_len=predictor.limits.context
    )

    async def models() -> ModelList:
        return ModelList(models=[predictor.name], data=[card])

    async def model(model_id: str) -> ModelCard:
        _check_model(predictor, model_id)
        return card

    async def ask(
        request: Request,
        parse: Callable[[bytes, Head], Asked],
        write: Callable[[Asked, list[list[GeneratedText]], Tokenizer], dict[str, Any]],
        stream: Callable[[Asked, Generation, Tokenizer], AsyncIterator[bytes]],
    ) -> Response:
        head = Head.of(request_id_of(request.scope), predictor.name, predictor.fingerprint)
        tokenizer = predictor.tokenizer

        def parse_ours(body: bytes) -> Asked:
            asked = parse(body, head)
            _check_model(predictor, asked.model)
            return asked

        wire = WireFormat(
            parse=parse_ours,
            answer=lambda asked, texts: JSONResponse(write(asked, texts, tokenizer)),
            events=lambda asked, generation: stream(asked, generation, tokenizer),
            error_event=error_event,
        )
        return await generate(request, dataplane, predictor, wire)

    async def completions(request: Request) -> Response:
        def parse(body: bytes, head: Head) -> CompletionRequest:
            return parse_request(body, predictor.limits, head)

        return await ask(request, parse, format_response, events)

    async def chat(request: Request) -> Response:
        def parse(body: bytes, head: Head) -> ChatRequest:
            return parse_chat(body, predictor.limits, head, predictor.chat_template)

        return await ask(request, parse, format_chat, chat_events)

    error = reference(OpenAIErrorResponse)
    text_events = event_stream(reference(Completion), error, example=STREAMED, end="[DONE]")
    chat_stream = event_stream(CHAT_CHUNK, error, example=CHAT_STREAMED, end="[DONE]")
    text_body = json_body(completion_schema(predictor.limits), EXAMPLE)
    chat_body = json_body(chat_schema(predictor.limits), CHAT_EXAMPLE)
    for prefix in PREFIXES:
        router.add_api_route(f"{prefix}/models", models, methods=["GET"])
        for path, endpoint, answer, body, events_of in (
            ("completions", completions, Completion, text_body, text_events),
            ("chat/completions", chat, ChatCompletion, chat_body, chat_stream),
        ):
            router.add_api_route(
                f"{prefix}/{path}",
                endpoint,
                methods=["POST"],
                response_model=answer,
                responses={
                    200: {"content": events_of},
                    **errors(*TEXT_STATUSES, model=OpenAIErrorResponse),
                },
                openapi_extra=body,
            )
    # An id may have a slash in it, as ours has on the hub.
    router.add_api_route(
        "/openai/v1/models/{model_id:path}",
        model,
        methods=["GET"],
        responses=errors(404, model=OpenAIErrorResponse),
    )
    return router


def _check_model(predictor: GPTJPredictor, name: str | None) -> None:
    """Leave what is for another model.

    Raises:
        ModelNotFound: it is.
    """
    if name is not None and not predictor.is_called(name):
        raise ModelNotFound(cut(name))

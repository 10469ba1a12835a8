"""``/tokenize`` and ``/detokenize``."""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from gptj_predictor.server.predictor import GPTJPredictor
from gptj_predictor.server.protocols.tokens import (
    DetokenizeRequest,
    DetokenizeResponse,
    TokenizeRequest,
    TokenizeResponse,
    parse_request,
    request_schema,
)
from gptj_predictor.server.routes.openapi import errors, json_body
from gptj_predictor.server.token_calls import TokenCalls


def token_routes(predictor: GPTJPredictor) -> APIRouter:
    """Both, for the one model."""
    router = APIRouter(tags=["Tokens"])
    calls, limits = TokenCalls(), predictor.limits

    async def tokenize(request: Request) -> Response:
        tokenizer, body = predictor.tokenizer, await request.body()
        asked = parse_request(TokenizeRequest, body, predictor.name, limits)
        tokens = await calls.encode(tokenizer, asked.prompt)
        counted = {"tokens": tokens, "count": len(tokens), "max_model_len": limits.context}
        return JSONResponse(counted)

    async def detokenize(request: Request) -> DetokenizeResponse:
        tokenizer, body = predictor.tokenizer, await request.body()
        asked = parse_request(DetokenizeRequest, body, predictor.name, limits)
        return DetokenizeResponse(prompt=await calls.decode(tokenizer, asked.tokens))

    for path, call, asked, answer, example in (
        ("/tokenize", tokenize, TokenizeRequest, TokenizeResponse, {"prompt": "The secret"}),
        ("/detokenize", detokenize, DetokenizeRequest, DetokenizeResponse, {"tokens": [1, 2]}),
    ):
        router.add_api_route(
            path,
            call,
            methods=["POST"],
            response_model=answer,
            responses=errors(400, 404, 413, 415, 429, 503),
            openapi_extra=json_body(request_schema(asked, limits), example),
        )
    return router

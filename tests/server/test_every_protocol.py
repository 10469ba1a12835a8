"""The same prompt, parameters and seed give the same text over every protocol, streamed or not."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest
from kserve.protocol.grpc import grpc_predict_v2_pb2_grpc as pb_grpc

from tests.server.test_grpc import message
from tests.support import event_streams, openai_clients
from tests.support.exact import Exact
from tests.support.servers import NAME, RunningServer

pytestmark = pytest.mark.process

PROMPTS = ["The secret to a happy life is to", "Message: I love it. Sentiment:"]

#: Everything that changes a text, in V1's words.
PARAMETERS: dict[str, Any] = {
    "max_new_tokens": 40,
    "min_new_tokens": 5,
    "temperature": 1.3,
    "top_k": 40,
    "top_p": 0.95,
    "min_p": 0.01,
    "typical_p": 0.98,
    "repetition_penalty": 1.1,
    "presence_penalty": 0.2,
    "frequency_penalty": 0.1,
    "logit_bias": {"13": -3},
    "stop": ["Sentiment"],
    "seed": 17,
}

#: What OpenAI calls otherwise.
OPENAI = {
    {"max_new_tokens": "max_tokens"}.get(name, name): value for name, value in PARAMETERS.items()
}

V2 = f"/v2/models/{NAME}"

Ask = Callable[[RunningServer, str], str]


def v1(server: RunningServer, prompt: str) -> str:
    [one] = server.predict([prompt], **PARAMETERS, return_full_text=False)
    return str(one["generated_text"])


def v1_stream(server: RunningServer, prompt: str) -> str:
    body = {"instances": [prompt], "parameters": PARAMETERS, "stream": True}
    [text] = event_streams.stream(server.client, server.predict_path, body).texts().values()
    return text


def infer_rest(server: RunningServer, prompt: str) -> str:
    tensor = {"name": "prompt", "datatype": "BYTES", "shape": [1], "data": [prompt]}
    body = {"inputs": [tensor], "parameters": PARAMETERS}
    answer = server.client.post(f"{V2}/infer", json=body).json()
    [text] = next(one["data"] for one in answer["outputs"] if one["name"] == "generated_text")
    return str(text)


def infer_grpc(server: RunningServer, prompt: str) -> str:
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        stub = pb_grpc.GRPCInferenceServiceStub(channel)
        answer = stub.ModelInfer(message([prompt], **PARAMETERS))
    [output] = [one for one in answer.outputs if one.name == "generated_text"]
    [text] = output.contents.bytes_contents
    return str(text.decode())


def generate(server: RunningServer, prompt: str) -> str:
    body = {"text_input": prompt, "parameters": PARAMETERS}
    return str(server.client.post(f"{V2}/generate", json=body).json()["text_output"])


def generate_stream(server: RunningServer, prompt: str) -> str:
    body = {"text_input": prompt, "parameters": PARAMETERS}
    streamed = event_streams.stream(server.client, f"{V2}/generate_stream", body)
    return "".join(one["text_output"] for one in streamed.events)


def openai(server: RunningServer, prompt: str) -> str:
    [text] = openai_clients.texts(openai_clients.complete(server, prompt, **OPENAI))
    return text


def openai_stream(server: RunningServer, prompt: str) -> str:
    whole, _ = openai_clients.put_together(openai_clients.stream(server, prompt, **OPENAI))
    return whole[0]


@pytest.fixture(scope="module")
def with_grpc(exact: Exact) -> Iterator[RunningServer]:
    """The demo in fp32, where a neighbour cannot change a text."""
    flags = ("--model", str(exact.folder), "--precision", "native")
    with RunningServer(*flags, grpc=True) as running:
        running.wait_until_ready()
        yield running


@pytest.mark.parametrize("prompt", PROMPTS)
@pytest.mark.parametrize(
    "ask",
    [v1_stream, infer_rest, infer_grpc, generate, generate_stream, openai, openai_stream],
    ids=lambda ask: ask.__name__,
)
def test_same_text(with_grpc: RunningServer, ask: Ask, prompt: str) -> None:
    expected = v1(with_grpc, prompt)
    assert expected
    assert ask(with_grpc, prompt) == expected

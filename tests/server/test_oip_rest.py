"""The Open Inference Protocol over HTTP, with the clients that people have."""

from __future__ import annotations

import asyncio
import json
import struct
from typing import Any

import numpy as np
import pytest
import tritonclient.http
from kserve import InferenceRESTClient, InferInput, InferRequest, InferResponse, RESTConfig
from kserve.protocol.infer_type import RequestedOutput
from tritonclient.utils import InferenceServerException

from tests.support.bad_bodies import check_error
from tests.support.event_streams import events, stream
from tests.support.metrics import Scrape
from tests.support.servers import NAME, RunningServer

pytestmark = pytest.mark.process

PATH = f"/v2/models/{NAME}/infer"
GENERATE = f"/v2/models/{NAME}/generate"
PROMPTS = ["The secret to a happy life is to", "Message: I love it. Sentiment:"]
GREEDY = {"temperature": 0, "max_new_tokens": 12}
LENGTH = "inference-header-content-length"


def infer_body(prompts: list[str], **more: Any) -> dict[str, Any]:
    tensor = {"name": "prompt", "datatype": "BYTES", "shape": [len(prompts)], "data": prompts}
    return {"inputs": [tensor], **more}


def in_binary(prompts: list[str], **more: Any) -> tuple[bytes, dict[str, str]]:
    """A body whose prompts are behind its JSON, and its headers."""
    raw = b"".join(struct.pack("<I", len(text.encode())) + text.encode() for text in prompts)
    tensor = {
        "name": "prompt",
        "datatype": "BYTES",
        "shape": [len(prompts)],
        "parameters": {"binary_data_size": len(raw)},
    }
    head = json.dumps({"inputs": [tensor], **more}).encode()
    return head + raw, {LENGTH: str(len(head))}


def ask(server: RunningServer, body: object, path: str = PATH) -> Any:
    response = server.client.post(path, json=body)
    assert response.status_code == 200, response.text
    return response.json()


def expected(server: RunningServer, prompts: list[str], **parameters: object) -> list[Any]:
    """V1's texts with details, the first prompt's first."""
    more: dict[str, object] = {"return_full_text": False, "details": True}
    found = server.predict(prompts, **more | parameters)
    return found if len(prompts) == 1 else [text for texts in found for text in texts]


@pytest.mark.parametrize("prompts", [PROMPTS[:1], PROMPTS], ids=["one", "two"])
@pytest.mark.parametrize("more", [{}, {"num_return_sequences": 3}, {"return_full_text": True}])
def test_outputs_are_v1s(native: RunningServer, prompts: list[str], more: dict[str, Any]) -> None:
    parameters = {"seed": 5, "max_new_tokens": 12, **more}
    texts = expected(native, prompts, **parameters)
    answer = ask(native, infer_body(prompts, parameters=parameters, id="mine"))
    count = len(prompts) * more.get("num_return_sequences", 1)
    assert len(texts) == count
    columns = {
        "generated_text": ("BYTES", [one["generated_text"] for one in texts]),
        "finish_reason": ("BYTES", [one["details"]["finish_reason"] for one in texts]),
        "prompt_tokens": ("INT64", [one["details"]["prompt_tokens"] for one in texts]),
        "generated_tokens": ("INT64", [one["details"]["generated_tokens"] for one in texts]),
    }
    assert answer == {
        "model_name": NAME,
        "model_version": "1",
        "id": "mine",
        "outputs": [
            {"name": name, "datatype": datatype, "shape": [count], "data": data}
            for name, (datatype, data) in columns.items()
        ],
    }


def test_defaults(server: RunningServer) -> None:
    """V1's, but the prompt is not in the text."""
    [text] = expected(server, PROMPTS[:1], seed=1)
    answer = ask(server, infer_body(PROMPTS[:1], parameters={"SEED": 1}))
    assert answer["outputs"][0]["data"] == [text["generated_text"]]
    assert "id" not in answer


def test_details(server: RunningServer) -> None:
    parameters = {**GREEDY, "seed": 8, "details": True}
    *_, output = ask(server, infer_body(PROMPTS[:1], parameters=parameters))["outputs"]
    assert (output["name"], output["datatype"]) == ("details", "BYTES")
    [details] = map(json.loads, output["data"])
    assert (details["seed"], details["generated_tokens"]) == (8, 12)


def test_wanted_outputs_in_their_order(server: RunningServer) -> None:
    outputs = [{"name": "generated_tokens"}, {"name": "details"}, {"name": "generated_text"}]
    answer = ask(server, infer_body(PROMPTS, parameters=GREEDY, outputs=outputs))
    names = [output["name"] for output in answer["outputs"]]
    assert names == ["generated_tokens", "details", "generated_text"]


@pytest.mark.parametrize("shape", [[2, 1], [2]])
@pytest.mark.parametrize("data", [PROMPTS, [[prompt] for prompt in PROMPTS]])
def test_a_column_of_prompts(server: RunningServer, shape: list[int], data: Any) -> None:
    """As Triton's clients send a batch; its data may be nested as its shape is."""
    body = infer_body(PROMPTS, parameters=GREEDY)
    body["inputs"][0] |= {"shape": shape, "data": data}
    if len(shape) == 1 and isinstance(data[0], list):
        assert server.client.post(PATH, json=body).status_code == 400
        return
    texts = [one["generated_text"] for one in expected(server, PROMPTS, **GREEDY)]
    assert ask(server, body)["outputs"][0]["data"] == texts


@pytest.mark.parametrize("by_output", [True, False])
def test_binary_both_ways(server: RunningServer, by_output: bool) -> None:
    prompts = ["ü\0", "", PROMPTS[0]]
    texts = expected(server, prompts, **GREEDY)
    names = ("generated_text", "generated_tokens", "finish_reason")
    wishes = [{"name": name, "parameters": {"binary_data": True}} for name in names[:2]]
    wishes.append({"name": names[2], "parameters": {"binary_data": False}})
    more: dict[str, Any] = {"parameters": {**GREEDY, "binary_data_output": not by_output}}
    if by_output:
        more["outputs"] = wishes
    content, headers = in_binary(prompts, **more)
    response = server.client.post(PATH, content=content, headers=headers)
    assert response.headers["content-type"] == "application/octet-stream"
    found = InferResponse.from_bytes(response.content, int(response.headers[LENGTH]))
    columns = {output.name: list(output.data) for output in found.outputs}
    assert columns["generated_text"] == [one["generated_text"] for one in texts]
    assert columns["generated_tokens"] == [12, 12, 12]
    assert columns["finish_reason"] == ["length"] * 3
    head = json.loads(response.content[: int(response.headers[LENGTH])])
    assert ("data" in head["outputs"][-1]) == by_output


def test_kserves_client(server: RunningServer) -> None:
    """V1 and V2, and its tensors in JSON and in binary."""
    base = str(server.client.base_url)

    async def use() -> None:
        client = InferenceRESTClient(RESTConfig(protocol="v2", timeout=60))
        assert await client.is_server_live(base)
        assert await client.is_server_ready(base)
        assert await client.is_model_ready(base, NAME)
        [text] = expected(server, PROMPTS[:1], **GREEDY)
        for binary in (True, False):
            tensor = InferInput("prompt", [1], "BYTES")
            tensor.set_data_from_numpy(np.array([PROMPTS[0]], object), binary_data=binary)
            wanted = [RequestedOutput("generated_text", {"binary_data": binary})]
            request = InferRequest(
                NAME, [tensor], "mine", parameters=GREEDY, request_outputs=wanted
            )
            answer = await client.infer(base, request, model_name=NAME)
            assert isinstance(answer, InferResponse)
            assert answer.id == "mine"
            assert answer.outputs[0].data == [text["generated_text"]]
        v1 = InferenceRESTClient(RESTConfig(protocol="v1", timeout=60))
        body = {"instances": PROMPTS[:1], "parameters": {**GREEDY, "return_full_text": False}}
        found = await v1.infer(base, body, model_name=NAME)
        assert found == {"predictions": [{"generated_text": text["generated_text"]}]}

    asyncio.run(use())


def test_tritons_client(server: RunningServer) -> None:
    """Its tensors are in binary, and so are its answers, if nothing else is said."""
    texts = [one["generated_text"] for one in expected(server, PROMPTS, **GREEDY)]
    with tritonclient.http.InferenceServerClient(f"127.0.0.1:{server.port}") as client:
        assert client.is_server_live()
        assert client.is_server_ready()
        assert client.is_model_ready(NAME)
        assert client.is_model_ready(NAME, "1")
        metadata = client.get_model_metadata(NAME, "1")
        [described] = metadata["inputs"]
        tensor = tritonclient.http.InferInput(described["name"], [2], described["datatype"])
        wanted = [tritonclient.http.InferRequestedOutput(o["name"]) for o in metadata["outputs"]]
        for binary in (True, False):
            tensor.set_data_from_numpy(np.array(PROMPTS, object), binary_data=binary)
            for outputs in (None, wanted):
                answer = client.infer(
                    NAME, [tensor], "1", outputs, request_id="mine", parameters=GREEDY
                )
                found = answer.as_numpy("generated_text")
                assert [text.decode() for text in found] == texts
                assert answer.as_numpy("generated_tokens").tolist() == [12, 12]
                assert answer.get_response()["id"] == "mine"
        with pytest.raises(InferenceServerException, match=r"parameters\.top_p: 7 is not allowed"):
            client.infer(NAME, [tensor], parameters={"top_p": 7})
        with pytest.raises(InferenceServerException, match="does not exist"):
            client.infer(NAME, [tensor], "2")


def test_metadata_is_true(server: RunningServer) -> None:
    """What it says of the tensors is what they are; models are not loaded on request."""
    extensions = server.client.get("/v2").json()["extensions"]
    assert extensions == ["binary_tensor_data", "generate"]
    metadata = server.client.get(f"/v2/models/{NAME}").json()
    assert metadata["versions"] == ["1"]
    assert server.client.get(f"/v2/models/{NAME}/versions/1").json() == metadata
    assert server.client.get(f"/v2/models/{NAME}/versions/2").status_code == 404
    assert metadata["inputs"] == [{"name": "prompt", "datatype": "BYTES", "shape": [-1]}]
    found = ask(server, infer_body(PROMPTS, parameters=GREEDY))["outputs"]
    described = [{k: v for k, v in one.items() if k != "data"} for one in found]
    assert described == [output | {"shape": [2]} for output in metadata["outputs"]]


def input_(**more: Any) -> dict[str, Any]:
    """A body with one input, changed."""
    tensor = {"name": "prompt", "datatype": "BYTES", "shape": [1], "data": ["a"]} | more
    return {"inputs": [{k: v for k, v in tensor.items() if v is not None}]}


BAD: dict[str, tuple[object, list[str]]] = {
    "a list": ([], ["[]", "an object with inputs"]),
    "no inputs": ({}, ["inputs: missing"]),
    "empty inputs": ({"inputs": []}, ["inputs", "prompt"]),
    "inputs null": ({"inputs": None}, ["inputs: null", "a list of tensors"]),
    "input not an object": ({"inputs": ["a"]}, ['inputs[0]: "a"', "an object"]),
    "another input": (input_(name="text"), ["inputs[0].name", '"text"', "use prompt"]),
    "prompt twice": ({"inputs": input_()["inputs"] * 2}, ["inputs[1].name", "more than once"]),
    "no name": (input_(name=None), ["inputs[0].name: missing"]),
    "name a number": (input_(name=3), ["inputs[0].name: 3", "use a string"]),
    "another datatype": (input_(datatype="FP32"), ["inputs[0].datatype", '"FP32"', "use BYTES"]),
    "no shape": (input_(shape=None), ["inputs[0].shape: missing"]),
    "shape a number": (input_(shape=1), ["inputs[0].shape: 1", "list of integers"]),
    "shape with a float": (input_(shape=[1.5]), ["inputs[0].shape[0]: 1.5"]),
    "shape empty": (input_(shape=[]), ["inputs[0].shape: []", "from 1 to 32"]),
    "shape of nothing": (input_(shape=[0], data=[]), ["inputs[0].shape: [0]", "from 1 to 32"]),
    "shape negative": (input_(shape=[-1]), ["inputs[0].shape: [-1]"]),
    "shape a matrix": (input_(shape=[1, 2]), ["inputs[0].shape: [1,2]", "[n,1]"]),
    "shape of many": (input_(shape=[33]), ["inputs[0].shape: [33]", "from 1 to 32"]),
    "shape huge": (input_(shape=[10**18]), ["inputs[0].shape", str(10**18)]),
    "shape and data": (input_(shape=[2]), ["inputs[0].data: 1 prompts", "says 2"]),
    "no data": (input_(data=None), ["inputs[0]: give either data"]),
    "data a string": (input_(data="a"), ['inputs[0].data: "a"', "list of strings"]),
    "data a number": (input_(data=[3]), ["inputs[0].data[0]: 3", "list of strings"]),
    "data nested": (input_(data=[["a"]]), ["inputs[0].data[0]", "does not fit"]),
    "data nested twice": (input_(data=[[["a"]]]), ["inputs[0].data[0]"]),
    "unknown field": (input_(dtype="BYTES"), ["inputs[0].dtype", "mean datatype"]),
    "unknown key": (infer_body(["a"], parameter={}), ["parameter", "mean parameters"]),
    "input's parameter": (
        input_(parameters={"content_type": "str"}),
        ["inputs[0].parameters.content_type", "binary_data_size"],
    ),
    "binary size negative": (
        input_(data=None, parameters={"binary_data_size": -1}),
        ["inputs[0].parameters.binary_data_size: -1"],
    ),
    "binary size a string": (
        input_(data=None, parameters={"binary_data_size": "5"}),
        ["inputs[0].parameters.binary_data_size", '"5"'],
    ),
    "data and binary": (
        input_(parameters={"binary_data_size": 5}),
        ["inputs[0]: give either data or"],
    ),
    "nothing in binary": (
        input_(data=None, parameters={"binary_data_size": 5}),
        ["binary_data_size: 5", "0 bytes", LENGTH],
    ),
    "parameters a list": (infer_body(["a"], parameters=[]), ["parameters: []", "an object"]),
    "unknown parameter": (infer_body(["a"], parameters={"max_lenght": 3}), ["max_lenght"]),
    "parameter": (
        infer_body(["a"], parameters={"top_k": "8"}),
        ["parameters.top_k", '"8"', "an integer"],
    ),
    "order": (
        infer_body(["a"], parameters={"min_length": 9, "max_length": 8}),
        ["parameters.min_length", "9", "8"],
    ),
    "binary_data_output": (
        infer_body(["a"], parameters={"binary_data_output": 1}),
        ["parameters.binary_data_output: 1", "true or false"],
    ),
    "sequences": (infer_body(["a"], parameters={"num_return_sequences": 9}), ["1 to 8"]),
    "id a number": (infer_body(["a"], id=7), ["id: 7", "use a string"]),
    "another model": (infer_body(["a"], model_name="x"), ['model_name: "x"', NAME]),
    "outputs an object": (infer_body(["a"], outputs={}), ["outputs: {}", "a list"]),
    "output a string": (infer_body(["a"], outputs=["text"]), ['outputs[0]: "text"', "an object"]),
    "unknown output": (
        infer_body(["a"], outputs=[{"name": "text"}]),
        ['outputs[0].name: "text"', "generated_text"],
    ),
    "output twice": (
        infer_body(["a"], outputs=[{"name": "generated_text"}] * 2),
        ["outputs[1].name", "more than once"],
    ),
    "output's parameter": (
        infer_body(["a"], outputs=[{"name": "generated_text", "parameters": {"binary": True}}]),
        ["outputs[0].parameters.binary", "mean binary_data"],
    ),
    "prompt too long": (
        infer_body(["a", " the" * 51], parameters={"max_length": 50}),
        ["prompt[1]", "51 tokens", "max_length is 50"],
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input(server: RunningServer, name: str) -> None:
    body, named = BAD[name]
    response = server.client.post(PATH, json=body)
    assert response.status_code == 400, response.text
    check_error(response.json()["error"], named)


def binary_tensor(raw: bytes, **more: Any) -> tuple[bytes, dict[str, str]]:
    body = input_(data=None, parameters={"binary_data_size": len(raw)}, **more)
    head = json.dumps(body).encode()
    return head + raw, {LENGTH: str(len(head))}


@pytest.mark.parametrize(
    ("raw", "named"),
    [
        (b"", ["0 strings", "says 1"]),
        (b"\1\0", ["string 0 has no length"]),
        (b"\5\0\0\0abc", ["string 0 has 5 bytes", "3 are left"]),
        (b"\xff\xff\xff\xff", ["4294967295 bytes", "0 are left"]),
        (b"\1\0\0\0ab", ["1 bytes are left after 1"]),
        (b"\0" * 400_000, ["399996 bytes are left after 1"]),
        (b"\1\0\0\0\xff", ["prompt[0]: byte 0 is not UTF-8"]),
        (b"\3\0\0\0\xed\xa0\x80", ["prompt[0]", "not UTF-8"]),
    ],
)
def test_bad_binary(server: RunningServer, raw: bytes, named: list[str]) -> None:
    content, headers = binary_tensor(raw)
    response = server.client.post(PATH, content=content, headers=headers)
    assert response.status_code == 400
    check_error(response.json()["error"], named)


@pytest.mark.parametrize("length", ["", "x", "-1", "1.5", "99999", "9" * 99, "0x10", "²"])
def test_bad_json_length(server: RunningServer, length: str) -> None:
    content = json.dumps(infer_body(["a"])).encode()
    response = server.client.post(
        PATH, content=content, headers=[(LENGTH.encode(), length.encode())]
    )
    assert response.status_code == 400
    check_error(response.json()["error"], [LENGTH, f"the body's {len(content)}"])
    short = server.client.post(PATH, content=content, headers={LENGTH: "10"})
    assert "not JSON" in short.json()["error"]
    behind = server.client.post(PATH, content=content + b"xx", headers={LENGTH: str(len(content))})
    assert "2 bytes are behind the JSON" in behind.json()["error"]


def generated(server: RunningServer, prompt: str, **parameters: object) -> Any:
    return ask(server, {"text_input": prompt, "parameters": parameters}, GENERATE)


@pytest.mark.parametrize("more", [{}, {"return_full_text": True}, {"stop": "e"}], ids=str)
def test_generate_and_its_stream(native: RunningServer, more: dict[str, Any]) -> None:
    parameters = {"seed": 3, "max_new_tokens": 40, **more}
    [text] = expected(native, PROMPTS[:1], **parameters)
    head = {"model_name": NAME, "model_version": "1"}
    whole = head | {"text_output": text["generated_text"]}
    assert generated(native, PROMPTS[0], **parameters) == whole
    body = {"text_input": PROMPTS[0], "parameters": parameters, "id": "mine"}
    *first, last = stream(native.client, f"{GENERATE}_stream", body).events
    assert "stop" in more or len(first) > 10
    assert "".join(one["text_output"] for one in (*first, last)) == text["generated_text"]
    assert last["text_output"] == ""
    for one, done in (*((one, False) for one in first), (last, True)):
        assert one == head | {"text_output": one["text_output"], "id": "mine", "done": done}


def test_generate_with_details(server: RunningServer) -> None:
    parameters = {**GREEDY, "seed": 9, "details": True}
    [text] = expected(server, PROMPTS[:1], **parameters)
    body = {"text_input": PROMPTS[0], "parameters": parameters}
    details = ask(server, body, GENERATE)["details"]
    assert details == text["details"] | {"cached_tokens": details["cached_tokens"]}
    *first, last = stream(server.client, f"{GENERATE}_stream", body).events
    assert last["details"]["finish_reason"] == "length"
    assert all("details" not in one for one in first)


def test_the_protocols_name_for_new_tokens(server: RunningServer) -> None:
    ours = generated(server, PROMPTS[0], temperature=0, max_new_tokens=7)
    assert generated(server, PROMPTS[0], temperature=0, max_tokens=7) == ours


BAD_TEXTS: dict[str, tuple[object, list[str]]] = {
    "a list": ([], ["an object with text_input"]),
    "no text": ({}, ["text_input: missing", "a string"]),
    "text a list": ({"text_input": ["a"]}, ["text_input", '["a"]', "a string"]),
    "unknown key": ({"text_input": "a", "stream": True}, ["stream", "text_input"]),
    "parameters null": ({"text_input": "a", "parameters": None}, ["parameters: null"]),
    "parameter": ({"text_input": "a", "parameters": {"top_k": -1}}, ["parameters.top_k: -1"]),
    "max_tokens": ({"text_input": "a", "parameters": {"max_tokens": 0}}, ["max_tokens: 0"]),
    "two names": (
        {"text_input": "a", "parameters": {"max_tokens": 3, "max_new_tokens": 3}},
        ["parameters.max_tokens", "max_new_tokens is given too"],
    ),
    "sequences": (
        {"text_input": "a", "parameters": {"num_return_sequences": 2}},
        ["num_return_sequences: 2", "use 1"],
    ),
    "too long": (
        {"text_input": " the" * 60, "parameters": {"max_length": 50}},
        ["text_input has 60 tokens"],
    ),
    "beyond the context": (
        {"text_input": " the" * 2000, "parameters": {"max_tokens": 100}},
        ["2000 tokens", "2100", "2048"],
    ),
}


@pytest.mark.parametrize("call", ["generate", "generate_stream"])
@pytest.mark.parametrize("name", BAD_TEXTS)
def test_bad_texts(server: RunningServer, name: str, call: str) -> None:
    body, named = BAD_TEXTS[name]
    response = server.client.post(f"/v2/models/{NAME}/{call}", json=body)
    assert response.status_code == 400, response.text
    check_error(response.json()["error"], named)


def test_other_models_and_methods(server: RunningServer) -> None:
    for call in ("infer", "generate", "generate_stream"):
        assert server.client.post(f"/v2/models/other/{call}", json={}).status_code == 404
        assert server.client.get(f"/v2/models/{NAME}/{call}").status_code == 405
        versions = f"/v2/models/{NAME}/versions"
        assert server.client.post(f"{versions}/2/{call}", json={}).status_code == 404
        assert server.client.post(f"{versions}/1/{call}", json={}).status_code == 400


def test_requests_are_counted(server: RunningServer) -> None:
    before = Scrape.of(server)
    ask(server, infer_body(["a"], parameters=GREEDY))
    generated(server, "a", max_tokens=1)
    with server.client.stream("POST", f"{GENERATE}_stream", json={"text_input": "a"}) as response:
        list(events(response.iter_lines()))
    server.client.post(PATH, json={})
    after = Scrape.of(server)
    for outcome, count in (("ok", 3), ("rejected", 1)):
        labels = {"outcome": outcome, "protocol": "oip"}
        name = "gptj_requests_total"
        assert after.value(name, **labels) - before.value(name, **labels) == count

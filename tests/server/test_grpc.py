"""The Open Inference Protocol over gRPC: what HTTP has, with gRPC's statuses."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from kserve import InferenceGRPCClient, InferInput, InferRequest
from kserve.protocol.grpc import grpc_predict_v2_pb2 as pb
from kserve.protocol.grpc import grpc_predict_v2_pb2_grpc as pb_grpc

from tests.support import triton_grpc
from tests.support.bad_bodies import check_error
from tests.support.exact import Exact
from tests.support.metrics import Scrape
from tests.support.servers import HELD, NAME, RunningServer, wait_for
from tests.support.stats import STATS_SERVER, is_idle, read_stats

pytestmark = pytest.mark.process

PROMPTS = ["The secret to a happy life is to", "Message: I love it. Sentiment:"]
GREEDY: dict[str, Any] = {"temperature": 0, "max_new_tokens": 12}
MAX_REQUESTS = 2
FLAGS = {
    "--precision": "native",
    "--max_batch_size": 1,
    "--max_queued_requests": MAX_REQUESTS,
    "--max_request_seconds": 60,
    "--receive_timeout_seconds": 2,
}
SERVICE = "inference.GRPCInferenceService"
Health = health_pb2.HealthCheckResponse
TRUE = pb.InferParameter(bool_param=True)


class Served(NamedTuple):
    """A server that runs one sequence at a time."""

    server: RunningServer
    channel: grpc.Channel
    stats: Path

    @property
    def stub(self) -> pb_grpc.GRPCInferenceServiceStub:
        return pb_grpc.GRPCInferenceServiceStub(self.channel)

    @property
    def health(self) -> health_pb2_grpc.HealthStub:
        return health_pb2_grpc.HealthStub(self.channel)

    def until(self, condition: Callable[[dict[str, Any]], bool], seconds: float = 10) -> None:
        """Wait until the engine's figures are so."""
        wait_for(lambda: condition(read_stats(self.stats)), seconds)

    @contextmanager
    def busy(self) -> Iterator[None]:
        """Its one place is taken."""
        self.until(is_idle)
        long = message(["hold"], **of_length(2000), num_return_sequences=8)
        holder = self.stub.ModelInfer.future(long)
        self.until(lambda stats: stats["num_running"] == 1)
        yield
        holder.cancel()
        self.until(is_idle)


@pytest.fixture(scope="module")
def served(exact: Exact, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    file = tmp_path_factory.mktemp("stats") / "stats"
    flags = [str(part) for pair in FLAGS.items() for part in pair]
    with (
        RunningServer(
            "--model", str(exact.folder), *flags, grpc=True, program=STATS_SERVER, STATS=str(file)
        ) as server,
        grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel,
    ):
        server.wait_until_ready()
        wait_for(file.exists)
        yield Served(server, channel, file)


def of_length(tokens: int) -> dict[str, Any]:
    return {"min_new_tokens": tokens, "max_new_tokens": tokens}


def message(prompts: list[str], *, raw: bool = False, **parameters: Any) -> pb.ModelInferRequest:
    """A request; KServe's messages have no field for fractions and lists, so these are strings."""
    request = pb.ModelInferRequest(model_name=NAME)
    tensor = request.inputs.add(name="prompt", datatype="BYTES", shape=[len(prompts)])
    encoded = [prompt.encode() for prompt in prompts]
    if raw:
        data = b"".join(len(one).to_bytes(4, "little") + one for one in encoded)
        request.raw_input_contents.append(data)
    else:
        tensor.contents.bytes_contents.extend(encoded)
    for name, value in parameters.items():
        match value:
            case bool():
                request.parameters[name].bool_param = value
            case int():
                request.parameters[name].int64_param = value
            case str():
                request.parameters[name].string_param = value
            case _:
                request.parameters[name].string_param = json.dumps(value)
    return request


def error_of(call: Callable[[], object]) -> tuple[grpc.StatusCode, str, dict[str, str]]:
    """Status, text and trailing metadata of a call that fails."""
    with pytest.raises(grpc.RpcError) as caught:
        call()
    error = caught.value
    trailers = {one.key: str(one.value) for one in error.trailing_metadata()}
    return error.code(), str(error.details()), trailers


def expected(server: RunningServer, prompts: list[str], **parameters: Any) -> list[Any]:
    """V1's texts with details, the first prompt's first."""
    more: dict[str, Any] = {"return_full_text": False, "details": True}
    found = server.predict(prompts, **{**more, **parameters})
    return found if len(prompts) == 1 else [text for texts in found for text in texts]


@pytest.mark.parametrize("raw", [False, True], ids=["contents", "raw"])
@pytest.mark.parametrize(
    "more", [{}, {"num_return_sequences": 3, "temperature": 1.5, "stop": ["e", "a"]}], ids=str
)
def test_outputs_are_v1s(served: Served, raw: bool, more: dict[str, Any]) -> None:
    """The answer's form is the request's."""
    parameters = {"seed": 5, "max_new_tokens": 12, **more}
    texts = expected(served.server, PROMPTS, **parameters)
    request = message(PROMPTS, raw=raw, **parameters)
    request.id = "mine"
    answer = served.stub.ModelInfer(request)
    assert (answer.model_name, answer.model_version, answer.id) == (NAME, "1", "mine")
    count = 2 * more.get("num_return_sequences", 1)
    assert [list(output.shape) for output in answer.outputs] == [[count]] * 4
    if raw:
        assert not any(output.HasField("contents") for output in answer.outputs)
        assert (
            answer.raw_output_contents[3]
            == np.array([one["details"]["generated_tokens"] for one in texts], "<i8").tobytes()
        )
        encoded = [one["generated_text"].encode() for one in texts]
        assert answer.raw_output_contents[0] == b"".join(
            len(one).to_bytes(4, "little") + one for one in encoded
        )
        return
    text, reason, prompt_tokens, generated_tokens = (output.contents for output in answer.outputs)
    assert [one.decode() for one in text.bytes_contents] == [one["generated_text"] for one in texts]
    for found, name in (
        ([one.decode() for one in reason.bytes_contents], "finish_reason"),
        (list(prompt_tokens.int64_contents), "prompt_tokens"),
        (list(generated_tokens.int64_contents), "generated_tokens"),
    ):
        assert found == [one["details"][name] for one in texts]


def test_wanted_outputs(served: Served) -> None:
    request = message(PROMPTS[:1], **GREEDY)
    for name in ("details", "finish_reason"):
        request.outputs.add(name=name)
    details, reason = served.stub.ModelInfer(request).outputs
    assert (details.name, reason.name) == ("details", "finish_reason")
    assert json.loads(details.contents.bytes_contents[0])["generated_tokens"] == 12


def test_kserves_client(served: Served) -> None:
    [text] = expected(served.server, PROMPTS[:1], **GREEDY)

    async def use() -> None:
        async with InferenceGRPCClient(f"127.0.0.1:{served.server.grpc_port}") as client:
            assert await client.is_server_live()
            assert await client.is_server_ready()
            assert await client.is_model_ready(NAME)
            for binary in (True, False):
                tensor = InferInput("prompt", [1], "BYTES")
                tensor.set_data_from_numpy(np.array(PROMPTS[:1], object), binary_data=binary)
                parameters = {"temperature": "0.0", "max_new_tokens": 12}
                request = InferRequest(NAME, [tensor], "mine", parameters=parameters)
                answer = await client.infer(request)
                assert answer.id == "mine"
                [found] = answer.get_output_by_name("generated_text").as_numpy()
                assert found.decode() == text["generated_text"]

    asyncio.run(use())


def test_tritons_client(served: Served) -> None:
    """In a process of its own: its messages have the same names as kserve's."""
    address = f"127.0.0.1:{served.server.grpc_port}"
    command = [sys.executable, triton_grpc.__file__, address, NAME]
    found = json.loads(subprocess.run(command, check=True, capture_output=True, timeout=60).stdout)
    [text] = expected(served.server, [triton_grpc.PROMPT], **triton_grpc.PARAMETERS)
    refusals = found.pop("refusals")
    assert found == {
        "ready": True,
        "outputs": ["generated_text", "finish_reason", "prompt_tokens", "generated_tokens"],
        "texts": [text["generated_text"]],
        "id": "mine",
    }
    for name, words in (("number", "temperature: 5.5"), ("unknown", "mean temperature")):
        status, details = refusals[name]
        assert status == "StatusCode.INVALID_ARGUMENT"
        assert words in details


def changed(change: Callable[[pb.ModelInferRequest], object], **how: Any) -> pb.ModelInferRequest:
    request = message(["a"], **how)
    change(request)
    return request


def tensor(**fields: Any) -> pb.ModelInferRequest:
    """A request whose one input has other fields."""
    return changed(lambda request: _set(request.inputs[0], fields))


def _set(target: Any, fields: dict[str, Any]) -> None:
    for name, value in fields.items():
        if isinstance(value, list):
            target.ClearField(name)
            getattr(target, name).extend(value)
        else:
            setattr(target, name, value)


BAD: dict[str, tuple[pb.ModelInferRequest, list[str]]] = {
    "no inputs": (pb.ModelInferRequest(model_name=NAME), ["inputs", "prompt"]),
    "another input": (tensor(name="text"), ["inputs[0].name", '"text"', "use prompt"]),
    "prompt twice": (
        changed(lambda r: r.inputs.append(r.inputs[0])),
        ["inputs[1].name", "more than once"],
    ),
    "another datatype": (tensor(datatype="FP32"), ["inputs[0].datatype", '"FP32"', "use BYTES"]),
    "no such datatype": (tensor(datatype="TEXT"), ["inputs[0].datatype", '"TEXT"']),
    "no shape": (tensor(shape=[]), ["inputs[0].shape: []", "from 1 to 32"]),
    "shape of many": (tensor(shape=[33]), ["inputs[0].shape: [33]", "from 1 to 32"]),
    "shape negative": (tensor(shape=[-1]), ["inputs[0].shape: [-1]"]),
    "shape a matrix": (tensor(shape=[1, 2]), ["inputs[0].shape: [1,2]"]),
    "shape and contents": (tensor(shape=[2]), ["bytes_contents: 1 prompts", "says 2"]),
    "other contents": (
        changed(lambda r: r.inputs[0].contents.int_contents.append(3)),
        ["inputs[0].contents.int_contents", "use bytes_contents"],
    ),
    "not UTF-8": (
        changed(lambda r: _set(r.inputs[0].contents, {"bytes_contents": [b"a\xff"]})),
        ["prompt[0]: byte 1 is not UTF-8"],
    ),
    "raw and contents": (
        changed(lambda r: r.raw_input_contents.append(b"")),
        ["inputs[0].contents.bytes_contents", "raw_input_contents"],
    ),
    "two raw": (
        changed(lambda r: r.raw_input_contents.append(b""), raw=True),
        ["raw_input_contents: there are 2 for 1"],
    ),
    "raw too short": (
        changed(lambda r: _set(r, {"raw_input_contents": [b"\5\0\0\0abc"]}), raw=True),
        ["raw_input_contents[0]: string 0 has 5 bytes", "3 are left"],
    ),
    "raw too long": (
        changed(lambda r: _set(r, {"raw_input_contents": [b"\0" * 400_000]}), raw=True),
        ["raw_input_contents[0]: 399996 bytes are left"],
    ),
    "input's parameter": (
        changed(lambda r: r.inputs[0].parameters["shared_memory_region"].CopyFrom(TRUE)),
        ["inputs[0].parameters", '"shared_memory_region" is unknown'],
    ),
    "unknown output": (
        changed(lambda r: r.outputs.add(name="text")),
        ['outputs[0].name: "text"', "generated_text"],
    ),
    "output twice": (
        changed(lambda r: [r.outputs.add(name="details") for _ in range(2)]),
        ["outputs[1].name", "more than once"],
    ),
    "output's parameter": (
        changed(lambda r: r.outputs.add(name="details").parameters["classification"]),
        ["outputs[0].parameters", '"classification" is unknown'],
    ),
    "unknown parameter": (message(["a"], max_lenght=3), ["max_lenght", "mean max_length"]),
    "no value": (
        changed(lambda r: r.parameters["top_k"].CopyFrom(pb.InferParameter())),
        ["parameters.top_k: it has no value"],
    ),
    "string for an int": (message(["a"], top_k="8"), ["parameters.top_k", '"8"', "an integer"]),
    "string for a bool": (message(["a"], do_sample="true"), ["parameters.do_sample", '"true"']),
    "fraction for an int": (message(["a"], top_k=1.5), ["parameters.top_k", '"1.5"']),
    "no number": (message(["a"], top_p="much"), ["parameters.top_p", '"much"']),
    "NaN": (message(["a"], top_p="NaN"), ["parameters.top_p", '"NaN"']),
    "bool for a number": (message(["a"], top_p="true"), ["parameters.top_p", '"true"']),
    "out of range": (message(["a"], top_p="1.5"), ["parameters.top_p: 1.5", "up to 1"]),
    "five stops": (message(["a"], stop=["a"] * 5), ["parameters.stop", "1 to 4"]),
    "twice by case": (message(["a"], top_k=1, Top_K=2), ["more than once"]),
    "order": (message(["a"], min_length=9, max_length=8), ["parameters.min_length", "9", "8"]),
    "prompt too long": (
        message(["a", " the" * 51], max_length=50),
        ["prompt[1]", "51 tokens", "max_length is 50"],
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input(served: Served, name: str) -> None:
    request, named = BAD[name]
    status, text, trailers = error_of(
        lambda: served.stub.ModelInfer(request, metadata=(("x-request-id", "mine"),))
    )
    assert status is grpc.StatusCode.INVALID_ARGUMENT
    check_error(text, named)
    assert trailers == {"x-request-id": "mine"}


@pytest.mark.parametrize("sent", [b"\xff\xff\xff", b"\x0a\x01\xff", b"\x0a\x7f"])
def test_no_message_at_all(served: Served, sent: bytes) -> None:
    """Not what protobuf can read, and a string that is not UTF-8."""
    call: Any = served.channel.unary_unary(f"/{SERVICE}/ModelInfer")
    status, text, _ = error_of(lambda: call(sent))
    assert (status, text) == (
        grpc.StatusCode.INVALID_ARGUMENT,
        "the message is not what the method takes",
    )


def test_a_message_that_does_not_come(served: Served) -> None:
    for sent, words in ((iter([]), "no message"), (_late(), "did not arrive in 2 s")):
        call: Any = served.channel.stream_unary(f"/{SERVICE}/ModelInfer")
        status, text, _ = error_of(lambda sent=sent, call=call: call(sent))  # type: ignore[misc]
        assert status is grpc.StatusCode.INVALID_ARGUMENT
        assert words in text


def _late() -> Iterator[bytes]:
    time.sleep(4)
    yield b""


@pytest.mark.parametrize("compression", list(grpc.Compression), ids=str)
def test_a_message_over_the_limit(served: Served, compression: grpc.Compression) -> None:
    """2 MB, as over HTTP; a small one that would be large is too large."""
    sent = message(["a" * 2_000_001])
    status, text, _ = error_of(lambda: served.stub.ModelInfer(sent, compression=compression))
    assert status is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "larger than max" in text


def test_other_models_and_methods(served: Served) -> None:
    stub = served.stub
    request = message(["a"])
    for name, version in (("other", ""), (NAME, "2"), ("", "")):
        request.model_name, request.model_version = name, version
        for call, asked in (
            (stub.ModelInfer, request),
            (stub.ModelMetadata, pb.ModelMetadataRequest(name=name, version=version)),
            (stub.ModelReady, pb.ModelReadyRequest(name=name, version=version)),
        ):
            status, text, _ = error_of(lambda call=call, asked=asked: call(asked))  # type: ignore[misc]
            assert status is grpc.StatusCode.NOT_FOUND
            check_error(text, ["does not exist"])
    missing: Any = served.channel.unary_unary(f"/{SERVICE}/ModelStreamInfer")
    status, text, _ = error_of(lambda: missing(b""))
    assert status is grpc.StatusCode.UNIMPLEMENTED
    for load in (
        lambda: stub.RepositoryModelLoad(pb.RepositoryModelLoadRequest(model_name=NAME)),
        lambda: stub.RepositoryModelUnload(pb.RepositoryModelUnloadRequest(model_name=NAME)),
    ):
        assert error_of(load)[0] is grpc.StatusCode.PERMISSION_DENIED


def test_metadata_is_https(served: Served) -> None:
    over_http = served.server.client.get(f"/v2/models/{NAME}").json()
    found = served.stub.ModelMetadata(pb.ModelMetadataRequest(name=NAME, version="1"))
    assert (found.name, list(found.versions)) == (NAME, over_http["versions"])
    for ours, theirs in ((found.inputs, "inputs"), (found.outputs, "outputs")):
        assert [
            {"name": one.name, "datatype": one.datatype, "shape": list(one.shape)} for one in ours
        ] == over_http[theirs]
    server = served.stub.ServerMetadata(pb.ServerMetadataRequest())
    assert list(server.extensions) == ["binary_tensor_data", "generate"]


def test_deadline_while_it_runs(served: Served) -> None:
    """Of the server: what there is. Of gRPC: the client does not wait for more."""
    metadata = (("x-request-timeout", "0.3"),)
    answer = served.stub.ModelInfer(message(["a"], **of_length(2000)), metadata=metadata)
    assert answer.outputs[1].contents.bytes_contents == [b"deadline"]
    assert 0 < answer.outputs[3].contents.int64_contents[0] < 2000
    call = served.stub.ModelInfer.with_call
    request = message(["a"], **of_length(2000))
    with pytest.raises(grpc.RpcError) as late:
        call(request, timeout=0.3, metadata=(("x-request-id", "late"),))
    assert late.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    served.until(is_idle, 1)
    wait_for(lambda: "id=late" in served.server.log)
    [line] = [line for line in served.server.log.splitlines() if "id=late" in line]
    assert " 504 " in line


def test_deadline_before_the_first_token(served: Served) -> None:
    with served.busy():
        metadata = (("x-request-timeout", "0.3"),)
        status, text, _ = error_of(
            lambda: served.stub.ModelInfer(message(["a"], **GREEDY), metadata=metadata)
        )
        assert status is grpc.StatusCode.DEADLINE_EXCEEDED
        assert "before its first token" in text


@pytest.mark.parametrize("given", ["soon", "0", "-1", "nan"])
def test_bad_timeout(served: Served, given: str) -> None:
    metadata = (("x-request-timeout", given),)
    status, text, _ = error_of(
        lambda: served.stub.ModelInfer(message(["a"]), metadata=metadata, timeout=30)
    )
    assert status is grpc.StatusCode.INVALID_ARGUMENT
    assert "x-request-timeout" in text


def test_client_gone(served: Served) -> None:
    """While it runs and while it waits: steps stop, and pages are free."""
    before = Scrape.of(served.server)
    with served.busy():
        waits = served.stub.ModelInfer.future(message(["a"]))
        served.until(lambda stats: stats["queued_requests"] == 1)
        waits.cancel()
        served.until(lambda stats: stats["queued_requests"] == 0, 1)
    served.until(is_idle, 1)
    steps = read_stats(served.stats)["num_steps"]
    time.sleep(0.1)
    assert read_stats(served.stats)["num_steps"] == steps
    cancelled = 'gptj_requests_total{outcome="cancelled",protocol="grpc"}'
    wait_for(lambda: Scrape.of(served.server).rises(before).get(cancelled) == 2)


def test_queue_full(served: Served) -> None:
    """Before a message is read; another caller's share is its own."""
    with served.busy():
        waits = [served.stub.ModelInfer.future(message(["a"], **GREEDY))]
        served.until(lambda stats: stats["queued_requests"] == 1)
        waits.append(served.stub.ModelInfer.future(message(["a"], **GREEDY)))
        served.until(lambda stats: stats["queued_requests"] == MAX_REQUESTS)
        call: Any = served.channel.stream_unary(f"/{SERVICE}/ModelInfer")
        status, text, trailers = error_of(lambda: call(_late()))
        assert status is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "queue is full" in text
        assert 1 <= int(trailers["retry-after"]) <= 60
        assert served.stub.ServerReady(pb.ServerReadyRequest()).ready
    for one in waits:
        assert one.result().outputs


def test_counts_ids_and_log(served: Served) -> None:
    before = Scrape.of(served.server)
    _, call = served.stub.ModelInfer.with_call(
        message(["a"], **GREEDY), metadata=(("x-request-id", "counted"),)
    )
    assert dict(call.trailing_metadata()) == {"x-request-id": "counted"}
    error_of(lambda: served.stub.ModelInfer(message(["a"], top_k=-1)))
    served.stub.ServerReady(pb.ServerReadyRequest())
    rises = Scrape.of(served.server).rises(before)
    name = "gptj_requests_total"
    assert {key: rise for key, rise in rises.items() if key.startswith(name)} == {
        f'{name}{{outcome="ok",protocol="grpc"}}': 1,
        f'{name}{{outcome="rejected",protocol="grpc"}}': 1,
    }
    [line] = [one for one in served.server.log.splitlines() if " id=counted" in one]
    assert f"POST '/{SERVICE}/ModelInfer' 200 " in line
    assert "ServerReady" not in served.server.log  # probes come every few seconds


def test_health(served: Served) -> None:
    for service in ("", SERVICE):
        request = health_pb2.HealthCheckRequest(service=service)
        assert served.health.Check(request).status == Health.SERVING
    unknown = health_pb2.HealthCheckRequest(service="x")
    assert error_of(lambda: served.health.Check(unknown))[0] is grpc.StatusCode.NOT_FOUND
    watch = served.health.Watch(unknown)
    assert next(watch).status == Health.SERVICE_UNKNOWN
    watch.cancel()


def test_from_not_loaded_to_the_end(tmp_path: Path) -> None:
    """UNAVAILABLE before and after; with the drain's delay the last calls are served."""
    release = tmp_path / "release"
    with (
        RunningServer(
            "--drain_delay", "2", grpc=True, program=HELD, RELEASE=str(release)
        ) as server,
        grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel,
    ):
        server.wait_until("/", 200)
        stub, health = (
            pb_grpc.GRPCInferenceServiceStub(channel),
            health_pb2_grpc.HealthStub(channel),
        )
        watch = health.Watch(health_pb2.HealthCheckRequest(service=SERVICE), wait_for_ready=True)
        assert next(watch).status == Health.NOT_SERVING
        status, text, trailers = error_of(lambda: stub.ModelInfer(message(["a"])))
        assert (status, text) == (
            grpc.StatusCode.UNAVAILABLE,
            f"Model with name {NAME} is not ready.",
        )
        assert trailers["retry-after"] == "5"
        assert not stub.ModelReady(pb.ModelReadyRequest(name=NAME)).ready
        release.touch()
        assert next(watch).status == Health.SERVING
        assert stub.ModelReady(pb.ModelReadyRequest(name=NAME)).ready
        running = stub.ModelInfer.future(message(["a"], **of_length(300)))
        server.process.send_signal(signal.SIGTERM)
        assert next(watch).status == Health.NOT_SERVING
        assert not stub.ServerReady(pb.ServerReadyRequest()).ready
        assert stub.ModelInfer(message(["a"], **GREEDY)).outputs
        last = stub.ModelInfer.future(message(["a"], **of_length(700)))
        wait_for(lambda: "requests are still to be answered" in server.log)
        status, text, trailers = error_of(lambda: stub.ModelInfer(message(["a"])))
        assert status is grpc.StatusCode.UNAVAILABLE
        assert text.startswith("the server is stopping")
        assert trailers["retry-after"] == "5"
        assert not stub.ServerReady(pb.ServerReadyRequest()).ready
        for call, tokens in ((running, 300), (last, 700)):
            assert call.result().outputs[3].contents.int64_contents == [tokens]
        assert list(watch) == []
        assert server.process.wait(10) == 0
        assert "Traceback" not in server.log

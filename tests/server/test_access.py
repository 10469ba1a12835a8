"""API keys, against the real server, over HTTP and gRPC."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from hashlib import sha256

import grpc
import httpx
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from kserve.protocol.grpc import grpc_predict_v2_pb2 as pb
from kserve.protocol.grpc import grpc_predict_v2_pb2_grpc as pb_grpc

from tests.server.test_grpc import message
from tests.support.bad_bodies import body
from tests.support.secrets import KEYS, MountedSecret, bearer, key_lines
from tests.support.servers import NAME, HttpsServer, RunningServer, wait_for

pytestmark = pytest.mark.process

OPEN = (
    "/",
    "/health",
    "/v2/health/live",
    "/v2/health/ready",
    f"/v1/models/{NAME}",
    f"/v2/models/{NAME}/ready",
)

#: A call of every kind that is there, and some that are not.
CLOSED = (
    ("POST", f"/v1/models/{NAME}:predict"),
    ("GET", f"/v1/models/{NAME}:predict"),
    ("GET", "/v1/models"),
    ("POST", f"/v1/models/{NAME}"),
    ("GET", "/v2"),
    ("GET", "/v2/models"),
    ("GET", f"/v2/models/{NAME}"),
    ("POST", f"/v2/models/{NAME}/infer"),
    ("POST", f"/v2/models/{NAME}/ready"),
    ("POST", f"/v2/repository/models/{NAME}/unload"),
    ("POST", "/tokenize"),
    ("POST", "/detokenize"),
    ("POST", "/health"),
    ("GET", "/metrics"),
    ("GET", "/openapi.json"),
    ("GET", "/docs"),
    ("GET", "/nope"),
    ("POST", "/"),
    ("DELETE", "/v2/health/live"),
    ("OPTIONS", "/"),
    ("GET", "//"),
    ("GET", f"/v1/models/{NAME}/"),
    ("GET", f"/v1/models/{NAME}%3apredict"),
    ("GET", "/v2/health/../../metrics"),
    ("GET", "/v2/health/%2e%2e/%2e%2e/metrics"),
    ("GET", "/metrics/v2/health/live"),
    ("GET", "/metrics?/v2/health/live"),
)


def log_line(server: RunningServer, request_id: str) -> str:
    wait_for(lambda: request_id in server.log)
    [line] = [line for line in server.log.splitlines() if request_id in line]
    return line


def check_refusal(response: httpx.Response) -> None:
    assert response.status_code == 401
    assert list(response.json()) == ["error"]
    assert response.headers["www-authenticate"] == "Bearer"
    assert response.headers["content-type"] == "application/json"


@pytest.mark.parametrize("path", OPEN)
def test_probes_are_open(locked: RunningServer, path: str) -> None:
    assert locked.client.get(path).status_code == 200
    assert locked.client.get(path, headers=bearer("wrong")).status_code == 200
    assert locked.client.head(path).status_code in (200, 405)


@pytest.mark.parametrize(("method", "path"), CLOSED)
def test_everything_else_is_closed(locked: RunningServer, method: str, path: str) -> None:
    url = httpx.URL(str(locked.client.base_url)).copy_with(raw_path=path.encode())
    check_refusal(locked.client.request(method, url))
    check_refusal(locked.client.request(method, url, headers=bearer("wrong")))
    assert locked.client.request(method, url, headers=bearer(KEYS[0])).status_code != 401


def test_a_websocket_is_closed_too(locked: RunningServer) -> None:
    upgrade = {"connection": "upgrade", "upgrade": "websocket", "sec-websocket-version": "13"}
    upgrade["sec-websocket-key"] = "AAAAAAAAAAAAAAAAAAAAAA=="
    check_refusal(locked.client.get("/ws", headers=upgrade))


@pytest.mark.parametrize("key", KEYS)
def test_every_key_opens(locked: RunningServer, key: str) -> None:
    asked = {"x-request-id": f"with-{key}"}
    response = locked.post(body(max_new_tokens=2), headers=bearer(key) | asked)
    assert response.status_code == 200
    name = sha256(key.encode()).hexdigest()[:8]
    line = log_line(locked, f"id=with-{key}")
    assert f"caller=key:{name}" in line
    assert locked.client.get("/metrics", headers=bearer(key)).status_code == 200


@pytest.mark.parametrize(
    ("headers", "named"),
    [
        ({}, "no API key; send the header Authorization: Bearer KEY"),
        ({"authorization": KEYS[0]}, "unknown"),
        ({"authorization": f"Basic {KEYS[0]}"}, "unknown"),
        ({"authorization": f"Bearer {KEYS[0]}x"}, "unknown"),
        ({"authorization": f"Bearer {KEYS[0][:-1]}"}, "unknown"),
        ({"authorization": f"Bearer {KEYS[0]} {KEYS[1]}"}, "unknown"),
        ({"authorization": "Bearer # comment"}, "unknown"),
        ({"x-api-key": KEYS[0]}, "no API key"),
    ],
)
def test_what_is_no_key(locked: RunningServer, headers: dict[str, str], named: str) -> None:
    response = locked.post(body(), headers=headers | {"x-request-id": f"no-{named[:2]}-x"})
    check_refusal(response)
    assert named in response.json()["error"]
    assert response.headers["x-request-id"] == f"no-{named[:2]}-x"
    assert KEYS[0] not in response.text


def test_a_refusal_has_one_line_without_the_key(locked: RunningServer) -> None:
    headers = bearer("a-guessed-key") | {"x-request-id": "guessed"}
    check_refusal(locked.post(body(), headers=headers))
    line = log_line(locked, "id=guessed")
    assert "401" in line
    assert "error='the API key is unknown'" in line
    assert "a-guessed-key" not in locked.log
    assert "caller" not in line
    for key in KEYS:
        assert key not in locked.log.replace(f"with-{key}", "")


def test_the_body_is_not_waited_for(locked: RunningServer) -> None:
    with socket.create_connection(("127.0.0.1", locked.port), timeout=10) as connection:
        connection.sendall(
            f"POST {locked.predict_path} HTTP/1.1\r\nHost: x\r\n"
            "Content-Length: 99999999999\r\n\r\n".encode()
        )
        assert b" 401 " in connection.recv(1000).splitlines()[0]


def test_a_large_body_without_a_key(locked: RunningServer) -> None:
    large = b"a" * 3_000_000
    check_refusal(locked.client.post(locked.predict_path, content=large))
    check_refusal(locked.client.post(locked.predict_path, content=iter([large])))
    response = locked.client.post(locked.predict_path, content=large, headers=bearer(KEYS[0]))
    assert response.status_code == 413


def test_open_metrics(secured: HttpsServer) -> None:
    with httpx.Client(base_url=secured.client.base_url, verify=secured.trusted) as stranger:
        assert "request_predict_seconds" in stranger.get("/metrics").text
        check_refusal(stranger.post("/metrics"))
        check_refusal(stranger.get("/v1/models"))


@pytest.mark.parametrize(
    "forwarded",
    [b"", b"nonsense", b"\xff\xfe", b"1.2.3.4:99999999999999", b"[" * 1000, b"a," * 8000],
)
def test_forwarded_for_never_fails(locked: RunningServer, forwarded: bytes) -> None:
    headers = {b"x-forwarded-for": forwarded, b"x-forwarded-proto": forwarded[:100]}
    headers |= {b"authorization": f"Bearer {KEYS[0]}".encode()}
    response = locked.client.get("/v1/models", headers=headers)
    assert response.status_code == 200


@pytest.mark.parametrize("path", ["/", "/nope", "/metrics", f"/v1/models/{NAME}:predict"])
def test_no_server_header(server: RunningServer, locked: RunningServer, path: str) -> None:
    for running in (server, locked):
        response = running.client.get(path)
        assert "server" not in response.headers
        assert "date" in response.headers
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
        connection.sendall(b"no HTTP\r\n\r\n")
        answer = connection.recv(1000).lower()
    assert b" 400 " in answer.splitlines()[0]
    assert b"server:" not in answer


class TestGrpc:
    @pytest.fixture
    def stub(self, locked: RunningServer) -> Iterator[pb_grpc.GRPCInferenceServiceStub]:
        with grpc.insecure_channel(f"127.0.0.1:{locked.grpc_port}") as channel:
            yield pb_grpc.GRPCInferenceServiceStub(channel)

    def test_probes_are_open(self, stub: pb_grpc.GRPCInferenceServiceStub) -> None:
        assert stub.ServerLive(pb.ServerLiveRequest()).live
        assert stub.ServerReady(pb.ServerReadyRequest()).ready
        assert stub.ModelReady(pb.ModelReadyRequest(name=NAME)).ready

    def test_health_is_open(self, locked: RunningServer) -> None:
        with grpc.insecure_channel(f"127.0.0.1:{locked.grpc_port}") as channel:
            health = health_pb2_grpc.HealthStub(channel)
            serving = health_pb2.HealthCheckResponse.SERVING
            assert health.Check(health_pb2.HealthCheckRequest()).status == serving
            watch = health.Watch(health_pb2.HealthCheckRequest())
            assert next(watch).status == serving
            watch.cancel()

    def test_inference_and_its_caller(
        self, locked: RunningServer, stub: pb_grpc.GRPCInferenceServiceStub
    ) -> None:
        metadata = (("authorization", f"Bearer {KEYS[0]}"), ("x-request-id", "by-key"))
        assert stub.ModelInfer(message(["a"], max_new_tokens=1), metadata=metadata).outputs
        [line] = [line for line in locked.log.splitlines() if " id=by-key " in line]
        assert "caller=key:" in line

    def test_a_failure(
        self,
        locked: RunningServer,
        key_secret: MountedSecret,
        stub: pb_grpc.GRPCInferenceServiceStub,
    ) -> None:
        """Nothing of its insides is in the answer; the log has them."""
        fault = key_secret.folder / "fault"
        fault.write_text("detokenizer")
        metadata = (("authorization", f"Bearer {KEYS[0]}"), ("x-request-id", "failed"))
        try:
            with pytest.raises(grpc.RpcError) as failed:
                stub.ModelInfer(message(["a"], max_new_tokens=1), metadata=metadata)
        finally:
            fault.unlink()
        assert failed.value.code() is grpc.StatusCode.INTERNAL
        assert failed.value.details() == "internal error; the server's log has the details"
        assert "request failed failed\nTraceback" in locked.log

    @pytest.mark.parametrize(
        ("call", "request_"),
        [
            ("ModelInfer", pb.ModelInferRequest(model_name=NAME)),
            ("ModelMetadata", pb.ModelMetadataRequest(name=NAME)),
            ("ServerMetadata", pb.ServerMetadataRequest()),
            ("RepositoryModelLoad", pb.RepositoryModelLoadRequest(model_name=NAME)),
            ("RepositoryModelUnload", pb.RepositoryModelUnloadRequest(model_name=NAME)),
        ],
    )
    def test_everything_else_is_closed(
        self, stub: pb_grpc.GRPCInferenceServiceStub, call: str, request_: object
    ) -> None:
        for metadata in (
            None,
            (("authorization", "Bearer wrong"),),
            (("authorization", KEYS[0]),),
            (("authorization-bin", f"Bearer {KEYS[0]}".encode()),),
        ):
            with pytest.raises(grpc.RpcError) as refused:
                getattr(stub, call)(request_, metadata=metadata)
            assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED
            assert "API key" in str(refused.value.details())

    def test_a_key_opens(self, stub: pb_grpc.GRPCInferenceServiceStub) -> None:
        metadata = (("authorization", f"Bearer {KEYS[1]}"),)
        stub.ServerMetadata(pb.ServerMetadataRequest(), metadata=metadata)
        with pytest.raises(grpc.RpcError) as missing:
            stub.ModelInfer(pb.ModelInferRequest(model_name=NAME), metadata=metadata)
        assert missing.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        request = pb.RepositoryModelUnloadRequest(model_name=NAME)
        with pytest.raises(grpc.RpcError) as closed:
            stub.RepositoryModelUnload(request, metadata=metadata)
        assert closed.value.code() is grpc.StatusCode.PERMISSION_DENIED

    def test_a_method_that_is_not_there(self, locked: RunningServer) -> None:
        with grpc.insecure_channel(f"127.0.0.1:{locked.grpc_port}") as channel:
            call: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(
                "/inference.GRPCInferenceService/Nope"
            )
            with pytest.raises(grpc.RpcError) as refused:
                call(b"")
            assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED
            with pytest.raises(grpc.RpcError) as missing:
                call(b"", metadata=(("authorization", f"Bearer {KEYS[0]}"),))
            assert missing.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_rotation(locked: RunningServer, key_secret: MountedSecret) -> None:
    """Old key, old and new, new alone; then the Secret is broken, and the new one stays."""

    def status(key: str) -> int:
        return locked.client.get("/v1/models", headers=bearer(key)).status_code

    try:
        key_secret.update(keys=key_lines(KEYS[0], "new-0123456789abcdef"))
        wait_for(lambda: status("new-0123456789abcdef") == 200)
        assert status(KEYS[0]) == 200
        key_secret.update(keys=key_lines("new-0123456789abcdef"))
        wait_for(lambda: status(KEYS[0]) == 401)
        key_secret.update(keys=b"")
        wait_for(lambda: (status("x"), "the last keys stay valid" in locked.log)[1])
        assert status("new-0123456789abcdef") == 200
    finally:
        key_secret.update(keys=key_lines(*KEYS))
        wait_for(lambda: status(KEYS[0]) == 200)
    assert "new-0123456789abcdef" not in locked.log

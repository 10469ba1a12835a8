"""TLS through kserve's flags, against the real server."""

from __future__ import annotations

import signal
import threading
from argparse import Namespace
from pathlib import Path

import grpc
import httpx
import pytest
from cryptography.hazmat.primitives import serialization
from kserve.constants import constants
from kserve.protocol.grpc import grpc_predict_v2_pb2 as pb
from kserve.protocol.grpc import grpc_predict_v2_pb2_grpc as pb_grpc

from gptj_predictor.server.tls import CertificateFiles
from tests.support.secrets import Authority, MountedSecret, tls_flags
from tests.support.servers import (
    LIVE_PATHS,
    NAME,
    READY_PATHS,
    HttpsServer,
    RunningServer,
    wait_for,
)

pytestmark = pytest.mark.process


def test_everything_works_over_https(secured: RunningServer) -> None:
    for path in LIVE_PATHS + READY_PATHS:
        assert secured.client.get(path).status_code == 200
    [answer] = secured.predict(["The secret"], max_new_tokens=3)
    assert answer["generated_text"].startswith("The secret")
    assert secured.post("{").status_code == 400
    assert "server" not in secured.client.get("/").headers


def test_another_authority_is_refused_by_the_client(secured: RunningServer) -> None:
    with (
        httpx.Client(base_url=secured.client.base_url, verify=Authority().trusted()) as client,
        pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"),
    ):
        client.get("/")


def test_plain_http_gets_no_answer(secured: RunningServer) -> None:
    with pytest.raises(httpx.TransportError):
        httpx.get(f"http://127.0.0.1:{secured.port}/")
    assert secured.client.get("/").status_code == 200


def test_grpc_speaks_tls_too(secured: RunningServer, authority: Authority) -> None:
    address = f"127.0.0.1:{secured.grpc_port}"
    trusted = grpc.ssl_channel_credentials(authority.certificate)
    with grpc.secure_channel(address, trusted) as channel:
        stub = pb_grpc.GRPCInferenceServiceStub(channel)
        assert stub.ModelReady(pb.ModelReadyRequest(name=NAME), timeout=30).ready
        with pytest.raises(grpc.RpcError) as refused:
            stub.ServerMetadata(pb.ServerMetadataRequest(), timeout=30)
        assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED
    for channel in (
        grpc.insecure_channel(address),
        grpc.secure_channel(address, grpc.ssl_channel_credentials(Authority().certificate)),
    ):
        with channel, pytest.raises(grpc.RpcError) as failed:
            pb_grpc.GRPCInferenceServiceStub(channel).ServerLive(pb.ServerLiveRequest(), timeout=30)
        assert failed.value.code() is grpc.StatusCode.UNAVAILABLE


def test_renewal_and_drain(tmp_path: Path) -> None:
    """Certificates of another authority each time; then a request ends in spite of a signal."""
    authorities = [Authority() for _ in range(4)]
    secret = MountedSecret(tmp_path / "secret", **authorities[0].issue())
    flags = tls_flags(secret)

    with HttpsServer(authorities[0].trusted(), *flags, grpc=True) as server:
        server.wait_until_ready()

        def shown(authority: Authority, patience: float = 5) -> bool:
            """Whether a new connection meets a certificate of this authority, on both ports."""
            trusted = grpc.ssl_channel_credentials(authority.certificate)
            address = f"127.0.0.1:{server.grpc_port}"
            try:
                httpx.get(server.client.base_url, verify=authority.trusted())
                with grpc.secure_channel(address, trusted) as channel:
                    grpc.channel_ready_future(channel).result(timeout=patience)
            except (httpx.ConnectError, grpc.FutureTimeoutError):
                return False
            return True

        assert shown(authorities[0])
        for authority in authorities[1:3]:
            secret.update(**authority.issue())
            wait_for(lambda authority=authority: shown(authority, 0.5))  # type: ignore[misc]
        broken = authorities[3].issue() | {"tls_key": authorities[3].issue()["tls_key"]}
        secret.update(**broken)
        assert shown(authorities[2])
        wait_for(lambda: "cannot be renewed" in server.log)
        assert shown(authorities[2])
        secret.update(**authorities[3].issue())
        wait_for(lambda: shown(authorities[3], 0.5))

        statuses = []
        parameters = {"min_length": 600, "max_length": 600, "num_return_sequences": 8}
        body = {"instances": ["The"], "parameters": parameters}
        trusted = authorities[3].trusted()

        def predict() -> None:
            with httpx.Client(
                base_url=server.client.base_url, verify=trusted, timeout=120
            ) as client:
                response = client.post(server.predict_path, json=body)
                statuses.append((response.status_code, len(response.json()["predictions"])))

        thread = threading.Thread(target=predict)
        thread.start()
        with httpx.Client(base_url=server.client.base_url, verify=trusted) as client:
            metric = f'request_preprocess_seconds_count{{model_name="{NAME}"}} 1.0'
            wait_for(lambda: metric in client.get("/metrics").text)
        assert server.stop(signal.SIGTERM) == 0
        thread.join()
        assert statuses == [(200, 8)]


def flags_of(certificate: str | None, key: str | None) -> Namespace:
    return Namespace(ssl_certfile=certificate, ssl_keyfile=key)


def test_files_that_fit(tmp_path: Path, authority: Authority) -> None:
    secret = MountedSecret(tmp_path / "secret", **authority.issue())
    assert CertificateFiles.of(flags_of(secret["tls_crt"], secret["tls_key"])) is not None
    assert CertificateFiles.of(flags_of(None, None)) is None


@pytest.mark.parametrize("given", ["certificate", "key", "of two", "missing", "empty", "encrypted"])
def test_files_that_do_not_fit(tmp_path: Path, given: str, authority: Authority) -> None:
    issued, other = authority.issue(), authority.issue()
    content = {"of two": other["tls_key"], "empty": b"", "encrypted": encrypted(issued["tls_key"])}
    secret = MountedSecret(tmp_path / "secret", **issued, other=content.get(given, b""))
    certificate, key = secret["tls_crt"], secret["other"]
    flags = {
        "certificate": flags_of(certificate, None),
        "key": flags_of(None, secret["tls_key"]),
        "missing": flags_of(certificate, str(tmp_path / "nothing")),
    }.get(given, flags_of(certificate, key))
    with pytest.raises(OSError, match=r"--ssl_certfile .*, --ssl_keyfile "):
        CertificateFiles.of(flags)


def encrypted(key: bytes) -> bytes:
    return serialization.load_pem_private_key(key, None).private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(b"secret"),
    )


def test_wrong_files_end_the_start_in_one_line(tmp_path: Path) -> None:
    with RunningServer("--ssl_certfile", str(tmp_path / "nothing")) as server:
        assert server.process.wait(60) == 1
        assert server.log == (
            f"gptj-predictor: --ssl_certfile {tmp_path}/nothing, --ssl_keyfile not given: "
            "TLS needs both\n"
        )


def test_the_port_that_the_docs_name() -> None:
    """kserve takes it with TLS where --http_port is not given, or is the usual one."""
    assert (constants.DEFAULT_HTTP_PORT, constants.DEFAULT_HTTPS_PORT) == (8080, 8443)

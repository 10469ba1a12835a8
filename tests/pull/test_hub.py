"""The hub of the tests, seen by the real client."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from huggingface_hub import HfApi, hf_hub_download, snapshot_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from tests.support.hub import Failure, HubServer

REPO = "org/gpt-j"
CONFIG = b'{"n_layer": 2}\n'
WEIGHTS = bytes(range(256)) * 300
FILES: dict[str, bytes | Path] = {"config.json": CONFIG, "pytorch_model.bin": WEIGHTS}


@pytest.fixture(autouse=True)
def _only_this_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    # Or it asks huggingface.co for a registry, whatever endpoint it is given in a call.
    monkeypatch.setattr("huggingface_hub.utils._detect_agent._registry", {}, raising=False)


@pytest.fixture
def hub() -> Iterator[HubServer]:
    with HubServer() as server:
        yield server


def download(
    hub: HubServer, name: str, folder: Path, *, revision: str = "main", token: str | bool = False
) -> bytes:
    got = hf_hub_download(
        REPO, name, revision=revision, local_dir=folder, endpoint=hub.endpoint, token=token
    )
    return Path(got).read_bytes()


def test_listing(hub: HubServer) -> None:
    commit = hub.add(REPO, FILES)
    api = HfApi(endpoint=hub.endpoint, token=False)
    info = api.model_info(REPO, revision="main", files_metadata=True)
    assert info.sha == commit
    assert info.siblings is not None
    config, weights = info.siblings
    assert (config.rfilename, config.size, config.lfs) == ("config.json", len(CONFIG), None)
    git = subprocess.check_output(["git", "hash-object", "--stdin"], input=CONFIG)
    assert config.blob_id == git.decode().strip()
    assert weights.lfs is not None
    assert weights.lfs.size == weights.size == len(WEIGHTS)
    assert weights.lfs.sha256 == hashlib.sha256(WEIGHTS).hexdigest()
    plain = api.model_info(REPO).siblings
    assert plain is not None
    assert [(one.rfilename, one.size) for one in plain] == [(name, None) for name in sorted(FILES)]


def test_revisions(hub: HubServer, tmp_path: Path) -> None:
    """A branch moves, its commits stay; what a commit is called depends on what is in it."""
    first = hub.add(REPO, FILES)
    half = hub.add(REPO, {"config.json": b"{}"}, "refs/pr/1")
    second = hub.add(REPO, FILES | {"config.json": b"[]"})
    assert len({first, half, second}) == 3
    assert hub.add(REPO, FILES, "again") == first
    api = HfApi(endpoint=hub.endpoint, token=False)
    for revision, commit in {"main": second, first: first, "refs/pr/1": half}.items():
        assert api.model_info(REPO, revision=revision).sha == commit
    assert download(hub, "config.json", tmp_path, revision=first) == CONFIG
    assert download(hub, "config.json", tmp_path, revision="refs/pr/1") == b"{}"
    assert download(hub, "config.json", tmp_path) == b"[]"


def test_download_of_both_kinds(hub: HubServer, tmp_path: Path) -> None:
    (tmp_path / "source").write_bytes(WEIGHTS)
    commit = hub.add(REPO, FILES | {"a b/x.bin": tmp_path / "source"})
    folder = tmp_path / "to"
    assert download(hub, "config.json", folder, revision=commit) == CONFIG
    assert download(hub, "pytorch_model.bin", folder, revision=commit, token="mine") == WEIGHTS
    assert download(hub, "a b/x.bin", folder, revision=commit) == WEIGHTS
    assert [(one.method, one.status) for one in hub.seen[:4]] == [
        *[("HEAD", 200), ("GET", 200)],  # from git
        *[("HEAD", 302), ("GET", 200)],  # LFS
    ]
    assert [one.authorization for one in hub.seen[2:4]] == ["Bearer mine", None]
    counts = [hub.downloads(name) for name in ("config.json", "pytorch_model.bin", "a b/x.bin")]
    assert counts == [1, 1, 1]


def test_snapshot_download(hub: HubServer, tmp_path: Path) -> None:
    hub.add(REPO, FILES)
    got = Path(snapshot_download(REPO, endpoint=hub.endpoint, cache_dir=tmp_path, token=False))
    assert {one.name: one.read_bytes() for one in got.iterdir()} == FILES


def test_what_is_not_there(hub: HubServer, tmp_path: Path) -> None:
    hub.add(REPO, FILES)
    api = HfApi(endpoint=hub.endpoint, token=False)
    for token in (False, "mine"):
        with pytest.raises(RepositoryNotFoundError):
            api.model_info("org/none", token=token)
    with pytest.raises(RevisionNotFoundError):
        api.model_info(REPO, revision="none")
    with pytest.raises(RevisionNotFoundError):
        download(hub, "config.json", tmp_path, revision="0" * 40)
    with pytest.raises(EntryNotFoundError):
        download(hub, "none.json", tmp_path)
    assert hub.downloads("config.json") == 0


def test_gated(hub: HubServer, tmp_path: Path) -> None:
    commit = hub.add(REPO, FILES, gated_token="right")
    info = HfApi(endpoint=hub.endpoint, token=False).model_info(REPO)
    assert (info.sha, info.gated) == (commit, "manual")
    for token in (False, "wrong"):
        with pytest.raises(GatedRepoError):
            download(hub, "config.json", tmp_path, token=token)
    assert [one.status for one in hub.seen[1:]] == [401, 403]
    assert download(hub, "config.json", tmp_path, token="right") == CONFIG


@pytest.mark.parametrize("failure", [Failure.DROP, Failure.TRUNCATE], ids=lambda one: one.kind)
@pytest.mark.slow
def test_resumed(hub: HubServer, tmp_path: Path, failure: Failure) -> None:
    """Within a call, and from the last whole block that the client had: they are of 10 MiB."""
    source = tmp_path / "source"
    source.write_bytes(os.urandom(1 << 20) * 24)
    hub.add(REPO, {"big.safetensors": source})
    hub.fail_next("big", failure)
    assert download(hub, "big.safetensors", tmp_path / "to") == source.read_bytes()
    first, second = [one for one in hub.seen if one.method == "GET"]
    assert (first.status, first.range, second.status) == (200, None, 206)
    assert second.range is not None
    assert second.range.removeprefix("bytes=").removesuffix("-").strip("0")
    assert hub.downloads("big.safetensors") == 2


def test_failures_as_the_client_sees_them(hub: HubServer, tmp_path: Path) -> None:
    hub.add(REPO, FILES)
    hub.fail_next("config", Failure.status(503, retry_after=0), method="GET")
    with pytest.raises(HfHubHTTPError, match="503"):
        download(hub, "config.json", tmp_path)
    hub.fail_next("config", Failure.status(429, retry_after=0), method="GET")
    assert download(hub, "config.json", tmp_path) == CONFIG  # it waited and asked again
    hub.fail_next("model.bin", Failure.SHORT)
    with pytest.raises(OSError, match="should be of size 76800 but has size 38400"):
        download(hub, "pytorch_model.bin", tmp_path)
    hub.fail_next("model.bin", Failure.CORRUPT)
    spoilt = download(hub, "pytorch_model.bin", tmp_path)  # it does not look at the hash
    different = [i for i, pair in enumerate(zip(spoilt, WEIGHTS, strict=True)) if len({*pair}) == 2]
    assert different == [len(WEIGHTS) // 2]


def test_bytes_on_the_wire(hub: HubServer) -> None:
    """What the client above does not ask for."""
    hub.add(REPO, FILES)
    url = f"{hub.endpoint}/{REPO}/resolve/main/pytorch_model.bin"
    with httpx.Client(follow_redirects=True, trust_env=False) as client:
        for asked, status, span in [
            ("bytes=0-", 206, (0, 76800)),
            ("bytes=76799-", 206, (76799, 76800)),
            ("bytes=5-9", 206, (5, 10)),
            ("bytes=76800-", 416, (0, 0)),
        ]:
            answer = client.get(url, headers={"Range": asked})
            assert (answer.status_code, answer.content) == (status, WEIGHTS[slice(*span)])
            shown = f"{span[0]}-{span[1] - 1}" if status == 206 else "*"
            assert answer.headers["Content-Range"] == f"bytes {shown}/76800"
        head = client.head(url)
        assert (head.headers["Content-Length"], head.headers["Accept-Ranges"]) == ("76800", "bytes")
        hub.fail_next("model.bin", Failure.RESET)
        with pytest.raises(httpx.ReadError):
            client.get(url)
        hub.fail_next("model.bin", Failure.hang(0.1), times=2)
        for method in ("HEAD", "GET"):
            with pytest.raises(httpx.RemoteProtocolError):
                client.request(method, url)
        assert client.get(url).content == WEIGHTS
    assert hub.downloads("pytorch_model.bin") == 5


@pytest.mark.process
def test_killed_client(tmp_path: Path) -> None:
    """Another process, set up with HF_ENDPOINT alone, dies half-way; the next one ends whole."""
    code = "import sys; from huggingface_hub import hf_hub_download as get; "
    code += f"get({REPO!r}, 'pytorch_model.bin', local_dir=sys.argv[1])"
    command = [sys.executable, "-c", code, str(tmp_path)]
    with HubServer(chunk_delay=1) as hub:
        hub.add(REPO, FILES)
        setting = {"HF_ENDPOINT": hub.endpoint, "HF_HUB_OFFLINE": "0"}
        environment = os.environ | setting | {"HF_HOME": str(tmp_path / ".home")}
        process = subprocess.Popen(command, env=environment)
        try:
            for _ in range(600):
                if hub.downloads("pytorch_model.bin"):
                    break
                time.sleep(0.05)
        finally:
            process.kill()
            process.wait()
        assert not (tmp_path / "pytorch_model.bin").exists()
        subprocess.run(command, env=environment, check=True)
        assert hub.downloads("pytorch_model.bin") == 2
    assert (tmp_path / "pytorch_model.bin").read_bytes() == WEIGHTS


def test_stops_at_once() -> None:
    """Also while a client is being sent to and keeps another connection open."""
    with httpx.Client(trust_env=False) as client:
        with HubServer(chunk_delay=60) as hub:
            hub.add(REPO, {"vocab.txt": WEIGHTS})
            url = f"{hub.endpoint}/{REPO}/resolve/main/vocab.txt"
            half = client.send(client.build_request("GET", url), stream=True)
            assert client.get(f"{hub.endpoint}/api/models/{REPO}").status_code == 200
            begun = time.monotonic()
        assert time.monotonic() - begun < 10
        with pytest.raises(httpx.TransportError):
            half.read()
        with pytest.raises(httpx.ConnectError):
            client.get(hub.endpoint)

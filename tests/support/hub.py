"""A small Hugging Face hub for the real ``huggingface_hub`` client, on loopback or as a program.

It has two ports. The client follows a redirect that stays at the hub, but takes a file's metadata
from a redirect that leaves it, so large files are sent by a "CDN" at another port, as the real
hub does. There is no Xet.

The cluster suite runs this file in a pod of the predictor's image, so it imports no other file of
the tests:

    python hub.py --name hub.models.svc --ports 8000 8001 EleutherAI/gpt-j-6B owner/gated=TOKEN
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import io
import json
import re
import socket
import struct
import sys
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, ClassVar, Literal, Self
from urllib.parse import unquote

CHUNK = 64 * 1024
LFS_SUFFIXES = {".bin", ".safetensors", ".msgpack", ".h5", ".ot"}
API = re.compile(r"/api/models/([^/]+(?:/[^/]+)??)(?:/(revision|tree)/([^/]+)/?)?")
RESOLVE = re.compile(r"/([^/]+(?:/[^/]+)?)/resolve/([^/]+)/(.+)")


@dataclass(frozen=True)
class Seen:
    """One request. The path is unquoted and has its query; status 0: it was never answered."""

    method: str
    path: str
    range: str | None
    authorization: str | None
    status: int


@dataclass(frozen=True)
class Failure:
    """What goes wrong with an answer: one of the constants, ``status(...)`` or ``hang(...)``."""

    kind: Literal["status", "hang", "drop", "reset", "truncate", "short", "corrupt"]
    code: int = 0
    headers: tuple[tuple[str, str], ...] = ()
    seconds: float = 0.0

    DROP: ClassVar[Failure]  #: half of the body, then the connection is closed
    RESET: ClassVar[Failure]  #: half of the body, then a TCP reset
    TRUNCATE: ClassVar[Failure]  #: all but the last byte, then the connection is closed
    SHORT: ClassVar[Failure]  #: half of the body, and Content-Length says so: valid HTTP
    CORRUPT: ClassVar[Failure]  #: one bit of the middle byte is flipped
    HANG: ClassVar[Failure]  #: five seconds of silence

    @classmethod
    def status(cls, code: int, **headers: str | int) -> Failure:
        """Answer with a status; ``retry_after=1, x_error_code="GatedRepo"`` become headers."""
        given = tuple((name.replace("_", "-"), str(value)) for name, value in headers.items())
        return cls("status", code, given)

    @classmethod
    def hang(cls, seconds: float) -> Failure:
        """Send nothing for so long, then close the connection."""
        return cls("hang", seconds=seconds)


Failure.DROP, Failure.RESET = Failure("drop"), Failure("reset")
Failure.TRUNCATE, Failure.SHORT = Failure("truncate"), Failure("short")
Failure.CORRUPT, Failure.HANG = Failure("corrupt"), Failure.hang(5)


def _opened(content: bytes | Path) -> BinaryIO:
    return io.BytesIO(content) if isinstance(content, bytes) else content.open("rb")


def _size(content: bytes | Path) -> int:
    return len(content) if isinstance(content, bytes) else content.stat().st_size


@dataclass(frozen=True)
class _File:
    content: bytes | Path
    size: int
    blob_id: str
    lfs: dict[str, Any] | None = None

    @classmethod
    def of(cls, name: str, content: bytes | Path) -> _File:
        size = _size(content)
        large = size > 1024 and PurePosixPath(name).suffix in LFS_SUFFIXES
        digest = hashlib.sha256() if large else hashlib.sha1(b"blob %d\0" % size)
        with _opened(content) as stream:
            while chunk := stream.read(1 << 20):
                digest.update(chunk)
        if not large:
            return cls(content, size, digest.hexdigest())
        sha256 = digest.hexdigest()
        pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n"
        lfs = {"sha256": sha256, "oid": sha256, "size": size, "pointerSize": len(pointer)}
        return cls(content, size, cls.of("pointer", pointer.encode()).blob_id, lfs)

    def headers(self) -> dict[str, str]:
        etag = self.lfs["sha256"] if self.lfs else self.blob_id
        return {"ETag": f'"{etag}"', "Accept-Ranges": "bytes"}

    def listed(self, name: str) -> dict[str, Any]:
        """What both listings say, that of ``model_info`` and that of the tree."""
        entry = {"rfilename": name, "path": name, "type": "file", "size": self.size}
        entry |= {"blobId": self.blob_id, "oid": self.blob_id}
        return entry | ({"lfs": self.lfs} if self.lfs else {})


@dataclass
class _Repo:
    gated_token: str | None = None
    refs: dict[str, str] = field(default_factory=dict)
    commits: dict[str, dict[str, _File]] = field(default_factory=dict)


_Answer = tuple[int, dict[str, str], bytes | Path]


def _error(status: int, code: str, message: str) -> _Answer:
    return status, {"X-Error-Code": code, "X-Error-Message": message}, message.encode()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        pass

    def do_GET(self) -> None:
        hub = self.server.hub
        status, headers, content = hub._route(self.path, self.headers["Authorization"])
        start, length = 0, _size(content)
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers["Range"] or "")
        if asked and self.command == "GET" and "Accept-Ranges" in headers:
            start, last = int(asked[1]), min(int(asked[2] or length), length - 1)
            status, span = (206, f"{start}-{last}") if start <= last else (416, "*")
            headers["Content-Range"] = f"bytes {span}/{length}"
            length = max(last - start + 1, 0)
        failure = hub._next_failure(self.command, unquote(self.path.split("?")[0]), status)
        kind = failure.kind if failure else ""
        if failure and kind == "status":
            status, headers, length = failure.code, dict(failure.headers), 0
        if failure and kind == "hang":
            status = 0
        about = (self.headers["Range"], self.headers["Authorization"], status)
        hub._saw(Seen(self.command, unquote(self.path), *about))
        self.close_connection |= kind in ("hang", "drop", "reset", "truncate")
        if failure and kind == "hang":
            hub._closed.wait(failure.seconds)
            return
        sent = {"drop": length // 2, "reset": length // 2, "short": length // 2}.get(kind, length)
        sent -= kind == "truncate"
        self.send_response(status)
        headers["Content-Length"] = str(sent if kind == "short" else length)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self._send(content, start, sent, length // 2 if kind == "corrupt" else -1)
        if kind == "reset":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.rfile.close()  # it holds the socket open
            self.connection.close()

    do_HEAD = do_GET  # noqa: N815

    def _send(self, content: bytes | Path, start: int, length: int, flip: int) -> None:
        hub, sent = self.server.hub, 0
        with _opened(content) as stream:
            stream.seek(start)
            while sent < length:
                if sent and hub._closed.wait(hub._chunk_delay):
                    self.close_connection = True
                    return
                chunk = bytearray(stream.read(min(CHUNK, length - sent)))
                if sent <= flip < sent + len(chunk):
                    chunk[flip - sent] ^= 1
                self.wfile.write(chunk)
                sent += len(chunk)


class _Server(ThreadingHTTPServer):
    daemon_threads = False  # closing waits for them
    request_queue_size = 64

    def __init__(self, hub: HubServer, listen: str, port: int, name: str) -> None:
        self.hub = hub
        self._connections: set[socket.socket] = set()
        super().__init__((listen, port), _Handler)
        self.url = f"http://{name}:{self.server_port}"
        self.thread = threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True)

    def process_request(self, request: Any, client_address: Any) -> None:
        self._connections.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self._connections.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), ConnectionError):  # the client went away: its own affair
            super().handle_error(request, client_address)

    def stop(self) -> None:
        self.shutdown()
        for connection in self._connections.copy():  # kept alive by clients, or being sent to
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        self.server_close()
        self.thread.join()


class HubServer:
    """The hub; serves between ``with`` and its end. ``endpoint`` is for HF_ENDPOINT."""

    def __init__(
        self,
        *,
        chunk_delay: float = 0.0,
        listen: str = "127.0.0.1",
        ports: tuple[int, int] = (0, 0),
        name: str = "127.0.0.1",
    ) -> None:
        """Bind both ports.

        Args:
            chunk_delay: Seconds between two chunks of a body.
            listen: Address to listen at.
            ports: The hub's and the CDN's; 0 takes any that is free.
            name: The host's name in the addresses that clients get.
        """
        self._chunk_delay = chunk_delay
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._repos: dict[str, _Repo] = {}
        self._large: dict[str, _File] = {}
        self._seen: list[Seen] = []
        self._failures: list[tuple[str, str | None, Failure]] = []
        self._hub, self._cdn = (_Server(self, listen, port, name) for port in ports)
        self.endpoint = self._hub.url

    def __enter__(self) -> Self:
        self._hub.thread.start()
        self._cdn.thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._closed.set()
        self._hub.stop()
        self._cdn.stop()

    def add(
        self,
        repo: str,
        files: Mapping[str, bytes | Path],
        revision: str = "main",
        *,
        gated_token: str | None = None,
    ) -> str:
        """Commit these files, and no others, move the branch there and return the commit."""
        stored = {name: _File.of(name, files[name]) for name in sorted(files)}
        listing = "".join(f"{file.blob_id} {name}\n" for name, file in stored.items())
        commit = hashlib.sha1(listing.encode()).hexdigest()
        with self._lock:
            published = self._repos.setdefault(repo, _Repo())
            published.gated_token = gated_token
            published.commits[commit] = stored
            published.refs[revision] = commit
            self._large |= {file.lfs["sha256"]: file for file in stored.values() if file.lfs}
        return commit

    def fail_next(
        self, name_part: str, failure: Failure, times: int = 1, *, method: str | None = None
    ) -> None:
        """Spoil the next answers to requests with this in their path, in the order of the calls.

        A status and a hang take any request, so the client's HEAD before its GET, unless a method
        is given; what spoils a body waits for a GET that is answered with one (200 or 206).
        """
        with self._lock:
            self._failures += [(name_part, method, failure)] * times

    @property
    def seen(self) -> list[Seen]:
        """The requests so far, in the order of their answers."""
        with self._lock:
            return list(self._seen)

    def downloads(self, name: str) -> int:
        """How often the body of a file was sent or begun, in whole or from some byte on."""
        bodies = [one for one in self.seen if one.method == "GET" and one.status in (200, 206)]
        return sum(one.path.endswith(f"/{name}") for one in bodies if "/api/" not in one.path)

    def _saw(self, one: Seen) -> None:
        if one.path != "/api/agent-harnesses":  # the client asks at most once a day who started it
            with self._lock:
                self._seen.append(one)

    def _next_failure(self, method: str, path: str, status: int) -> Failure | None:
        body = method == "GET" and status in (200, 206)
        with self._lock:
            for index, (part, only, failure) in enumerate(self._failures):
                fits = body or failure.kind in ("status", "hang")
                if fits and part in path and only in (None, method):
                    return self._failures.pop(index)[2]
        return None

    def _route(self, target: str, authorization: str | None) -> _Answer:
        path, _, query = target.partition("?")
        with self._lock:
            if large := self._large.get(path.removeprefix("/cdn/").split("/")[0]):
                return 200, large.headers(), large.content
            resolve, api = RESOLVE.fullmatch(path), API.fullmatch(path)
            if not (asked := resolve or api):
                return 404, {}, b""
            name, revision = unquote(asked[1]), unquote(asked[2 if resolve else 3] or "main")
            repo = self._repos.get(name)
            if repo is None and authorization:
                return _error(404, "RepoNotFound", "Repository not found")
            if repo is None:  # the hub does not tell strangers what there is
                return _error(401, "RepoNotFound", "Invalid username or password.")
            commit = revision if revision in repo.commits else repo.refs.get(revision)
            if commit is None:
                return _error(404, "RevisionNotFound", f"Invalid rev id: {revision}")
            if not resolve:  # anyone may see what a gated repository has
                blobs = "blobs=true" in query.lower()
                return self._listing(name, repo, commit, tree=asked[2] == "tree", blobs=blobs)
            if repo.gated_token and authorization != f"Bearer {repo.gated_token}":
                return _error(403 if authorization else 401, "GatedRepo", f"{name} is restricted.")
            file = repo.commits[commit].get(unquote(asked[3]))
        if file is None:
            status, headers, content = _error(404, "EntryNotFound", "Entry not found")
            return status, headers | {"X-Repo-Commit": commit}, content
        if file.lfs is None:
            return 200, file.headers() | {"X-Repo-Commit": commit}, file.content
        location = f"{self._cdn.url}/cdn/{file.lfs['sha256']}/{asked[3]}"
        linked = {"X-Linked-Size": str(file.size), "X-Linked-Etag": file.headers()["ETag"]}
        return 302, linked | {"X-Repo-Commit": commit, "Location": location}, b""

    def _listing(self, name: str, repo: _Repo, commit: str, *, tree: bool, blobs: bool) -> _Answer:
        files = [file.listed(path) for path, file in repo.commits[commit].items()]
        if not (tree or blobs):
            files = [{"rfilename": one["rfilename"]} for one in files]
        gated = "manual" if repo.gated_token else False
        model: dict[str, Any] = {"id": name, "modelId": name, "sha": commit, "siblings": files}
        model |= {"private": False, "disabled": False, "gated": gated, "tags": []}
        body = json.dumps(files if tree else model).encode()
        return 200, {"Content-Type": "application/json; charset=utf-8"}, body


def main() -> None:
    """Serve the demo snapshot under the given names until the process is ended."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--listen", default="0.0.0.0", help="address to listen at")
    parser.add_argument("--ports", type=int, nargs=2, default=(8000, 8001), help="hub and CDN")
    parser.add_argument("--name", required=True, help="the host's name, as clients know it")
    parser.add_argument("model", nargs="+", help="OWNER/NAME, or OWNER/NAME=TOKEN for a gated one")
    arguments = parser.parse_args()
    from gptj_predictor.demo import DEMO_SNAPSHOT  # noqa: PLC0415  # the tests' hub has other files

    files = {path.name: path for path in DEMO_SNAPSHOT.iterdir() if path.suffix != ".md"}
    hub = HubServer(listen=arguments.listen, ports=tuple(arguments.ports), name=arguments.name)
    for model in arguments.model:
        repo, _, token = model.partition("=")
        hub.add(repo, files, gated_token=token or None)
    with hub:
        print(f"serving {', '.join(arguments.model)} at {hub.endpoint}", flush=True)
        threading.Event().wait()


if __name__ == "__main__":
    main()

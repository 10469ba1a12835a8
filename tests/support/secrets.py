"""API keys and certificates, mounted as Kubernetes mounts a Secret."""

from __future__ import annotations

import shutil
import ssl
from pathlib import Path

import trustme

#: Whose pages may ask ``secured``.
ORIGINS = ("https://page.example", "http://localhost:3000")

KEYS = ("first-0123456789abcdef", "second-0123456789abcdef")


class MountedSecret:
    """A folder of links into another folder; an update swaps that at once."""

    def __init__(self, folder: Path, **content: bytes) -> None:
        self.folder = folder
        self._version = 0
        folder.mkdir()
        self.update(**content)
        for name in content:
            (folder / name).symlink_to(f"..data/{name}")

    def __getitem__(self, name: str) -> str:
        """Path of a file, for a flag."""
        return str(self.folder / name)

    def update(self, **content: bytes) -> None:
        self._version += 1
        data = self.folder / f"..{self._version}"
        data.mkdir()
        for name, one in content.items():
            (data / name).write_bytes(one)
        link = self.folder / "..data_tmp"
        link.symlink_to(data.name)
        link.replace(self.folder / "..data")
        if self._version > 1:
            shutil.rmtree(self.folder / f"..{self._version - 1}")


def key_lines(*keys: str) -> bytes:
    return "".join(f"{key}\n" for key in keys).encode()


class Authority:
    """Signs the certificates of servers at 127.0.0.1."""

    def __init__(self) -> None:
        self._ca = trustme.CA()

    @property
    def certificate(self) -> bytes:
        return self._ca.cert_pem.bytes()

    def trusted(self) -> ssl.SSLContext:
        """What a client knows that trusts this authority and no other."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self._ca.configure_trust(context)
        return context

    def issue(self) -> dict[str, bytes]:
        """Content of a Secret of type ``kubernetes.io/tls``, under names without a dot."""
        issued = self._ca.issue_cert("127.0.0.1", "localhost")
        chain = b"".join(part.bytes() for part in issued.cert_chain_pems)
        return {"tls_crt": chain, "tls_key": issued.private_key_pem.bytes()}


def tls_flags(secret: MountedSecret) -> tuple[str, ...]:
    return ("--ssl_certfile", secret["tls_crt"], "--ssl_keyfile", secret["tls_key"])


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}

"""The certificate of kserve's TLS flags: checked at the start, read again when it is renewed."""

from __future__ import annotations

import logging
import ssl
from argparse import Namespace
from dataclasses import dataclass
from pathlib import Path

import grpc

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class CertificateFiles:
    """PEM files.

    Attributes:
        certificate: The server's certificate, and those of the authorities between it and the one
            that clients know.
        key: Its private key, not encrypted.
    """

    certificate: Path
    key: Path

    @classmethod
    def of(cls, flags: Namespace) -> CertificateFiles | None:
        """The files that kserve's flags name, if they do.

        Raises:
            OSError: only one is given, one cannot be read, or they do not fit each other; the text
                has the flags.
        """
        certificate, key = flags.ssl_certfile, flags.ssl_keyfile
        if not certificate and not key:
            return None
        named = f"--ssl_certfile {certificate or 'not given'}, --ssl_keyfile {key or 'not given'}"
        if not certificate or not key:
            raise OSError(f"{named}: TLS needs both")
        files = cls(Path(certificate), Path(key))
        try:
            files.load(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER))
        except OSError as error:  # ssl's errors are such
            raise OSError(f"{named}: {error.strerror or error}") from error
        return files

    def load(self, context: ssl.SSLContext) -> None:
        """Make a context serve this certificate.

        Raises:
            OSError: the files cannot be read, or do not fit each other.
        """
        # Without a password, OpenSSL would ask the terminal for that of an encrypted key.
        context.load_cert_chain(self.certificate, self.key, password="")

    def renew_in(self, context: ssl.SSLContext) -> None:
        """Look for renewed files at every handshake; the next one gets them.

        kserve's own watch notices only the first renewal of a mounted Secret: it watches the file,
        and an update puts another one in its place.
        """
        known = self._identity()

        def look(_: ssl.SSLObject, __: str | None, ___: ssl.SSLContext) -> None:
            nonlocal known
            try:
                found = self._identity()
                if found == known:
                    return
                known = found
                # A context that fails to load is left without a key.
                self.load(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER))
                self.load(context)
            except OSError as error:
                logger.error("%s cannot be renewed: %s", self.certificate, error)
            else:
                logger.info("%s is renewed", self.certificate)

        context.sni_callback = look

    def for_grpc(self) -> grpc.ServerCredentials:
        """The same for gRPC, which asks for the files' content at every handshake."""

        def read() -> grpc.ServerCertificateConfiguration:
            pair = (self.key.read_bytes(), self.certificate.read_bytes())
            return grpc.ssl_server_certificate_configuration([pair])

        return grpc.dynamic_ssl_server_credentials(read(), read)

    def _identity(self) -> tuple[tuple[int, ...], ...]:
        stats = [path.stat() for path in (self.certificate, self.key)]
        return tuple((one.st_dev, one.st_ino, one.st_size, one.st_mtime_ns) for one in stats)

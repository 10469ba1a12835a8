"""Pages of which origins may ask: cross-origin resource sharing (WHATWG Fetch, section 3.3)."""

from __future__ import annotations

from collections.abc import Sequence

from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp

#: Headers of answers that a page may read, beside those that every page may.
EXPOSED = ("x-request-id", "retry-after")


def allow_origins(app: ASGIApp, origins: Sequence[str]) -> ASGIApp:
    """Wrap an application so that browsers let pages of some origins ask.

    A browser asks first, without an API key, whether a page may ask. So this stands before all that
    refuses, whose answers a page can read then too. Keys are in a header of their own: cookies and
    a browser's passwords are never wanted.

    Args:
        app: What is wrapped.
        origins: Such as ``https://example.com``, or ``*`` for all; with none, no page may ask.
    """
    if not origins:
        return app
    return CORSMiddleware(
        app,
        allow_origins=origins,
        allow_methods=("GET", "POST"),
        allow_headers=("*",),
        expose_headers=EXPOSED,
    )

"""The protocols, and which of them a request for texts is made in."""

from __future__ import annotations

import enum
import re

from starlette.types import Scope


class Protocol(enum.StrEnum):
    """How a request was sent."""

    V1 = "v1"
    OPENAI = "openai"
    OIP = "oip"
    GRPC = "grpc"


#: The paths of each protocol's requests for texts, some with the model's name in them.
_PATHS = {
    Protocol.V1: re.compile(r"/v1/models/(?P<model>[^/]+):predict"),
    Protocol.OPENAI: re.compile(r"(/openai)?/v1/(chat/)?completions"),
    Protocol.OIP: re.compile(
        r"/v2/models/(?P<model>[^/]+)(/versions/[^/]+)?/(infer|generate|generate_stream)"
    ),
    Protocol.GRPC: re.compile(r"/inference\.GRPCInferenceService/ModelInfer"),
}

#: What probes ask over gRPC: they have no key, and must be answered while the server drains.
GRPC_PROBES = re.compile(
    r"/inference\.GRPCInferenceService/(ServerLive|ServerReady|ModelReady)"
    r"|/grpc\.health\.v1\.Health/Check"
)


def protocol_of(scope: Scope) -> Protocol | None:
    """The protocol of a request for texts; ``None`` for anything else, as a probe."""
    found = _match(scope)
    return None if found is None else found[0]


def is_for(scope: Scope, model_name: str) -> bool:
    """Whether it is a request for texts of a model, as far as the path says."""
    found = _match(scope)
    return found is not None and found[1].groupdict().get("model", model_name) == model_name


def _match(scope: Scope) -> tuple[Protocol, re.Match[str]] | None:
    if scope["type"] == "http" and scope["method"] == "POST":
        for protocol, paths in _PATHS.items():
            if (match := paths.fullmatch(scope["path"])) is not None:
                return protocol, match
    return None

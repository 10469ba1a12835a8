"""What a full queue refuses, at once: no task, no chain of applications.

A server that is asked ten times what it can do refuses nine of ten requests, and each refusal takes
processor time from the texts of the tenth.
"""

from __future__ import annotations

import time

from starlette.types import Scope

from gptj_predictor.server.access import Access
from gptj_predictor.server.gate import Gate
from gptj_predictor.server.middleware import (
    RefusalAnswer,
    log_request,
    refusal_answer,
    set_request_id,
)
from gptj_predictor.server.protocol import protocol_of
from gptj_predictor.server.request_counts import RequestCounts

STATUS = 429


class EarlyRefusals:
    """Refuses as the applications of :func:`request_middleware` would, one after the other.

    The caller, its key, the gate, the count, the log line and the request's id are theirs. What it
    does not refuse they look at again, and answer.
    """

    def __init__(self, access: Access, gate: Gate, counts: RequestCounts) -> None:
        """Refuse what ``gate`` refuses for its queue.

        Args:
            access: Who may ask.
            gate: Knows the queue.
            counts: What is added to.
        """
        self._access = access
        self._gate = gate
        self._counts = counts

    def __call__(self, scope: Scope) -> RefusalAnswer | None:
        """The refusal of a request, or ``None``; its body may not have come yet."""
        protocol = protocol_of(scope)
        if protocol is None:
            return None
        started = time.perf_counter()
        if not self._access.identify(scope):
            return None
        error = self._gate.queue_full(scope)
        if error is None:
            return None
        request_id = set_request_id(scope)
        answer = refusal_answer(scope, STATUS, str(error), error.refusal, error.retry_after)
        answer.headers.append((b"x-request-id", request_id.encode()))
        seconds = time.perf_counter() - started
        self._counts.add(protocol, STATUS, error.refusal, seconds)
        log_request(scope, STATUS, seconds)
        return answer

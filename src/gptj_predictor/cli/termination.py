"""The reason why a process ends, where Kubernetes shows it.

Kubernetes mounts a file into every container. What is in it when the container ends is the message
of its last state: in ``kubectl describe pod``, in Knative's revision and in KServe's
``modelStatus.lastFailureInfo`` (Kubernetes' documentation, "Determine the Reason for Pod Failure").
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

#: Where the file is, and the variable with another path (``terminationMessagePath`` of the pod).
DEFAULT_PATH = "/dev/termination-log"
PATH_VARIABLE = "TERMINATION_LOG"

#: Kubernetes takes no more.
MAX_BYTES = 4096

#: What runs as a container's own program. Others are typed into a container that goes on.
_COMMANDS = (("serve",), ("snapshot", "pull"), ("benchmark",))


def write_reason(arguments: Sequence[str], reason: str, environment: Mapping[str, str]) -> None:
    """Write why a command ends, if it is a container's own and the file is there.

    Args:
        arguments: Of the program.
        reason: One line.
        environment: Variables; ``TERMINATION_LOG`` may name the file.
    """
    if not any(tuple(arguments[: len(command)]) == command for command in _COMMANDS):
        return
    text = reason.encode(errors="replace")[:MAX_BYTES].decode(errors="ignore")
    try:
        # Not blocking: the path may be a pipe that nobody reads.
        descriptor = os.open(
            environment.get(PATH_VARIABLE) or DEFAULT_PATH, os.O_WRONLY | os.O_TRUNC | os.O_NONBLOCK
        )
        with os.fdopen(descriptor, "wb") as file:
            file.write(text.encode())
    except (OSError, ValueError):
        return  # the log has it

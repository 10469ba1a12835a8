"""``python -m gptj_predictor`` is the ``gptj-predictor`` command."""

import os
import signal
import sys
from typing import NoReturn


def main() -> NoReturn:
    """Run the command and end the process with its exit code."""
    # Imports take seconds, and the kernel drops SIGTERM for a container's first process until it
    # has a handler. Nothing needs cleaning up before the server installs its own.
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    # Huge pages for torch's memory on a CPU: weights are read up to 15 percent faster. Read by
    # torch when it first allocates.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    from gptj_predictor.cli import main as run

    code = run()
    sys.stdout.flush()
    sys.stderr.flush()
    # Not sys.exit: the weights may still be loading in a thread, inside torch, which the
    # interpreter's own way to end would abort the process over.
    os._exit(code)


if __name__ == "__main__":
    main()

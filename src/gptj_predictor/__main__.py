"""``python -m gptj_predictor`` is the ``gptj-predictor`` command."""

import os
import signal
import sys
from typing import NoReturn


def main() -> NoReturn:
    """Run the command and end the process with its exit code."""
    # Imports take seconds, and the kernel drops SIGTERM for a container's first process until it
    # has a handler. Nothing needs cleaning up before a command installs its own. A server that was
    # told to stop has done its work; a pull has not.
    code = 0 if sys.argv[1:2] == ["serve"] else 128 + signal.SIGTERM
    signal.signal(signal.SIGTERM, lambda *_: os._exit(code))
    # Huge pages for torch's memory on a CPU: weights are read up to 15 percent faster. Read by
    # torch when it first allocates.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    from gptj_predictor.cli import main as run

    try:
        code = run()
    except SystemExit as end:  # argparse's, or a signal's
        code = end.code if isinstance(end.code, int) else 1
    sys.stdout.flush()
    sys.stderr.flush()
    # Not sys.exit: the weights may still be loading in a thread, inside torch, which the
    # interpreter's own way to end would abort the process over.
    os._exit(code)


if __name__ == "__main__":
    main()

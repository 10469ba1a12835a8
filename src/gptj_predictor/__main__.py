"""``python -m gptj_predictor`` is the ``gptj-predictor`` command."""

import os
import signal
import sys
from typing import NoReturn


def main() -> NoReturn:
    """Run the command and end the process with its exit code."""
    # Imports take seconds. Until a container's first process has a handler for SIGTERM, the kernel
    # drops the signal. This one ends the process at once: there is nothing to clean up before a
    # command installs its own. A server that is told to stop has done its work; a pull has not.
    is_server = sys.argv[1:2] == ["serve"]
    for number in (
        (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT) if is_server else (signal.SIGTERM,)
    ):
        signal.signal(number, lambda number, _: os._exit(0 if is_server else 128 + number))
    # Huge pages for torch's memory on a CPU: weights are read up to 15 percent faster. torch looks
    # at the variable when it first allocates.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    from gptj_predictor.cli import main as run

    try:
        code = run()
    except SystemExit as end:  # argparse's, or a signal's
        code = end.code if isinstance(end.code, int) else 1
    sys.stdout.flush()
    sys.stderr.flush()
    # Not sys.exit: a thread may still be loading weights, inside torch. The interpreter would abort
    # the process when it ends under such a thread.
    os._exit(code)


if __name__ == "__main__":
    main()

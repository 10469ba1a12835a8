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
    code = 0 if sys.argv[1:2] == ["serve"] else 128 + signal.SIGTERM
    signal.signal(signal.SIGTERM, lambda *_: os._exit(code))
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

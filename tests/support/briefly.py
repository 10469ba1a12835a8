"""``gptj-predictor``, except that a server ends as soon as it is ready.

Run as ``python -m tests.support.briefly ARGUMENTS``; the exit code is the command's own.
"""

from __future__ import annotations

import os
import sys

from tests.support.servers import RunningServer


def main(arguments: list[str]) -> int:
    if arguments[:1] != ["serve"]:
        os.execv(sys.executable, [sys.executable, "-m", "gptj_predictor", *arguments])
    with RunningServer(*arguments[1:]) as server:
        server.wait_until("/v2/health/ready", 200)
        return server.stop()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

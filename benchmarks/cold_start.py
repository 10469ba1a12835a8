"""How long does a server take from its start to its first token, and how much memory?

    .venv/bin/python benchmarks/cold_start.py [--model FOLDER] [--flags FLAGS OF serve]

Prints the seconds from the start of the process until it answers, until the model is ready and
until the first token is there, and the resident memory of the process.
"""

from __future__ import annotations

import argparse
import time

from processes import memory_bytes
from serving import Server, predict


def main() -> None:
    """Run the measurement that the command line asks for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", help="snapshot folder; the bundled demo if not given")
    parser.add_argument(
        "--flags", nargs=argparse.REMAINDER, default=[], help="of the server; comes last"
    )
    arguments = parser.parse_args()
    model = ["--model", arguments.model] if arguments.model else []
    with Server(*model, *arguments.flags) as server:
        server.wait_for("/")
        print(f"alive after {server.age:.1f} s")
        path = server.wait_until_ready()
        print(f"ready after {server.age:.1f} s")
        started = time.perf_counter()
        predict(server.client, path, ["Right now is the perfect time to"], 1)
        seconds = time.perf_counter() - started
        print(f"first token after {server.age:.1f} s, {seconds:.3f} s after the request for it")
        peak, anonymous = (
            memory_bytes(server.process.pid, field) / 1e9 for field in ("VmHWM", "RssAnon")
        )
        print(f"resident memory: peak {peak:.2f} GB, anonymous at the end {anonymous:.2f} GB")


if __name__ == "__main__":
    main()

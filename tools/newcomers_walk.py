"""Write the newcomer's walk in docs/architecture.md from the calls of a real request.

    python tools/newcomers_walk.py

Remarks stay with their functions; functions that are new have none.
"""

from __future__ import annotations

import re
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from tests.support.calls import Call, first_calls  # noqa: E402
from tests.test_newcomers_walk import (  # noqa: E402
    PAGE,
    THREADS,
    recorded_calls,
    walk_of_the_page,
)

#: Where the remarks begin.
COLUMN = 74


def main() -> None:
    """Record a request and write the page."""
    with tempfile.TemporaryDirectory() as folder:
        calls = recorded_calls(Path(folder))
    page = PAGE.read_text()
    head, block, tail = re.split(
        r"(?<=## A newcomer's walk\n)(.*?```text\n.*?```)", page, maxsplit=1, flags=re.DOTALL
    )
    intro, _, old = block.partition("```text\n")
    remarks = {
        name: remark
        for name, _, remark in (line.partition(" ") for line in old.splitlines())
        if remark.strip()
    }
    lines = []
    for thread, functions in parts(calls):
        lines += ["", f"[{thread}]"]
        for name in functions:
            lines.append(f"{name:<{COLUMN}}{remarks.get(name, '').strip()}".rstrip())
    PAGE.write_text(f"{head}{intro}```text\n" + "\n".join(lines[1:]) + f"\n```{tail}")
    count = sum(len(functions) for functions in walk_of_the_page().values())
    print(f"{PAGE.relative_to(ROOT)}: {count} functions")


def parts(calls: list[Call]) -> list[tuple[str, list[str]]]:
    """The functions by thread; the event loop's in three parts, as others have their turn."""
    loop, tokenizer, engine = THREADS
    before_tokens = min(call.at for call in calls if re.fullmatch(THREADS[tokenizer], call.thread))
    before_text = max(
        call.at for call in calls if call.function == "server.text_stream.EventRelay.put"
    )
    listed: set[str] = set()

    def of_loop(end: float) -> list[str]:
        names = first_calls([call for call in calls if call.at < end], THREADS[loop])
        new = [name for name in names if name not in listed]
        listed.update(new)
        return new

    return [
        (loop, of_loop(before_tokens)),
        (tokenizer, first_calls(calls, THREADS[tokenizer])),
        (loop, of_loop(before_text)),
        (engine, first_calls(calls, THREADS[engine])),
        (loop, of_loop(float("inf"))),
    ]


if __name__ == "__main__":
    main()

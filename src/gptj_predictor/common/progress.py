"""Progress of long work: a bar on a terminal, a line every few seconds in a log."""

from __future__ import annotations

import sys
import threading
import time
from typing import Self

from tqdm import tqdm

#: Seconds between two lines of a log.
LOG_INTERVAL = 5.0


class Progress:
    """Bytes done of a total; may be advanced from several threads.

    Args:
        what: What is being done, a few words.
        total: Bytes in all.
        done: Bytes that an earlier run has done already; they do not count as speed.
    """

    def __init__(self, what: str, total: int, done: int = 0) -> None:
        self._what, self._total, self._done, self._first = what, total, done, done
        self._lock = threading.Lock()
        self._started = self._said = time.monotonic()
        self._bar = None
        if sys.stderr.isatty():
            self._bar = tqdm(
                desc=what, total=total, initial=done, unit="B", unit_scale=True, leave=True
            )
        else:
            say(f"{what}: {f'going on at {readable(done)} of ' if done else ''}{readable(total)}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        if self._bar is not None:
            self._bar.close()
        elif error is None:
            seconds = time.monotonic() - self._started
            say(f"{self._what}: done, {readable(self._done)}, {seconds:.1f} s")

    def advance(self, count: int) -> None:
        """Count bytes; a negative number takes back what turned out to be lost."""
        with self._lock:
            self._done += count
            if self._bar is not None:
                self._bar.update(count)
                return
            now = time.monotonic()
            if now - self._said < LOG_INTERVAL:
                return
            self._said = now
            rate = (self._done - self._first) / (now - self._started)
            rest = f", {(self._total - self._done) / rate:.0f} s left" if rate > 0 else ""
            say(
                f"{self._what}: {readable(self._done)} of {readable(self._total)}, "
                f"{readable(rate)}/s{rest}"
            )


def say(text: str) -> None:
    """Write a line to stderr, above the bars that a terminal shows."""
    if sys.stderr.isatty():
        tqdm.write(text, file=sys.stderr)
    else:  # tqdm's lock would be made here, and a signal at that moment would end in a traceback
        sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


def readable(count: float) -> str:
    """Bytes as people read them: three digits and a decimal unit."""
    return str(tqdm.format_sizeof(count, "B"))

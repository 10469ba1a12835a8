"""The sweep: every batch size and every length, with warm-up rounds before those measured."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Callable

from tqdm import tqdm

from gptj_predictor.bench.errors import CellError, DoesNotFitError
from gptj_predictor.bench.results import Cell, Results, Round
from gptj_predictor.bench.targets import Target
from gptj_predictor.bench.text import Prompt, Prompts
from gptj_predictor.common.progress import say


class Sweep:
    """Measures cells one after the other.

    Prompts and seeds depend on nothing but the place in the sweep, so that every run measures the
    same ones, in process or over HTTP. Every round has prompts of its own, because the engine's
    prefix cache may hold those of the rounds before.
    """

    def __init__(self, target: Target, prompts: Prompts, results: Results) -> None:
        self._target = target
        self._prompts = prompts
        self._settings = results.settings
        self._bandwidth = results.run.bandwidth
        self._first_separately = results.run.first_token == "one-token request"  # noqa: S105

    def prompts(self, batch: int, *place: object) -> list[Prompt]:
        """The prompts of one round."""
        return [self._prompts.cut(batch, *place, row) for row in range(batch)]

    def measure(self, batch: int, tokens: int, advance: Callable[[], None]) -> Cell:
        """Measure one cell; ``advance`` is called after every round, warm-up included."""
        new_tokens = tokens - self._settings.prompt_tokens
        try:
            self._target.begin_cell(batch, tokens)
            rounds = []
            for number in range(-self._settings.warmup_rounds, self._settings.rounds):
                measured = self._round(batch, tokens, new_tokens, number)
                if number >= 0:
                    rounds.append(measured)
                advance()
        except CellError as error:
            status = "does_not_fit" if isinstance(error, DoesNotFitError) else "failed"
            return Cell(
                batch=batch, tokens=tokens, new_tokens=new_tokens, status=status, reason=str(error)
            )
        needed = self._target.limit_bytes(batch, tokens, new_tokens)
        limit = needed / self._bandwidth if needed and self._bandwidth else None
        cell = Cell.of(batch, tokens, new_tokens, rounds, limit)
        return cell.model_copy(update={"peak_memory_bytes": self._target.peak_memory()})

    def _round(self, batch: int, tokens: int, new_tokens: int, number: int) -> Round:
        seed = self._prompts.sampling_seed(batch, tokens, number)
        first = None
        if self._first_separately:
            # With other prompts: the prefix cache would keep the round's own.
            others = self.prompts(batch, tokens, number, "first token")
            first = self._target.run(others, 1, seed).seconds
        measured = self._target.run(self.prompts(batch, tokens, number), new_tokens, seed)
        if first is None:
            return measured
        return measured.model_copy(update={"first_token_seconds": first})


class Progress:
    """A bar with the time left on a terminal, a line per cell in a log.

    Args:
        results: Those so far, which say what is missing.
    """

    def __init__(self, results: Results) -> None:
        settings = results.settings
        self._rounds = settings.warmup_rounds + settings.rounds
        self._prompt = settings.prompt_tokens
        missing = results.missing
        self._done, self._count = 0, len(missing)
        # Assume that time is proportional to tokens. A larger batch takes longer, but it is not
        # known yet how much longer.
        self._work = sum(self._cell_work(tokens) for _, tokens in missing)
        self._worked = self._goal = 0  # now, and at the end of the cell
        self._started = time.monotonic()
        self._bar = None
        if sys.stderr.isatty():
            self._bar = tqdm(
                total=self._work,
                bar_format="{desc}: {percentage:3.0f}%|{bar}| {elapsed}, {remaining} left",
                desc="benchmark",
                ncols=shutil.get_terminal_size().columns,  # some terminals report no width
            )

    def _cell_work(self, tokens: int) -> int:
        return self._rounds * (tokens - self._prompt)

    def begin(self, batch: int, tokens: int) -> None:
        """Show which cell is being measured."""
        self._goal = self._worked + self._cell_work(tokens)
        if self._bar is not None:
            self._bar.set_description_str(f"batch {batch}, {tokens} tokens")

    def advance(self, tokens: int) -> None:
        """Count a round."""
        self._move(min(self._goal, self._worked + tokens - self._prompt))

    def _move(self, worked: int) -> None:
        if self._bar is not None:
            self._bar.update(worked - self._worked)
        self._worked = worked

    def end(self, cell: Cell) -> None:
        """Count the cell, and show its figures."""
        self._move(self._goal)
        self._done += 1
        if self._bar is None:
            left = (time.monotonic() - self._started) * (self._work / max(1, self._worked) - 1)
            say(f"{self._done}/{self._count} {describe_cell(cell)}; {_duration(left)} left")

    def close(self) -> None:
        """End the bar."""
        if self._bar is not None:
            self._bar.close()


def describe_cell(cell: Cell) -> str:
    """A cell in one line."""
    where = f"batch {cell.batch}, {cell.tokens} tokens"
    if cell.seconds is None or cell.first_token_seconds is None:
        return f"{where}: {cell.status.replace('_', ' ')} ({cell.reason})"
    further = ""
    if cell.output_token_seconds is not None:
        further = f", then every {cell.output_token_seconds * 1000:.2f} ms"
    share = "" if cell.limit_share is None else f", {cell.limit_share:.0%} of the limit"
    return (
        f"{where}: {cell.seconds:.3f} s, {cell.tokens_per_second_per_sequence:.1f} tokens/s per "
        f"sequence, {cell.tokens_per_second:.1f} in all, first after "
        f"{cell.first_token_seconds * 1000:.1f} ms{further}{share}"
    )


def _duration(seconds: float) -> str:
    return str(tqdm.format_interval(max(0, seconds)))


def run_sweep(sweep: Sweep, results: Results, keep: Callable[[Results], None]) -> None:
    """Measure the cells that are missing; ``keep`` gets the results after each of them."""
    progress = Progress(results)
    try:
        for batch, tokens in results.missing:
            progress.begin(batch, tokens)

            def advance(tokens: int = tokens) -> None:
                progress.advance(tokens)

            cell = sweep.measure(batch, tokens, advance)
            results = results.with_cell(cell)
            keep(results)
            progress.end(cell)
    finally:
        progress.close()

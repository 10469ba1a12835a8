"""What a sweep measures: a target, which generates tokens.

There are two: the engine in this process (:mod:`.engine_target`) and a service over HTTP
(:mod:`.http_target`). Both get the same prompts, sampling parameters and seeds. Both generate
exactly as many tokens as they are asked for: no end of text comes early.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from gptj_predictor.bench.results import Round
from gptj_predictor.bench.text import Prompt


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen: as by the service's defaults, so that the sampler has its work."""

    top_k: int
    temperature: float = 1.0
    top_p: float = 0.9
    repetition_penalty: float = 1.0

    @classmethod
    def within(cls, vocabulary: int) -> Sampling:
        """For a vocabulary of so many tokens, the maximum of ``top_k``."""
        return cls(top_k=min(50, vocabulary))


class Target(ABC):
    """Generates tokens, and says how long that took."""

    @abstractmethod
    def run(self, prompts: Sequence[Prompt], new_tokens: int, seed: int) -> Round:
        """Generate exactly ``new_tokens`` tokens after every prompt, all in one batch.

        Raises:
            DoesNotFitError: memory does not suffice.
            CellError: it failed; another batch or length may still work.
            BenchmarkError: it failed, and so would everything else.
        """

    def limit_bytes(self, batch: int, tokens: int, new_tokens: int) -> int | None:
        """Bytes that must be read to generate that; ``None`` if it is not known.

        Args:
            batch: Sequences.
            tokens: Of each sequence, prompt included.
            new_tokens: Of each sequence.
        """
        return None

    def begin_cell(self, batch: int, tokens: int) -> None:  # noqa: B027 - some have nothing to do
        """Prepare for rounds of this batch and length.

        Raises:
            DoesNotFitError: memory does not suffice.
        """

    def peak_memory(self) -> int | None:
        """Bytes: on a GPU since :meth:`begin_cell`, else since the process began."""
        return None

    @abstractmethod
    def close(self) -> None:
        """Let go of what is held."""

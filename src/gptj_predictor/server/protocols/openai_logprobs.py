"""Log-probabilities as OpenAI's completions show them: four lists, token by token."""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, zip_longest
from typing import Any

from gptj_predictor.engine.request import TokenLogprobs
from gptj_predictor.server.generation_call import GeneratedToken, TokenizedPrompt
from gptj_predictor.server.protocols.details import MIN_LOGPROB, bounded
from gptj_predictor.tokenizer import Tokenizer


@dataclass(frozen=True)
class _Token:
    token_id: int
    start: int  # in the text, in characters
    logprobs: TokenLogprobs | None  # the first one of a prompt has none


@dataclass(frozen=True)
class LogprobsFormat:
    """Writes the log-probabilities of texts.

    Attributes:
        tokenizer: Spells tokens.
        echo: Whether texts begin with their prompts.
    """

    tokenizer: Tokenizer
    echo: bool

    def write(
        self,
        prompt: TokenizedPrompt,
        tokens: Iterable[GeneratedToken],
        prompt_logprobs: Sequence[TokenLogprobs] | None,
    ) -> dict[str, Any]:
        """A text's log-probabilities, or those of a part of it.

        Args:
            prompt: The text's.
            tokens: Those of the text.
            prompt_logprobs: Those of the prompt from its second token on; ``None`` if the prompt
                is not to be there.
        """
        start = len(prompt.text) if self.echo else 0
        text = (_Token(one.logprobs.token_id, start + one.start, one.logprobs) for one in tokens)
        before = () if prompt_logprobs is None else self._prompt(prompt, prompt_logprobs)
        written = list(chain(before, text))
        return {
            "tokens": [self.spell(one.token_id) for one in written],
            "token_logprobs": [one.logprobs and bounded(one.logprobs.logprob) for one in written],
            "top_logprobs": [one.logprobs and self._likeliest(one.logprobs) for one in written],
            "text_offset": [one.start for one in written],
        }

    def spell(self, token_id: int) -> str:
        r"""A token as a text of its own: ``bytes:\xe2\x82`` for a part of a character."""
        spelling = self.tokenizer.spelling(token_id)
        try:
            return spelling.decode() or f"token_id:{token_id}"
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in spelling)

    def _prompt(
        self, prompt: TokenizedPrompt, logprobs: Sequence[TokenLogprobs]
    ) -> Iterator[_Token]:
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        start = 0
        for token_id, known in zip_longest(prompt.token_ids, (None, *logprobs)):
            yield _Token(token_id, start, known)
            start += len(decoder.decode(self.tokenizer.spelling(token_id)))

    def _likeliest(self, logprobs: TokenLogprobs) -> dict[str, float]:
        """The likeliest tokens, and the one that came if it is not among them."""
        known = (*logprobs.top, (logprobs.token_id, logprobs.logprob))
        return {self.spell(token_id): bounded(logprob) for token_id, logprob in known}


def mean_logprob(tokens: Sequence[GeneratedToken]) -> float:
    """What ``best_of`` compares: the mean of a text's log-probabilities, per token."""
    if not tokens:
        return MIN_LOGPROB
    return sum(bounded(one.logprobs.logprob) for one in tokens) / len(tokens)

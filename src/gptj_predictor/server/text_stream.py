"""One sequence from the engine's thread to the event loop, from tokens to text."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from itertools import islice, takewhile

from gptj_predictor.engine.engine import Handle
from gptj_predictor.engine.request import (
    EngineDeadError,
    Event,
    Failure,
    FinishReason,
    TokenLogprobs,
)
from gptj_predictor.server.active_requests import ActiveRequest
from gptj_predictor.server.generation_call import (
    EndedEarlyError,
    GeneratedText,
    GeneratedToken,
    GenerationFailedError,
    OutOfMemoryError,
    Piece,
    TokenizedPrompt,
)
from gptj_predictor.tokenizer import Detokenizer


class EventRelay:
    """Carries events from the engine's thread to the event loop.

    Waking the loop takes processor time from the engine's thread. So the loop is woken once for
    whatever has come before it looks: for all the sequences of a step, as a rule.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._batches: deque[tuple[TextStream, list[Event]]] = deque()
        self._is_woken = False

    def put(self, stream: TextStream, events: list[Event]) -> None:
        """Hand events to their stream, in the loop; called in the engine's thread."""
        self._batches.append((stream, events))
        if not self._is_woken:
            self._is_woken = True
            self._loop.call_soon_threadsafe(self._deliver)

    def _deliver(self) -> None:
        self._is_woken = False  # what is put from now on may need another look
        while self._batches:
            stream, events = self._batches.popleft()
            stream.take(events)


class TextStream:
    """One sequence's events, made into text as they come.

    The loop is told of every token if somebody reads along or a stop string may end the text; else
    of the last one, with all before it.

    A slow reader holds nobody up, and what it has not read is no more than the whole text.
    """

    def __init__(
        self,
        place: tuple[int, int],
        detokenizer: Detokenizer,
        active: ActiveRequest,
        relay: EventRelay,
        *,
        prompt: TokenizedPrompt,
        seed: int,
        reads_along: bool,
        on_news: Callable[[TextStream], None],
    ) -> None:
        """Wait for events.

        Args:
            place: Number of the prompt, and of the sequence among those of the prompt.
            detokenizer: Makes its text.
            active: The request.
            relay: Brings the events.
            prompt: What comes before the text.
            seed: Of the sequence.
            reads_along: Whether each token is news.
            on_news: Called in the loop with this stream when there is a piece, or the end.
        """
        self.handle: Handle | None = None
        self._place = place
        self._detokenizer = detokenizer
        self._active = active
        self._relay = relay
        self._prompt = prompt
        self._seed = seed
        self._reads_along = reads_along
        self._on_news = on_news
        self._waiting: list[Event] = []  # the engine's thread alone uses it
        self._parts: list[str] = []
        self._num_tokens = 0
        self._num_characters = 0
        self._tokens: list[GeneratedToken] = []
        self._prompt_logprobs: tuple[TokenLogprobs, ...] = ()
        self._num_read_parts = self._num_read_tokens = 0
        self._is_begun = self._is_read = False
        self._text: GeneratedText | None = None
        self._error: Exception | None = None

    def put(self, event: Event) -> None:
        """Take an event; called in the engine's thread."""
        if event.is_scheduled:
            self._active.ticket.started(len(self._prompt.token_ids))
            return
        self._waiting.append(event)
        if self._reads_along or event.finish_reason is not None:
            events, self._waiting = self._waiting, []
            self._relay.put(self, events)

    def take(self, events: list[Event]) -> None:
        """Make text of events; what comes after the end is left out."""
        if self.has_ended:
            return
        if self._active.ended is FinishReason.CANCELLED:
            self._fail(EndedEarlyError(FinishReason.CANCELLED))  # nobody reads the text
            return
        try:
            if any(self._ends_with(event) for event in events):
                return
        except Exception as error:  # those whose events come behind must not suffer
            self._fail(error)
            return
        self._on_news(self)

    def _ends_with(self, event: Event) -> bool:
        """Take an event; whether it was the last."""
        if event.finish_reason is FinishReason.ERROR:
            self._fail(_failed(event))
            return True
        if event.prompt_logprobs is not None:
            self._prompt_logprobs = event.prompt_logprobs
        if event.token_id is not None:
            self._num_tokens += 1
            if event.logprobs is not None:
                start = self._detokenizer.num_characters
                self._tokens.append(GeneratedToken(start, event.logprobs))
            # The token that a client wants to stop at is not in the text.
            if event.finish_reason is not FinishReason.STOP_SEQUENCE:
                self._add(self._detokenizer.add(event.token_id))
        if self._detokenizer.stopped:
            self.end(FinishReason.STOP_SEQUENCE)
            self._finish(FinishReason.STOP_SEQUENCE)
            return True
        if event.finish_reason is not None:
            self._finish(event.finish_reason)
            return True
        return False

    def end(self, reason: FinishReason) -> None:
        """End the sequence early; with ``ERROR`` without the engine, which hangs."""
        if reason is FinishReason.ERROR:
            self.take([Event(finish_reason=reason, failure=Failure.ENGINE)])
        elif self.handle is not None:
            self.handle.end(reason)

    def cancel(self) -> None:
        """Stop the sequence if it still runs."""
        if not self.has_ended:
            self.end(FinishReason.CANCELLED)

    @property
    def has_ended(self) -> bool:
        """Whether nothing more comes."""
        return self._text is not None or self._error is not None

    def text(self) -> GeneratedText:
        """The whole, once it has ended.

        Raises:
            EndedEarlyError: nobody waits for it any more.
            GenerationFailedError: the engine failed.
            EngineDeadError: the engine does not run.
            Exception: its tokens could not be made into text.
        """
        if self._error is not None:
            raise self._error
        assert self._text is not None
        return self._text

    def read(self) -> Piece | None:
        """What has come since the last call, if anything, unless it has failed."""
        if self._error is not None:
            return None
        parts, tokens = self._parts[self._num_read_parts :], self._new_tokens()
        ends = self._text is not None and not self._is_read
        if not (parts or tokens or ends):
            return None
        self._num_read_parts += len(parts)
        self._num_read_tokens += len(tokens)
        self._is_read = self._is_read or ends
        prompt_logprobs = () if self._is_begun else self._prompt_logprobs
        self._is_begun = True
        return Piece(*self._place, "".join(parts), tokens, self._text, prompt_logprobs)

    def _new_tokens(self) -> tuple[GeneratedToken, ...]:
        """Those that have not been read and begin in the text that is certain."""
        tokens = self._tokens if self._text is None else self._text.tokens
        unread = islice(tokens, self._num_read_tokens, None)
        if self._text is not None:
            return tuple(unread)
        return tuple(takewhile(lambda token: token.start < self._num_characters, unread))

    @property
    def failed(self) -> bool:
        """Whether :meth:`text` raises."""
        return self._error is not None

    def _add(self, text: str) -> None:
        if text:
            self._parts.append(text)
            self._num_characters += len(text)

    def _fail(self, error: Exception) -> None:
        self._error = error
        self._on_news(self)

    def _finish(self, reason: FinishReason) -> None:
        if reason is FinishReason.CANCELLED and self._active.ended is None:
            self._fail(EngineDeadError("the engine was stopped"))
            return
        self._add(self._detokenizer.finish())
        assert self.handle is not None
        tokens = self._tokens
        if self._detokenizer.stopped:
            tokens = [token for token in tokens if token.start < self._num_characters]
        self._text = GeneratedText(
            text="".join(self._parts),
            finish_reason=reason,
            num_generated_tokens=self._num_tokens,
            seed=self._seed,
            timeline=self.handle.timeline,
            prompt=self._prompt,
            tokens=tuple(tokens),
            prompt_logprobs=self._prompt_logprobs,
        )
        self._on_news(self)


def _failed(event: Event) -> Exception:
    if event.failure is Failure.ENGINE:
        return EngineDeadError("the engine has stopped")
    if event.failure is Failure.OUT_OF_MEMORY:
        return OutOfMemoryError(event.error)
    return GenerationFailedError(event.error)

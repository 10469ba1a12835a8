"""From prompts to texts: the part of the server that no wire format shows through."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

from kserve.errors import InvalidInput

from gptj_predictor.engine.engine import Engine, Handle
from gptj_predictor.engine.request import (
    EngineDeadError,
    Event,
    Failure,
    FinishReason,
    RequestRefusedError,
    Timeline,
)
from gptj_predictor.sampling.params import SamplingParams
from gptj_predictor.server.active_requests import ActiveRequest
from gptj_predictor.settings import GenerationParameters, LengthError
from gptj_predictor.tokenizer import Detokenizer, Tokenizer


@dataclass(frozen=True)
class GenerationRequest:
    """What every protocol's request becomes.

    Attributes:
        prompts: One text per instance.
        parameters: What the client gave, over the server's defaults; ``model_fields_set`` has the
            names of those that the client gave.
    """

    prompts: tuple[str, ...]
    parameters: GenerationParameters


@dataclass(frozen=True)
class GenerationCall:
    """A request, what may end it early, and what has come of it.

    Attributes:
        request: What is asked for.
        active: What may end it early.
        handles: Its sequences in the engine, instance by instance.
        texts: Theirs, once all have ended.
    """

    request: GenerationRequest
    active: ActiveRequest
    handles: list[Handle] = field(default_factory=list)
    texts: list[GeneratedText] = field(default_factory=list)

    @property
    def timelines(self) -> list[Timeline]:
        """How far each sequence has come."""
        return [one.timeline for one in self.texts or self.handles]


@dataclass(frozen=True)
class TokenizedPrompt:
    """One instance, ready for the engine: ``params`` differ between its sequences in the seed."""

    text: str
    token_ids: list[int]
    params: tuple[SamplingParams, ...]


@dataclass(frozen=True)
class GeneratedText:
    """One sequence's text and how it came about."""

    text: str  # without the prompt
    finish_reason: FinishReason
    num_generated_tokens: int  # that the text was made of
    seed: int
    timeline: Timeline


class GenerationFailedError(RuntimeError):
    """The engine could not finish a sequence; the text is for the log, not for the client."""


class OutOfMemoryError(GenerationFailedError):
    """The device's memory did not suffice, although the sequence was tried alone."""


class EndedEarlyError(RuntimeError):
    """The request has ended before any of its sequences had a token.

    Attributes:
        reason: ``DEADLINE``, ``SHUTDOWN`` or ``CANCELLED``.
    """

    def __init__(self, reason: FinishReason) -> None:
        super().__init__(reason.value)
        self.reason = reason


class TextGenerator:
    """A tokenizer and an engine, from text to text."""

    def __init__(self, engine: Engine, tokenizer: Tokenizer) -> None:
        self.engine = engine
        self._tokenizer = tokenizer

    async def tokenize(self, call: GenerationCall) -> list[TokenizedPrompt]:
        """Tokenize all prompts and decide their lengths, in a thread beside the event loop.

        Raises:
            InvalidInput: a prompt is too long for its ``max_length``, or lengths contradict.
            QueueFullError: the queue has no room for so many tokens.
        """
        prompts = await asyncio.to_thread(self._tokenize, call.request)
        num_tokens = sum(len(prompt.token_ids) * len(prompt.params) for prompt in prompts)
        call.active.ticket.add_tokens(num_tokens)
        return prompts

    def _tokenize(self, request: GenerationRequest) -> list[TokenizedPrompt]:
        parameters = request.parameters
        lengths, context = parameters.lengths, self.engine.info().max_context
        tokenized = []
        for number, text in enumerate(request.prompts):
            token_ids = self._tokenizer.encode(text) or [self._begin_of_text()]
            try:
                totals = lengths.totals(len(token_ids), context, f"instances[{number}]")
            except LengthError as error:
                field = f"parameters.{error.parameter}: " if error.parameter else ""
                raise InvalidInput(f"{field}{error}") from None
            # Without a seed every prompt draws its own, or equal prompts would get equal texts.
            seed = parameters.seed if parameters.seed is not None else secrets.randbits(63)
            params = tuple(
                SamplingParams(
                    min_length=totals.minimum,
                    max_length=totals.maximum,
                    temperature=parameters.temperature if parameters.do_sample else 0.0,
                    top_k=parameters.top_k,
                    top_p=parameters.top_p,
                    repetition_penalty=parameters.repetition_penalty,
                    seed=(seed + index) % 2**63,
                )
                for index in range(parameters.num_return_sequences)
            )
            tokenized.append(TokenizedPrompt(text, token_ids, params))
        return tokenized

    def _begin_of_text(self) -> int:
        token_id = self._tokenizer.bos_token_id
        if token_id is None:
            raise InvalidInput("instances: an empty prompt; this model has no begin-of-text token")
        return token_id

    async def generate(
        self, prompts: Sequence[TokenizedPrompt], call: GenerationCall
    ) -> list[list[GeneratedText]]:
        """Generate all sequences of all prompts together.

        If the request ends early, its texts are what there is.

        Returns:
            For every prompt, its texts in order.

        Raises:
            InvalidInput: a sequence can never fit the KV cache.
            EndedEarlyError: there is no text at all.
            GenerationFailedError: the engine failed on one of them; the others are cancelled.
            EngineDeadError: the engine does not run.
        """
        active, streams = call.active, list[_TextStream]()
        try:
            if active.ended is None:  # while its prompts were tokenized
                for prompt in prompts:
                    streams += [self._start(prompt, params, call) for params in prompt.params]
            active.on_end(partial(_end_all, streams))
            texts = await asyncio.gather(*(stream.result() for stream in streams))
        except RequestRefusedError as error:
            raise InvalidInput(f"parameters.max_length: {error}") from error
        finally:
            for stream in streams:
                stream.cancel()
        if active.ended is not None and not any(text.num_generated_tokens for text in texts):
            raise EndedEarlyError(active.ended)
        call.texts.extend(texts)
        rest = iter(texts)
        return [[next(rest) for _ in prompt.params] for prompt in prompts]

    def _start(
        self, prompt: TokenizedPrompt, params: SamplingParams, call: GenerationCall
    ) -> _TextStream:
        stream = _TextStream(self._tokenizer, prompt, params, call)
        caller = call.active.caller
        stream.handle = self.engine.submit(prompt.token_ids, params, stream.put, caller)
        call.handles.append(stream.handle)
        return stream


class _TextStream:
    """One sequence's events, carried from the engine's thread to the event loop, as text.

    Waking the loop takes processor time from the engine's thread. So the loop is woken only when
    the text may end: at every token if there are stop strings, else at the last one.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        prompt: TokenizedPrompt,
        params: SamplingParams,
        call: GenerationCall,
    ) -> None:
        stop = call.request.parameters.stop_strings
        self.handle: Handle | None = None
        self._detokenizer = Detokenizer(tokenizer, stop)
        self._may_stop = bool(stop)
        self._active = call.active
        self._num_prompt_tokens = len(prompt.token_ids)
        self._seed = params.seed
        self._loop = asyncio.get_running_loop()
        self._waiting: list[Event] = []  # the engine's thread alone uses it
        self._batches: asyncio.Queue[list[Event]] = asyncio.Queue()
        self._finish_reason: FinishReason | None = None

    def put(self, event: Event) -> None:
        """Take an event; called in the engine's thread."""
        if event.is_scheduled:
            self._active.ticket.started(self._num_prompt_tokens)
            return
        self._waiting.append(event)
        if self._may_stop or event.finish_reason is not None:
            batch, self._waiting = self._waiting, []
            self._loop.call_soon_threadsafe(self._batches.put_nowait, batch)

    def end(self, reason: FinishReason) -> None:
        """End the sequence early; with ``ERROR`` without the engine, which hangs."""
        if reason is FinishReason.ERROR:
            self._batches.put_nowait([Event(finish_reason=reason, failure=Failure.ENGINE)])
        elif self.handle is not None:
            self.handle.end(reason)

    def cancel(self) -> None:
        """Stop the sequence if it still runs."""
        if self._finish_reason is None:
            self.end(FinishReason.CANCELLED)

    async def result(self) -> GeneratedText:
        """Wait for the end, or for a stop string, and return the text."""
        parts, num_tokens = [], 0
        while self._finish_reason is None:
            batch = await self._batches.get()
            if self._active.ended is FinishReason.CANCELLED:
                raise EndedEarlyError(FinishReason.CANCELLED)  # nobody reads the text
            for event in batch:
                self._finish_reason = event.finish_reason
                if event.finish_reason is FinishReason.ERROR:
                    raise _failed(event)
                if event.token_id is not None:
                    parts.append(self._detokenizer.add(event.token_id))
                    num_tokens += 1
                if self._detokenizer.stopped:
                    self.end(FinishReason.STOP_SEQUENCE)
                    self._finish_reason = FinishReason.STOP_SEQUENCE
                    break
        if self._finish_reason is FinishReason.CANCELLED and self._active.ended is None:
            raise EngineDeadError("the engine was stopped")
        assert self.handle is not None
        parts.append(self._detokenizer.finish())
        return GeneratedText(
            text="".join(parts),
            finish_reason=self._finish_reason,
            num_generated_tokens=num_tokens,
            seed=self._seed,
            timeline=self.handle.timeline,
        )


def _end_all(streams: list[_TextStream], reason: FinishReason) -> None:
    for stream in streams:
        stream.end(reason)


def _failed(event: Event) -> Exception:
    if event.failure is Failure.ENGINE:
        return EngineDeadError("the engine has stopped")
    if event.failure is Failure.OUT_OF_MEMORY:
        return OutOfMemoryError(event.error)
    return GenerationFailedError(event.error)

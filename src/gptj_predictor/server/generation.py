"""From prompts to texts: the part of the server that no wire format shows through."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Sequence
from dataclasses import dataclass

from kserve.errors import InvalidInput

from gptj_predictor.engine.engine import Engine, Handle
from gptj_predictor.engine.request import Event, FinishReason, RequestRefusedError
from gptj_predictor.sampling.params import SamplingParams
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
class TokenizedPrompt:
    """One instance, ready for the engine: ``params`` differ between its sequences in the seed."""

    text: str
    token_ids: list[int]
    params: tuple[SamplingParams, ...]


class GenerationFailedError(RuntimeError):
    """The engine could not finish a sequence; the text is for the log, not for the client."""


class TextGenerator:
    """A tokenizer and an engine, from text to text."""

    def __init__(self, engine: Engine, tokenizer: Tokenizer) -> None:
        self.engine = engine
        self._tokenizer = tokenizer

    async def tokenize(self, request: GenerationRequest) -> list[TokenizedPrompt]:
        """Tokenize all prompts and decide their lengths, in a thread beside the event loop.

        Raises:
            InvalidInput: a prompt is too long for its ``max_length``, or lengths contradict.
        """
        return await asyncio.to_thread(self._tokenize, request)

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
        self, prompts: Sequence[TokenizedPrompt], parameters: GenerationParameters
    ) -> list[list[str]]:
        """Generate all sequences of all prompts together.

        Returns:
            For every prompt, its texts in order.

        Raises:
            InvalidInput: a sequence can never fit the KV cache.
            GenerationFailedError: the engine failed on one of them; the others are cancelled.
            EngineDeadError: the engine does not run.
        """
        streams: list[_TextStream] = []
        try:
            for prompt in prompts:
                for params in prompt.params:
                    streams.append(self._start(prompt, params, parameters))
            texts = iter(await asyncio.gather(*(stream.text() for stream in streams)))
        except RequestRefusedError as error:
            raise InvalidInput(f"parameters.max_length: {error}") from error
        finally:
            for stream in streams:
                stream.cancel()
        return [
            [
                (prompt.text if parameters.return_full_text else "") + next(texts)
                for _ in prompt.params
            ]
            for prompt in prompts
        ]

    def _start(
        self, prompt: TokenizedPrompt, params: SamplingParams, parameters: GenerationParameters
    ) -> _TextStream:
        stop = parameters.stop_strings
        stream = _TextStream(Detokenizer(self._tokenizer, stop), may_stop=bool(stop))
        stream.handle = self.engine.submit(prompt.token_ids, params, stream.put)
        return stream


class _TextStream:
    """One sequence's events, carried from the engine's thread to the event loop, as text.

    Waking the loop takes processor time from the engine's thread. So the loop is woken only when
    the text may end: at every token if there are stop strings, else at the last one.
    """

    def __init__(self, detokenizer: Detokenizer, *, may_stop: bool) -> None:
        self.handle: Handle | None = None
        self._detokenizer = detokenizer
        self._may_stop = may_stop
        self._loop = asyncio.get_running_loop()
        self._waiting: list[Event] = []  # the engine's thread alone uses it
        self._batches: asyncio.Queue[list[Event]] = asyncio.Queue()
        self._ended = False

    def put(self, event: Event) -> None:
        """Take an event; called in the engine's thread."""
        self._waiting.append(event)
        if self._may_stop or event.finish_reason is not None:
            batch, self._waiting = self._waiting, []
            self._loop.call_soon_threadsafe(self._batches.put_nowait, batch)

    def cancel(self) -> None:
        """Stop the sequence if it still runs."""
        if self.handle is not None and not self._ended:
            self.handle.cancel()

    async def text(self) -> str:
        """Wait for the end, or for a stop string, and return the text."""
        parts = []
        while not self._ended and not self._detokenizer.stopped:
            for event in await self._batches.get():
                self._ended = event.finish_reason is not None
                if event.finish_reason in (FinishReason.ERROR, FinishReason.CANCELLED):
                    raise GenerationFailedError(event.error or event.finish_reason)
                if event.token_id is not None:
                    parts.append(self._detokenizer.add(event.token_id))
        parts.append(self._detokenizer.finish())
        return "".join(parts)

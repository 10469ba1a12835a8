"""From prompts to texts: the part of the server that no wire format shows through."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Sequence

from kserve.errors import InvalidInput

from gptj_predictor.engine.engine import Engine
from gptj_predictor.engine.request import FinishReason, RequestRefusedError
from gptj_predictor.sampling.params import SamplingParams
from gptj_predictor.server.generation_call import (
    EndedEarlyError,
    GeneratedText,
    GenerationCall,
    GenerationRequest,
    Piece,
    Prompt,
    PromptTooLongError,
    TokenizedPrompt,
)
from gptj_predictor.server.text_stream import EventRelay, TextStream
from gptj_predictor.settings import LengthError
from gptj_predictor.tokenizer import Detokenizer, Tokenizer


class TextGenerator:
    """A tokenizer and an engine, from text to text."""

    def __init__(self, engine: Engine, tokenizer: Tokenizer) -> None:
        self.engine = engine
        self.tokenizer = tokenizer
        self._relay: EventRelay | None = None

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
        parameters, names = request.parameters, request.names
        lengths, context = parameters.lengths, self.engine.info().max_context
        tokenized = []
        for number, prompt in enumerate(request.prompts):
            token_ids = self._token_ids(prompt) or [self._begin_of_text(request)]
            try:
                totals = lengths.totals(
                    len(token_ids), context, names.prompt(number), names.parameter
                )
            except LengthError as error:
                kind = PromptTooLongError if error.parameter is None else InvalidInput
                raise kind(names.explain(error)) from None
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
                    min_p=parameters.min_p,
                    typical_p=parameters.typical_p,
                    presence_penalty=parameters.presence_penalty,
                    frequency_penalty=parameters.frequency_penalty,
                    logit_bias=tuple((parameters.logit_bias or {}).items()),
                    stop_token_ids=tuple(parameters.stop_token_ids or ()),
                    ignore_eos=parameters.ignore_eos,
                    logprobs=parameters.logprobs,
                )
                for index in range(parameters.num_return_sequences)
            )
            text = prompt if isinstance(prompt, str) else self.tokenizer.decode(prompt)
            tokenized.append(TokenizedPrompt(text, token_ids, params))
        return tokenized

    def _token_ids(self, prompt: Prompt) -> list[int]:
        return self.tokenizer.encode(prompt) if isinstance(prompt, str) else list(prompt)

    def _begin_of_text(self, request: GenerationRequest) -> int:
        token_id = self.tokenizer.bos_token_id
        if token_id is None:
            raise InvalidInput(
                f"{request.names.prompts}: an empty prompt; this model has no begin-of-text token"
            )
        return token_id

    def start(self, prompts: Sequence[TokenizedPrompt], call: GenerationCall) -> Generation:
        """Have all sequences of all prompts generated together.

        Raises:
            InvalidInput: a sequence can never fit the KV cache.
            EngineDeadError: the engine does not run.
        """
        if self._relay is None:
            self._relay = EventRelay(asyncio.get_running_loop())
        generation = Generation(prompts, call)
        try:
            if call.active.ended is None:  # while its prompts were tokenized
                for instance, prompt in enumerate(prompts):
                    for sequence, params in enumerate(prompt.params):
                        stream = self._stream((instance, sequence), prompt, params, generation)
                        generation.add(stream)
                        stream.handle = self.engine.submit(
                            prompt.token_ids, params, stream.put, call.active.caller
                        )
                        call.handles.append(stream.handle)
        except BaseException as error:
            generation.cancel()
            if isinstance(error, RequestRefusedError):
                name = call.request.names.parameter("max_length")
                raise InvalidInput(f"{call.request.names.parameters}{name}: {error}") from error
            raise
        call.active.on_end(generation.end)
        return generation

    def _stream(
        self,
        place: tuple[int, int],
        prompt: TokenizedPrompt,
        params: SamplingParams,
        generation: Generation,
    ) -> TextStream:
        request = generation.call.request
        stop = request.parameters.stop_strings
        assert self._relay is not None
        return TextStream(
            place,
            Detokenizer(self.tokenizer, stop),
            generation.call.active,
            self._relay,
            prompt=prompt,
            seed=params.seed,
            reads_along=request.stream or bool(stop),
            on_news=generation.note,
        )


class Generation:
    """All sequences of one call, on their way through the engine. The event loop alone uses it."""

    def __init__(self, prompts: Sequence[TokenizedPrompt], call: GenerationCall) -> None:
        """None of the prompts' sequences has begun; see :meth:`add`."""
        self.call = call
        self.prompts = prompts
        self._streams: list[TextStream] = []
        self._has_news = asyncio.Event()
        self._with_news: dict[TextStream, None] = {}
        self._num_running = 0
        self._failed: TextStream | None = None

    def add(self, stream: TextStream) -> None:
        """Add the next sequence, in the order of prompts."""
        self._streams.append(stream)
        self._num_running += 1

    def note(self, stream: TextStream) -> None:
        """There is a piece of a stream, or its end."""
        if stream.has_ended:
            self._num_running -= 1
        if stream.failed and self._failed is None:
            self._failed = stream
        self._with_news[stream] = None
        self._has_news.set()

    def end(self, reason: FinishReason) -> None:
        """End all sequences early."""
        for stream in self._streams:
            stream.end(reason)

    def cancel(self) -> None:
        """Stop the sequences that still run; nobody waits for them."""
        for stream in self._streams:
            stream.cancel()

    @property
    def _is_over(self) -> bool:
        return self._failed is not None or not self._num_running

    async def texts(self) -> list[list[GeneratedText]]:
        """Wait for the end. If the request ends early, its texts are what there is.

        Returns:
            For every prompt, its texts in order.

        Raises:
            EndedEarlyError: there is no text at all.
            GenerationFailedError: the engine failed on one of them.
            EngineDeadError: the engine does not run.
        """
        while not self._is_over:
            await self._has_news.wait()
            self._has_news.clear()
        if self._failed is not None:
            self._failed.text()  # raises
        texts, ended = [stream.text() for stream in self._streams], self.call.active.ended
        if ended is not None and not any(text.num_generated_tokens for text in texts):
            raise EndedEarlyError(ended)
        self.call.texts.extend(texts)
        rest = iter(texts)
        return [[next(rest) for _ in prompt.params] for prompt in self.prompts]

    async def pieces(self, idle_seconds: float) -> AsyncIterator[list[Piece]]:
        """What comes, until all sequences have ended or one has failed, which :meth:`texts` raises.

        Args:
            idle_seconds: When nothing has come for so long, an empty list does.
        """
        while not self._is_over or self._with_news:
            try:
                async with asyncio.timeout(idle_seconds):
                    await self._has_news.wait()
            except TimeoutError:
                yield []
                continue
            self._has_news.clear()
            streams, self._with_news = self._with_news, {}
            pieces = [piece for stream in streams if (piece := stream.read()) is not None]
            if pieces:
                yield pieces

"""What is measured: the engine in this process, or a service over HTTP.

Both are given the same prompts, sampling parameters and seeds, and generate exactly as many tokens
as they are asked for: the end of the text is not chosen before, and nothing is generated after.
"""

from __future__ import annotations

import resource
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import httpx
import torch

from gptj_predictor.bench.errors import BenchmarkError, CellError, DoesNotFitError
from gptj_predictor.bench.results import Round
from gptj_predictor.bench.text import Prompt
from gptj_predictor.engine.engine import Engine
from gptj_predictor.engine.request import (
    EngineDeadError,
    Event,
    EventSink,
    RequestRefusedError,
    SamplingParams,
)
from gptj_predictor.tokenizer import Tokenizer

#: New tokens from which a text tells by its own tokens whether all of them were generated.
TELLING_TOKENS = 16

#: What a server says of a sequence that its cache can never hold, and torch of what its memory
#: cannot.
NO_ROOM = "do not fit the KV cache"
OUT_OF_MEMORY = ("out of memory", "can't allocate memory")

CONNECT_SECONDS = 10


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen: the service's defaults, so that the sampler's work is measured."""

    top_k: int
    temperature: float = 1.0
    top_p: float = 0.9
    repetition_penalty: float = 1.0

    @classmethod
    def within(cls, vocabulary: int) -> Sampling:
        """For a vocabulary, which bounds ``top_k``."""
        return cls(top_k=min(50, vocabulary))


class Target(ABC):
    """Someone who generates."""

    @abstractmethod
    def run(self, prompts: Sequence[Prompt], new_tokens: int, seed: int) -> Round:
        """Generate ``new_tokens`` tokens after every prompt, all together.

        Raises:
            DoesNotFitError: there is not the memory for it.
            CellError: it went wrong.
            BenchmarkError: no other request can go better.
        """

    def limit_bytes(self, batch: int, tokens: int, new_tokens: int) -> int | None:
        """What must be read to generate that, if it is known."""
        return None

    def begin_cell(self, batch: int, tokens: int) -> None:  # noqa: B027 - not everyone cares
        """Take note that the next rounds are of this batch and length.

        Raises:
            DoesNotFitError: there is not the memory for it.
        """

    def peak_memory(self) -> int | None:
        """Bytes, since :meth:`begin_cell` on a GPU."""
        return None

    @abstractmethod
    def close(self) -> None:
        """Let go of what is held."""


class RefusedError(BenchmarkError):
    """The service finds fault with a request."""


class _Collector:
    """Counts a round's tokens and notes its times, in the engine's thread."""

    def __init__(self, sequences: int) -> None:
        self._unbegun = self._running = sequences
        self.tokens = 0
        self.first = self.last = 0.0
        self.errors: list[str] = []
        self.ended = threading.Event()

    def sink(self) -> EventSink:
        """One sequence's event sink."""
        begun = False

        def take(event: Event) -> None:
            nonlocal begun
            if event.token_id is not None:
                self.tokens += 1
                if not begun:
                    begun = True
                    self._unbegun -= 1
                    if not self._unbegun:
                        self.first = time.perf_counter()
            if event.finish_reason is None:
                return
            if event.token_id is None:
                self.errors.append(event.error or event.finish_reason)
            self._running -= 1
            if not self._running:
                self.last = time.perf_counter()
                self.ended.set()

        return take


class EngineTarget(Target):
    """The engine in this process."""

    def __init__(self, engine: Engine, sampling: Sampling) -> None:
        self._engine = engine
        self._sampling = sampling
        self._info = engine.info()
        self._gpus = [device for device in self._info.devices if device.type == "cuda"]

    def limit_bytes(self, batch: int, tokens: int, new_tokens: int) -> int:
        """Every new token takes one pass over the weights, the first one the prompt's.

        The step after ``c`` cached tokens per sequence reads their keys and values; the prompt's
        own are written before.
        """
        prompt = tokens - new_tokens
        cached = sum(range(prompt + 1, tokens))
        info = self._info
        return new_tokens * info.step_weight_bytes + batch * cached * info.kv_bytes_per_token

    def begin_cell(self, batch: int, tokens: int) -> None:
        """See :meth:`Target.begin_cell`; the KV cache must hold all sequences at their ends."""
        size, room = self._info.config.page_size, self._info.kv_cache_tokens
        needed = batch * -(-tokens // size) * size
        if needed > room:
            raise DoesNotFitError(
                f"{batch} x {tokens} tokens need {needed} tokens' room in the KV cache, which has "
                f"{room}"
            )
        for gpu in self._gpus:
            torch.cuda.reset_peak_memory_stats(gpu)

    def peak_memory(self) -> int:
        """See :meth:`Target.peak_memory`."""
        if self._gpus:
            return sum(torch.cuda.max_memory_allocated(gpu) for gpu in self._gpus)
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts in KiB

    def run(self, prompts: Sequence[Prompt], new_tokens: int, seed: int) -> Round:
        """See :meth:`Target.run`."""
        collector = _Collector(len(prompts))
        preempted = self._engine.stats().num_preemptions
        handles = []
        started = time.perf_counter()
        try:
            for prompt in prompts:
                length = len(prompt.ids) + new_tokens
                params = SamplingParams(
                    min_length=length,
                    max_length=length,
                    temperature=self._sampling.temperature,
                    top_k=self._sampling.top_k,
                    top_p=self._sampling.top_p,
                    repetition_penalty=self._sampling.repetition_penalty,
                    seed=seed,
                )
                handles.append(self._engine.submit(prompt.ids, params, collector.sink()))
            collector.ended.wait()
        except RequestRefusedError as error:
            raise DoesNotFitError(str(error)) from error
        except EngineDeadError as error:
            raise BenchmarkError(str(error)) from error
        finally:
            for handle in handles:
                handle.cancel()
        self._check(collector, len(prompts) * new_tokens)
        if self._engine.stats().num_preemptions != preempted:
            raise DoesNotFitError("the KV cache was too small to decode all sequences together")
        return Round(
            seconds=collector.last - started,
            first_token_seconds=collector.first - started,
            counted_tokens=collector.tokens,
        )

    def _check(self, collector: _Collector, wanted: int) -> None:
        if collector.errors:
            text = " ".join(collector.errors[0].split())
            if any(words in text for words in OUT_OF_MEMORY):
                raise DoesNotFitError(text)
            if not self._engine.alive:
                raise BenchmarkError(f"the engine died: {text}")
            raise CellError(text)
        if collector.tokens != wanted:
            raise BenchmarkError(f"{collector.tokens} tokens were generated instead of {wanted}")

    def close(self) -> None:
        """Stop the engine."""
        self._engine.stop()


class HttpTarget(Target):
    """A service's V1 endpoint."""

    def __init__(self, url: str, tokenizer: Tokenizer, sampling: Sampling) -> None:
        """Find the endpoint.

        Args:
            url: Of the service, or of ``/v1/models/NAME``, with or without ``:predict``.
            tokenizer: The one that the service has.
            sampling: Sent with every request.

        Raises:
            BenchmarkError: nobody answers, or there is not one model that is ready.
        """
        self._tokenizer = tokenizer
        self._sampling = sampling
        self._client = httpx.Client(timeout=httpx.Timeout(None, connect=CONNECT_SECONDS))
        self._model = self._find_model(url.rstrip("/"))

    def _find_model(self, url: str) -> str:
        if "/v1/models/" in url:
            model = url.removesuffix(":predict")
        else:
            names = self._send("GET", f"{url}/v1/models").json().get("models", [])
            if len(names) != 1:
                raise BenchmarkError(
                    f"{url} serves {', '.join(names) or 'no model'}; give --url a model's own "
                    f"address, {url}/v1/models/NAME"
                )
            model = f"{url}/v1/models/{names[0]}"
        self._send("GET", model)
        return model

    def check_tokens(self, prompts: Sequence[Prompt]) -> None:
        """Make sure that the service counts as many tokens in the prompts as we do.

        ``max_length`` counts the prompt, and a request whose prompt leaves no room is refused: it
        must be with ``max_length`` at the prompts' tokens, and must not be with one more.

        Raises:
            BenchmarkError: it counts others, so its tokenizer is another model's.
        """
        tokens = len(prompts[0].ids)
        parameters = self._parameters(0) | {"min_length": 0}
        try:
            self._predict(prompts, parameters | {"max_length": tokens + 1})
        except RefusedError as error:
            raise BenchmarkError(
                f"the service refuses {len(prompts)} prompts of {tokens} tokens: {error}"
            ) from error
        for prompt in prompts:
            try:
                self._predict([prompt], parameters | {"max_length": tokens})
            except RefusedError:
                continue
            raise BenchmarkError(
                f"the service counts fewer than {tokens} tokens in a prompt that has {tokens} by "
                "the tokenizer here; --model must name the snapshot that it serves"
            )

    def run(self, prompts: Sequence[Prompt], new_tokens: int, seed: int) -> Round:
        """See :meth:`Target.run`."""
        lengths = {"min_new_tokens": new_tokens, "max_new_tokens": new_tokens}
        texts, seconds = self._predict(prompts, self._parameters(seed) | lengths)
        counted = sum(len(self._tokenizer.encode(text)) for text in texts)
        # A text's tokens may be others than those that were sampled, and not by half.
        if new_tokens >= TELLING_TOKENS and counted < len(prompts) * new_tokens / 2:
            raise BenchmarkError(
                f"{len(prompts)} x {new_tokens} new tokens were asked for, and the texts have "
                f"{counted}"
            )
        return Round(seconds=seconds, first_token_seconds=seconds, counted_tokens=counted)

    def _parameters(self, seed: int) -> dict[str, Any]:
        """Everything is said, so that the service's own defaults do not matter."""
        return {
            "temperature": self._sampling.temperature,
            "top_k": self._sampling.top_k,
            "top_p": self._sampling.top_p,
            "repetition_penalty": self._sampling.repetition_penalty,
            "do_sample": True,
            "num_return_sequences": 1,
            "stop": None,
            "return_full_text": False,
            "seed": seed,
        }

    def _predict(
        self, prompts: Sequence[Prompt], parameters: dict[str, Any]
    ) -> tuple[list[str], float]:
        """The texts, and the seconds until the response was there."""
        body = {"instances": [prompt.text for prompt in prompts], "parameters": parameters}
        started = time.perf_counter()
        response = self._send("POST", f"{self._model}:predict", json=body)
        seconds = time.perf_counter() - started
        predictions = response.json()["predictions"]
        rows = [predictions] if len(prompts) == 1 else predictions
        return [row[0]["generated_text"] for row in rows], seconds

    def _send(self, method: str, url: str, **more: Any) -> httpx.Response:
        try:
            response = self._client.request(method, url, **more)
        except httpx.HTTPError as error:
            raise BenchmarkError(f"{url}: {error or type(error).__name__}") from error
        if response.is_success:
            return response
        text = " ".join(response.text.split())[:300]
        if response.status_code == httpx.codes.BAD_REQUEST and NO_ROOM in text:
            raise DoesNotFitError(text)
        if response.status_code == httpx.codes.BAD_REQUEST:
            raise RefusedError(text)
        if response.status_code == httpx.codes.SERVICE_UNAVAILABLE and method == "POST":
            raise CellError(f"503: {text}")
        raise BenchmarkError(f"{url} answers {response.status_code}: {text}")

    def close(self) -> None:
        """Close the connection."""
        self._client.close()

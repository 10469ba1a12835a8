"""The ``kserve.Model``: a request in, engine calls, texts out."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from collections.abc import Callable
from functools import cached_property
from typing import Any

import kserve
from grpc_interceptor.exceptions import Unimplemented
from kserve.errors import ModelNotReady

from gptj_predictor import __version__
from gptj_predictor.chat_template import ChatTemplate
from gptj_predictor.common.threads import in_daemon_thread
from gptj_predictor.engine.core import EngineInfo
from gptj_predictor.engine.request import FinishReason
from gptj_predictor.engine.stats import EngineStats
from gptj_predictor.server.active_requests import ActiveRequests
from gptj_predictor.server.drain import Drain
from gptj_predictor.server.generation import Generation, TextGenerator
from gptj_predictor.server.generation_call import GeneratedText, GenerationCall, TokenizedPrompt
from gptj_predictor.server.tensors import OUTPUTS, PROMPT
from gptj_predictor.settings import GenerationParameters, Limits, wire_name
from gptj_predictor.tokenizer import Tokenizer

logger = logging.getLogger(__name__)

#: Seconds for a step that nobody waits for any more. The process ends after it in any case.
STOP_SECONDS = 1.0


class GPTJPredictor(kserve.Model):
    """Serves one model; ready from the end of :meth:`start_engine` until :meth:`stop_engine`."""

    def __init__(
        self,
        name: str,
        *,
        model_id: str,
        defaults: GenerationParameters,
        limits: Limits,
        requests: ActiveRequests,
        drain: Drain,
        load: Callable[[], TextGenerator],
        chat_template: ChatTemplate | None = None,
    ) -> None:
        """Prepare; nothing is loaded yet.

        Args:
            name: The model's name in URLs.
            model_id: Its id on the hub, which some clients call it.
            defaults: What a request does not say.
            limits: What a request may ask for.
            requests: Those that the server is working on.
            drain: Whether the server is about to end.
            load: Loads the weights and starts the engine. It may take minutes.
            chat_template: Makes prompts of chats, if there is one.
        """
        super().__init__(name)
        self.engine = True  # tells kserve to run start_engine beside the servers
        self.created = int(time.time())  # in seconds since 1970
        self.defaults = defaults
        self.limits = limits
        self.chat_template = chat_template
        self.requests = requests
        self._model_id = model_id
        self._drain = drain
        self._load = load
        self._generator: TextGenerator | None = None
        self._is_lost = False

    def check_ready(self) -> None:
        """Ready, even if the server is not because it drains.

        Raises:
            ModelNotReady: it is not.
        """
        if not self.ready:
            raise ModelNotReady(self.name)

    async def start_engine(self) -> None:
        """Load in a thread, so that probes are answered meanwhile; then the model is ready."""
        self._generator = await asyncio.wrap_future(in_daemon_thread(self._load, "load"))
        self.ready = True
        logger.info("model %s is ready", self.name)

    def load(self) -> bool:
        """Whether the model is ready; kserve calls this when it is not, and must not be lied to."""
        return self.ready

    def stop_engine(self) -> None:
        """Stop generating; a lost engine's thread is left as it is."""
        self.ready = False
        if self._generator is not None and not self._is_lost:
            self._generator.engine.stop(timeout=STOP_SECONDS)

    def lose_engine(self) -> None:
        """Answer what waits for an engine that will not: it has died or hangs."""
        self._is_lost = True
        self.requests.end_all(FinishReason.ERROR)

    @cached_property
    def fingerprint(self) -> str:
        """Stands for what a seeded text depends on beside its request, as far as this is known."""
        info = self._loaded().engine.info()
        parts = [__version__, self.name, self.platform, *map(str, info.attention.items())]
        return f"fp_{hashlib.sha256(repr(parts).encode()).hexdigest()[:10]}"

    @property
    def platform(self) -> str:
        """What computes, and in what: ``gptj-predictor_bfloat16-int8``; empty until loaded."""
        info = self.engine_info
        if info is None:
            return ""
        quantization = "" if info.quantization == "none" else f"-{info.quantization}"
        return f"gptj-predictor_{info.precision}{quantization}"

    def is_called(self, name: str) -> bool:
        """Whether a client that names a model means this one, by its name or by its id."""
        return name == self.name or wire_name(name) == wire_name(self._model_id)

    def get_input_types(self) -> list[dict[str, Any]]:
        """Inputs, for metadata."""
        return [PROMPT.metadata()]

    def get_output_types(self) -> list[dict[str, Any]]:
        """Outputs, for metadata: those that come without being asked for."""
        return [output.metadata() for output in OUTPUTS]

    async def healthy(self) -> bool:
        """Weights loaded, the engine running, and the server not about to end."""
        return self.serving

    @property
    def serving(self) -> bool:
        """The same, at once."""
        return self.ready and self.alive and not self._drain.has_begun

    @property
    def alive(self) -> bool:
        """False once a loaded engine has died or hangs: only a restart helps."""
        if self._generator is None:
            return True
        return self._generator.engine.alive and not self._is_lost

    @property
    def engine_stats(self) -> EngineStats | None:
        """The engine's state and counters, once it is loaded."""
        return None if self._generator is None else self._generator.engine.stats()

    @property
    def engine_info(self) -> EngineInfo | None:
        """What the engine is, once it is loaded."""
        return None if self._generator is None else self._generator.engine.info()

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's.

        Raises:
            ModelNotReady: it is not loaded yet, or the server ends.
        """
        self.check_ready()
        return self._loaded().tokenizer

    def trouble(self, step_timeout_seconds: float) -> str | None:
        """What is wrong with the engine, in one line; ``None`` while it is fine.

        Args:
            step_timeout_seconds: What a step may take; 0 for any time.
        """
        if self._generator is None:
            return None
        engine = self._generator.engine
        if not engine.alive:
            return f"the engine died: {engine.cause_of_death or 'its thread is gone'}"
        seconds = engine.step_seconds
        if step_timeout_seconds and seconds > step_timeout_seconds:
            return f"the engine hangs: a step has been running for {seconds:.0f} s"
        return None

    async def preprocess(
        self, payload: object, headers: dict[str, str] | None = None
    ) -> tuple[GenerationCall, list[TokenizedPrompt]]:
        """Tokenize.

        Raises:
            InvalidInput: see :meth:`TextGenerator.tokenize`.
            QueueFullError: the same.
            Unimplemented: the request came over a protocol that is not served.
        """
        if not isinstance(payload, GenerationCall):
            raise Unimplemented("only the V1 protocol is served")
        return payload, await self._loaded().tokenize(payload)

    async def predict(
        self,
        payload: tuple[GenerationCall, list[TokenizedPrompt]],
        headers: dict[str, str] | None = None,
        response_headers: dict[str, str] | None = None,
    ) -> list[list[GeneratedText]] | Generation:
        """Generate: texts per prompt, in order, or what they are streamed from.

        Raises:
            Exception: see :meth:`TextGenerator.start` and :meth:`Generation.texts`.
        """
        call, prompts = payload
        generation = self._loaded().start(prompts, call)
        if call.request.stream:
            return generation
        try:
            return await generation.texts()
        finally:
            generation.cancel()

    def _loaded(self) -> TextGenerator:
        if self._generator is None:
            raise ModelNotReady(self.name)
        return self._generator

"""The ``kserve.Model``: a request in, engine calls, texts out."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

import kserve
from grpc_interceptor.exceptions import Unimplemented
from kserve.errors import ModelNotReady

from gptj_predictor.common.threads import in_daemon_thread
from gptj_predictor.server.generation import (
    GenerationRequest,
    TextGenerator,
    TokenizedPrompt,
)
from gptj_predictor.settings import GenerationParameters, Limits

logger = logging.getLogger(__name__)


class GPTJPredictor(kserve.Model):
    """Serves one model; ready from the end of :meth:`start_engine` until :meth:`stop_engine`."""

    def __init__(
        self,
        name: str,
        *,
        defaults: GenerationParameters,
        limits: Limits,
        load: Callable[[], TextGenerator],
    ) -> None:
        """Prepare; nothing is loaded yet.

        Args:
            name: The model's name in URLs.
            defaults: What a request does not say.
            limits: What a request may ask for.
            load: Loads the weights and starts the engine. It may take minutes.
        """
        super().__init__(name)
        self.engine = True  # tells kserve to run start_engine beside the servers
        self.defaults = defaults
        self.limits = limits
        self._load = load
        self._generator: TextGenerator | None = None

    async def start_engine(self) -> None:
        """Load in a thread, so that probes are answered meanwhile; then the model is ready."""
        self._generator = await asyncio.wrap_future(in_daemon_thread(self._load, "load"))
        self.ready = True
        logger.info("model %s is ready", self.name)

    def load(self) -> bool:
        """Whether the model is ready; kserve calls this when it is not, and must not be lied to."""
        return self.ready

    def stop_engine(self) -> None:
        """Stop generating."""
        self.ready = False
        if self._generator is not None:
            self._generator.engine.stop()

    async def healthy(self) -> bool:
        """Weights loaded and the engine running."""
        return self.ready and self.alive

    @property
    def alive(self) -> bool:
        """False once a loaded engine has died: only a restart helps."""
        return self._generator is None or self._generator.engine.alive

    async def preprocess(
        self, payload: object, headers: dict[str, str] | None = None
    ) -> tuple[GenerationRequest, list[TokenizedPrompt]]:
        """Tokenize.

        Raises:
            InvalidInput: see :meth:`TextGenerator.tokenize`.
            Unimplemented: the request came over a protocol that is not served.
        """
        if not isinstance(payload, GenerationRequest):
            raise Unimplemented("only the V1 protocol is served")
        return payload, await self._loaded().tokenize(payload)

    async def predict(
        self,
        payload: tuple[GenerationRequest, list[TokenizedPrompt]],
        headers: dict[str, str] | None = None,
        response_headers: dict[str, str] | None = None,
    ) -> list[list[str]]:
        """Generate: texts per prompt, in order."""
        request, prompts = payload
        return await self._loaded().generate(prompts, request.parameters)

    def _loaded(self) -> TextGenerator:
        if self._generator is None:
            raise ModelNotReady(self.name)
        return self._generator

"""Where kserve's own classes would answer something that is not so."""

from __future__ import annotations

from typing import Any

from kserve.errors import ServerNotLive
from kserve.model_repository import ModelRepository
from kserve.protocol.dataplane import DataPlane
from kserve.protocol.model_repository_extension import ModelRepositoryExtension

from gptj_predictor.server.errors import RepositoryClosedError
from gptj_predictor.server.predictor import GPTJPredictor
from gptj_predictor.server.tensors import EXTENSIONS, MODEL_VERSION


class TruthfulDataPlane(DataPlane):
    """kserve's data plane, except that readiness and liveness are looked up, not assumed."""

    def __init__(self, model_registry: ModelRepository, predictor: GPTJPredictor) -> None:
        super().__init__(model_registry=model_registry)
        self._predictor = predictor

    async def ready(self) -> bool:
        """Whether a request would be answered now."""
        return await self._predictor.healthy()

    async def live(self) -> dict[str, str]:
        """Alive unless the engine has died.

        Raises:
            ServerNotLive: only a restart helps.
        """
        if not self._predictor.alive:
            raise ServerNotLive()
        return {"status": "alive"}

    def metadata(self) -> dict[str, Any]:
        """The server, with the protocol's extensions that it has: it loads no models."""
        return super().metadata() | {"extensions": list(EXTENSIONS)}

    async def model_metadata(self, model_name: str) -> dict[str, Any]:
        """The model, with its one version and what serves it.

        Raises:
            ModelNotFound: it is another one.
        """
        found = await super().model_metadata(model_name)
        return found | {"versions": [MODEL_VERSION], "platform": self._predictor.platform}


class ClosedRepository(ModelRepositoryExtension):
    """Refuses to load and unload, over REST and gRPC."""

    async def load(self, model_name: str) -> None:
        """Refuse.

        Raises:
            RepositoryClosedError: always.
        """
        raise RepositoryClosedError()

    async def unload(self, model_name: str) -> None:
        """Refuse.

        Raises:
            RepositoryClosedError: always.
        """
        raise RepositoryClosedError()

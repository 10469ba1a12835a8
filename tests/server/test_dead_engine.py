"""When the engine has died, liveness fails, so that the container is restarted; nobody hangs."""

from __future__ import annotations

import asyncio
import threading
from typing import cast

import httpx
import pytest
from kserve.model_repository import ModelRepository

from gptj_predictor.demo import DEMO_SNAPSHOT
from gptj_predictor.engine.engine import Engine
from gptj_predictor.model.network import GPTJNetwork
from gptj_predictor.server.active_requests import ActiveRequests
from gptj_predictor.server.admission import Admission
from gptj_predictor.server.drain import Drain
from gptj_predictor.server.generation import TextGenerator
from gptj_predictor.server.kserve_quirks import ClosedRepository, TruthfulDataPlane
from gptj_predictor.server.predictor import GPTJPredictor
from gptj_predictor.server.routes.app import create_app
from gptj_predictor.settings import GenerationParameters, Limits
from gptj_predictor.tokenizer import Tokenizer
from tests.support.engines import FaultyNetwork, load, make_config
from tests.support.servers import LIVE_PATHS, NAME, READY_PATHS


def test_probes_of_a_dead_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threading, "excepthook", lambda _: None)
    network = FaultyNetwork(load(DEMO_SNAPSHOT))
    engine = Engine(cast("GPTJNetwork", network), make_config(cast("GPTJNetwork", network)))
    engine.start()
    requests = ActiveRequests(Admission(512, 10**6), max_seconds=60)
    predictor = GPTJPredictor(
        NAME,
        model_id=NAME,
        defaults=GenerationParameters(),
        limits=Limits(context=2048, vocabulary=2048, max_instances=32, max_body_bytes=10**6),
        requests=requests,
        drain=Drain(requests, delay_seconds=0, grace_seconds=30),
        load=lambda: TextGenerator(engine, Tokenizer(DEMO_SNAPSHOT)),
    )
    repository = ModelRepository()
    repository.update(predictor)
    plane = TruthfulDataPlane(repository, predictor)
    app = create_app(plane, ClosedRepository(repository), predictor, docs=False)

    async def statuses(client: httpx.AsyncClient, paths: tuple[str, ...]) -> set[int]:
        return {(await client.get(path)).status_code for path in paths}

    async def run() -> None:
        await predictor.start_engine()
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            assert await statuses(client, LIVE_PATHS + READY_PATHS) == {200}
            network.fault = RuntimeError("CUDA error: an illegal memory access in the network")
            body = {"instances": ["a", "b"]}
            async with asyncio.timeout(30):
                answer = await client.post(f"/v1/models/{NAME}:predict", json=body)
            assert answer.status_code in {500, 503}
            assert "network" not in answer.text
            async with asyncio.timeout(30):
                while engine.alive:
                    await asyncio.sleep(0.01)
            assert await statuses(client, LIVE_PATHS + READY_PATHS) == {503}
            answer = await client.post(f"/v1/models/{NAME}:predict", json=body)
            assert answer.status_code == 503

    asyncio.run(run())

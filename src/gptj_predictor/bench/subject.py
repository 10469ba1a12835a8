"""What is to be measured: settings and snapshot described, prompts, and how to start it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil
import torch

from gptj_predictor.bench import machine
from gptj_predictor.bench.engine_target import EngineTarget
from gptj_predictor.bench.errors import PlanError
from gptj_predictor.bench.http_target import Credentials, HttpTarget
from gptj_predictor.bench.results import Device, Results, Run, Settings
from gptj_predictor.bench.targets import Sampling, Target
from gptj_predictor.bench.text import Prompts
from gptj_predictor.common.dtypes import dtype_name
from gptj_predictor.common.threads import alone
from gptj_predictor.demo import DEMO_SNAPSHOT
from gptj_predictor.launch import LaunchPlan
from gptj_predictor.settings import BenchmarkSettings, ServerSettings
from gptj_predictor.snapshot.folder import SnapshotFolder
from gptj_predictor.tokenizer import Tokenizer

#: Settings of the server that can change a figure.
ENGINE_SETTINGS = {
    "max_batch_size",
    "max_prefill_tokens",
    "page_size",
    "kv_cache_share",
    "kv_cache_gib",
    "enable_prefix_caching",
    "cuda_graphs",
    "allow_slow_attention",
}


@dataclass(frozen=True)
class Subject:
    """What is to be measured.

    Attributes:
        results: Description and settings, without cells.
        prompts: Of all cells.
        start: Takes the description, makes the target ready, and returns both; the description may
            have got more in it.
    """

    results: Results
    prompts: Prompts
    start: Callable[[Run], tuple[Target, Run]]


def in_process(plan: BenchmarkSettings, settings: ServerSettings, folder: Path) -> Subject:
    """The engine in this process, on the snapshot in ``folder``.

    Raises:
        PlanError: ``plan`` does not fit the model, or a GPU would not be used as ``settings`` say.
        SnapshotError: the snapshot is not whole.
        AttentionError: a GPU cannot run our kernels.
        DeviceError: a device of ``settings`` is not there, or the weights do not fit.
        PrecisionError: a device cannot compute in the precision of ``settings``.
        QuantizationError: a device cannot compute with weights of their quantization.
        TokenizerError: the tokenizer cannot be read.
    """
    settings = settings.model_copy(
        update={"max_batch_size": max(settings.max_batch_size, plan.batch_size)}
    )
    launch = LaunchPlan.prepare(folder, settings)
    if shortfall := launch.shortfall():
        raise PlanError(shortfall)
    threads = launch.threads
    devices = launch.placement.devices
    run = _describe_run(launch.folder).model_copy(
        update={
            "precision": dtype_name(launch.dtype),
            "quantization": launch.quantization,
            "device": describe_devices(devices, threads),
            "attention": {str(d): one.name for d, one in launch.attentions.items()},
            "cuda_graphs": launch.captures,
        }
    )
    wanted = _describe_settings(plan, launch.folder)
    engine_settings = settings.model_dump(include=ENGINE_SETTINGS)

    def start(run: Run) -> tuple[Target, Run]:
        if run.bandwidth is None and len(devices) == 1:
            rate = machine.measure_bandwidth(devices[0], threads)
            run = run.model_copy(update={"bandwidth": rate})
        engine = alone(launch.start_engine)
        info = engine.info()
        in_use = {str(device): name for device, name in info.attention.items()}
        if (in_use, info.captures) != (run.attention, run.cuda_graphs):
            raise PlanError(
                f"wanted were {run.attention} and graphs: {run.cuda_graphs}; in use "
                f"are {in_use} and graphs: {info.captures}"
            )
        products = {
            f"{one.device} {one.product}, {one.rows} rows": one.way for one in info.products
        }
        run = run.model_copy(update={"kv_cache_tokens": info.kv_cache_tokens, "products": products})
        return EngineTarget(engine, _sampling(launch.folder)), run

    return Subject(
        Results(run=run, settings=wanted.model_copy(update={"engine": engine_settings})),
        Prompts(launch.tokenizer, plan.prompt_tokens, plan.seed),
        start,
    )


def over_http(plan: BenchmarkSettings, url: str, folder: Path) -> Subject:
    """A service at ``url`` that serves the snapshot in ``folder``.

    Raises:
        PlanError: ``plan`` does not fit the model, or one of its files cannot be read.
        SnapshotError: the snapshot is not whole.
        TokenizerError: the tokenizer cannot be read.
    """
    credentials = Credentials.read(plan.api_key_file, plan.ca_file)
    snapshot, tokenizer = SnapshotFolder.open(folder), Tokenizer(folder)
    first_token = "stream" if plan.stream else "one-token request"
    run = _describe_run(snapshot).model_copy(update={"path": "HTTP", "first_token": first_token})
    prompts = Prompts(tokenizer, plan.prompt_tokens, plan.seed)

    def start(run: Run) -> tuple[Target, Run]:
        sampling = _sampling(snapshot)
        target = HttpTarget(url, tokenizer, sampling, credentials, stream=plan.stream)
        target.check_tokens([prompts.cut("check", row) for row in range(plan.batch_size)])
        return target, run

    return Subject(Results(run=run, settings=_describe_settings(plan, snapshot)), prompts, start)


def _describe_run(snapshot: SnapshotFolder) -> Run:
    manifest = snapshot.manifest
    model = "bundled demo" if snapshot.path == DEMO_SNAPSHOT else None
    return Run(
        path="in process",
        model=model if manifest is None else manifest.model_id,
        commit=None if manifest is None else manifest.commit,
        parameters=snapshot.parameters,
        first_token="event",  # noqa: S106 - not that kind of token
        versions=machine.versions(),
        started=machine.utc_now(),
    )


def describe_devices(devices: tuple[torch.device, ...], threads: int) -> Device:
    """The devices that hold the model; ``threads`` compute where one of them is the CPU."""
    gpus = [device for device in devices if device.type == "cuda"]
    if not gpus:
        memory = psutil.virtual_memory().total
        return Device(type="cpu", names=[machine.cpu_name()], memory_bytes=memory, threads=threads)
    properties = [torch.cuda.get_device_properties(gpu) for gpu in gpus]
    first = properties[0]
    facts = machine.ask_nvidia_smi(str(getattr(first, "uuid", "")))
    on_cpu = len(devices) > len(gpus)
    return Device(
        type="cuda",
        names=[*(one.name for one in properties), *([machine.cpu_name()] if on_cpu else [])],
        memory_bytes=sum(one.total_memory for one in properties),
        compute_capability=f"{first.major}.{first.minor}",
        driver=facts.pop("driver_version", None),
        clocks=facts or None,
        threads=threads if on_cpu else None,
    )


def _sampling(snapshot: SnapshotFolder) -> Sampling:
    return Sampling.within(snapshot.config.vocab_size)


def _describe_settings(plan: BenchmarkSettings, snapshot: SnapshotFolder) -> Settings:
    return Settings(
        batch_size=plan.batch_size,
        lengths=lengths(plan, snapshot.config.n_positions),
        prompt_tokens=plan.prompt_tokens,
        warmup_rounds=plan.warmup_rounds,
        rounds=plan.rounds,
        seed=plan.seed,
        sampling=asdict(_sampling(snapshot)),
    )


def lengths(plan: BenchmarkSettings, context: int) -> list[int]:
    """Every length that is measured.

    Raises:
        PlanError: there is none, or one that was asked for is impossible.
    """
    longest = plan.max_tokens
    if "max_tokens" not in plan.model_fields_set:
        longest = min(longest, context)
    if longest > context:
        raise PlanError(f"--max_tokens {longest}: the model's context is {context}")
    if plan.min_tokens > longest:
        raise PlanError(
            f"--min_tokens {plan.min_tokens} is above the longest response, {longest}; the "
            f"model's context is {context}"
        )
    if plan.min_tokens <= plan.prompt_tokens:
        raise PlanError(
            f"--min_tokens {plan.min_tokens} counts the prompt too, which has "
            f"--prompt_tokens {plan.prompt_tokens}"
        )
    return list(range(plan.min_tokens, longest + 1, plan.step))

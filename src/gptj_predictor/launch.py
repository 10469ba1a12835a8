"""From settings to a running engine: which devices, which dtype, how large a KV cache."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch

from gptj_predictor.common.dtypes import dtype_name
from gptj_predictor.common.phases import Phase, Phases
from gptj_predictor.devices.cuda_graphs import capture_for
from gptj_predictor.devices.host import free_memory, usable_cpus
from gptj_predictor.devices.memory import activation_bytes, kv_cache_pages
from gptj_predictor.devices.placement import DeviceError, find_devices, free_bytes, place
from gptj_predictor.devices.precision import check_precision, choose_precision, describe_device
from gptj_predictor.devices.quantization import check_quantization, choose_quantization
from gptj_predictor.engine.core import EngineConfig
from gptj_predictor.engine.engine import Engine
from gptj_predictor.model.config import NetworkConfig
from gptj_predictor.model.network import Placement
from gptj_predictor.model.quantization import WeightQuantization
from gptj_predictor.settings import (
    CPU_KV_CACHE_LIMIT_BYTES,
    CPU_KV_CACHE_SHARE,
    CPU_PREFILL_TOKENS,
    CPU_RESERVE_BYTES,
    GPU_PREFILL_TOKENS,
    THREAD_BYTES,
    ServerSettings,
)
from gptj_predictor.snapshot.folder import SnapshotFolder
from gptj_predictor.snapshot.layout import NetworkLayout, inner_size
from gptj_predictor.snapshot.load import check_tensors, load_network
from gptj_predictor.tokenizer import Tokenizer, TokenizerError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class LaunchPlan:
    """Everything that is decided before the weights are read."""

    folder: SnapshotFolder
    tokenizer: Tokenizer
    placement: Placement
    dtype: torch.dtype
    quantization: WeightQuantization
    settings: ServerSettings
    phases: Phases = field(default_factory=Phases)

    @classmethod
    def prepare(
        cls, path: Path, settings: ServerSettings, phases: Phases | None = None
    ) -> LaunchPlan:
        """Decide, and find what is wrong while nothing has been loaded.

        Args:
            path: The snapshot's folder.
            settings: The server's.
            phases: Measures what comes from here on; one of its own by default.

        Raises:
            SnapshotError: the folder cannot be served.
            TokenizerError: its tokenizer cannot be used, or belongs to another model.
            DeviceError: a device does not exist, or all together cannot hold the weights.
            PrecisionError: a device does not have the precision.
            QuantizationError: a device, or the snapshot, does not have the quantization.
        """
        devices = find_devices(settings.device)
        folder = SnapshotFolder.open(path)
        check_tensors(folder)
        phases = phases or Phases()
        with phases.measure(Phase.TOKENIZER):
            tokenizer = Tokenizer(path)
        if len(tokenizer) > folder.config.vocab_size:
            raise TokenizerError(
                f"{path}: the tokenizer has {len(tokenizer)} tokens and the model "
                f"{folder.config.vocab_size}; they do not belong together"
            )
        # The first device decides the precision, unless one that has to help cannot compute in it.
        descriptions = [describe_device(device) for device in devices]
        choice = choose_precision(settings.precision, folder.dtype, descriptions[0])
        quantized = choose_quantization(settings.quantization, folder.quantization, path)
        quantization = quantized.quantization
        kind = weights_name(choice.dtype, quantization)
        free = {device: free_bytes(device) for device in devices}
        placement = place(
            NetworkLayout(folder.config, quantization).part_bytes(choice.dtype),
            devices,
            free,
            kind=kind,
            tied=folder.config.tie_word_embeddings,
        )
        for device, description in zip(devices, descriptions, strict=True):
            if device in placement.devices:
                check_precision(settings.precision, choice.dtype, description)
                check_quantization(quantization, folder.quantization, device, description.name)
        reasons = [choice.reason] + [quantized.reason] * (quantization != "none")
        logger.info(
            "serving %s in %s (%s) on %s",
            path,
            kind,
            "; ".join(reasons),
            "; ".join(
                f"{device} ({description.name}, {placement.layers.count(device)} layers)"
                for device, description in zip(devices, descriptions, strict=True)
                if device in placement.devices
            ),
        )
        return cls(folder, tokenizer, placement, choice.dtype, quantization, settings, phases)

    @property
    def threads(self) -> int:
        """CPU threads that compute."""
        layout = NetworkLayout(self.folder.config, self.quantization)
        useful = sum(layout.part_bytes(self.dtype)) // THREAD_BYTES
        return self.settings.threads or max(1, min(usable_cpus(), useful))

    def start_engine(self) -> Engine:
        """Load the weights, make room for the KV cache and start the engine's thread.

        Raises:
            SnapshotError: a file broke since it was looked at.
            DeviceError: the KV cache does not fit beside the weights.
        """
        torch.set_num_threads(self.threads)
        started = time.perf_counter()
        network = load_network(
            self.folder,
            self.dtype,
            self.placement,
            quantization=self.quantization,
            check_digests=self.settings.check_digests,
            phases=self.phases,
        )
        seconds = time.perf_counter() - started
        logger.info(
            "loaded %.2f GB of weights in %.1f s (%.2f GB/s)",
            network.weight_bytes / 1e9,
            seconds,
            network.weight_bytes / 1e9 / seconds,
        )
        with self.phases.measure(Phase.KV_CACHE):
            capture = capture_for(network) if self.settings.cuda_graphs else None
            engine = Engine(network, self._engine_config(), capture)
        info = engine.info()
        for device, name in info.attention.items():
            logger.info("attention on %s: %s", device, name)
        logger.info(
            "KV cache for %d tokens in pages of %d", info.kv_cache_tokens, info.config.page_size
        )
        with self.phases.measure(Phase.CUDA_GRAPHS):
            engine.start()
        return engine

    def _engine_config(self) -> EngineConfig:
        """The engine's sizes, by the memory that the weights have left."""
        settings, config = self.settings, self.folder.config
        on_gpu = self.placement.head.type == "cuda"
        max_prefill_tokens = settings.max_prefill_tokens or (
            GPU_PREFILL_TOKENS if on_gpu else CPU_PREFILL_TOKENS
        )
        activations = step_bytes(
            config, self.dtype, tokens=max_prefill_tokens, logit_rows=settings.max_batch_size
        )
        token_bytes = 2 * config.n_embd * self.dtype.itemsize
        num_pages = kv_cache_pages(
            {d: self._kv_cache_bytes(d, activations) for d in self.placement.devices},
            self.placement.layers,
            page_size=settings.page_size,
            token_bytes=token_bytes,
            max_pages=settings.max_batch_size * -(-config.n_positions // settings.page_size),
        )
        for device in self.placement.devices:
            layers = self.placement.layers.count(device)
            taken = num_pages * settings.page_size * token_bytes * layers
            if device.type == "cpu" and taken > (room := _cpu_room(activations)):
                # The kernel would kill the process once the KV cache fills up.
                raise DeviceError(
                    f"--kv_cache_gib {settings.kv_cache_gib:g}: the memory limit leaves "
                    f"{max(0, room)} bytes for the KV cache on {device}, which would take {taken}"
                )
        return EngineConfig(
            max_batch_size=settings.max_batch_size,
            max_prefill_tokens=max_prefill_tokens,
            page_size=settings.page_size,
            num_pages=num_pages,
            enable_prefix_caching=settings.enable_prefix_caching,
        )

    def _kv_cache_bytes(self, device: torch.device, activations: int) -> int:
        """Bytes for the KV cache on a device.

        Raises:
            DeviceError: host memory, or what a limit leaves of it, is used up.
        """
        if self.settings.kv_cache_gib is not None:
            return int(self.settings.kv_cache_gib * 2**30)
        free = free_bytes(device)
        if device.type == "cuda":
            return int((free - activations) * self.settings.kv_cache_share)
        size = min(CPU_KV_CACHE_LIMIT_BYTES, int(free * CPU_KV_CACHE_SHARE), _cpu_room(activations))
        if size <= 0:
            raise DeviceError(
                f"no memory is left for the KV cache on {device}: {free} bytes are free beside the "
                f"weights, a step takes up to {activations} and {CPU_RESERVE_BYTES} are for the "
                "process itself; raise the memory limit, or lower --max_batch_size"
            )
        return size


def _cpu_room(activations: int) -> int:
    """Bytes of host memory that the KV cache may take, so that the largest load still fits."""
    return free_memory() - activations - CPU_RESERVE_BYTES


def weights_name(dtype: torch.dtype, quantization: WeightQuantization) -> str:
    """What the weights are, for people: ``bfloat16 with int8 weights``."""
    name = dtype_name(dtype)
    return name if quantization == "none" else f"{name} with {quantization} weights"


def step_bytes(config: NetworkConfig, dtype: torch.dtype, *, tokens: int, logit_rows: int) -> int:
    """Memory that a step of a network takes at most; see :func:`activation_bytes`."""
    return activation_bytes(
        tokens=tokens,
        logit_rows=logit_rows,
        hidden=config.n_embd,
        inner=inner_size(config),
        vocabulary=config.vocab_size,
        value_bytes=dtype.itemsize,
    )

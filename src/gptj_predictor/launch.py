"""From settings to a running engine: which devices, which dtype, how much cache."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from gptj_predictor.devices.host import usable_cpus
from gptj_predictor.devices.placement import find_devices, free_bytes, place
from gptj_predictor.devices.precision import check_precision, choose_precision, describe_device
from gptj_predictor.engine.engine import Engine, EngineConfig
from gptj_predictor.model.network import Placement
from gptj_predictor.settings import (
    CPU_KV_CACHE_LIMIT_BYTES,
    CPU_KV_CACHE_SHARE,
    CPU_PREFILL_TOKENS,
    GPU_PREFILL_TOKENS,
    THREAD_BYTES,
    ServerSettings,
)
from gptj_predictor.snapshot.folder import SnapshotFolder
from gptj_predictor.snapshot.load import check_tensors, empty_network, load_network
from gptj_predictor.tokenizer import Tokenizer, TokenizerError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class LaunchPlan:
    """Everything that is decided before the weights are read."""

    folder: SnapshotFolder
    tokenizer: Tokenizer
    placement: Placement
    dtype: torch.dtype
    settings: ServerSettings

    @classmethod
    def prepare(cls, path: Path, settings: ServerSettings) -> LaunchPlan:
        """Decide, and find what is wrong while nothing has been loaded.

        Raises:
            SnapshotError: the folder cannot be served.
            TokenizerError: its tokenizer cannot be used, or belongs to another model.
            DeviceError: a device does not exist, or all together cannot hold the weights.
            PrecisionError: a device does not have the precision.
        """
        devices = find_devices(settings.device)
        folder = SnapshotFolder.open(path)
        check_tensors(folder)
        tokenizer = Tokenizer(path)
        if len(tokenizer) > folder.config.vocab_size:
            raise TokenizerError(
                f"{path}: the tokenizer has {len(tokenizer)} tokens and the model "
                f"{folder.config.vocab_size}; they do not belong together"
            )
        # The first device decides the precision, unless one that has to help cannot compute in it.
        descriptions = [describe_device(device) for device in devices]
        choice = choose_precision(settings.precision, folder.dtype, descriptions[0])
        free = {device: free_bytes(device) for device in devices}
        placement = place(empty_network(folder.config, choice.dtype), devices, free)
        for device, description in zip(devices, descriptions, strict=True):
            if device in placement.devices:
                check_precision(settings.precision, choice.dtype, description)
        logger.info(
            "serving %s in %s (%s) on %s",
            path,
            str(choice.dtype).removeprefix("torch."),
            choice.reason,
            "; ".join(
                f"{device} ({description.name}, {placement.layers.count(device)} layers)"
                for device, description in zip(devices, descriptions, strict=True)
                if device in placement.devices
            ),
        )
        return cls(folder, tokenizer, placement, choice.dtype, settings)

    @property
    def threads(self) -> int:
        """CPU threads that compute."""
        useful = self.folder.parameters * self.dtype.itemsize // THREAD_BYTES
        return self.settings.threads or max(1, min(usable_cpus(), useful))

    def start_engine(self) -> Engine:
        """Load the weights, make room for the KV cache and start the engine's thread.

        Raises:
            SnapshotError: a file broke since it was looked at.
        """
        torch.set_num_threads(self.threads)
        started = time.perf_counter()
        network = load_network(
            self.folder,
            self.dtype,
            self.placement,
            check_digests=self.settings.check_digests,
        )
        seconds = time.perf_counter() - started
        logger.info(
            "loaded %.2f GB of weights in %.1f s (%.2f GB/s)",
            network.weight_bytes / 1e9,
            seconds,
            network.weight_bytes / 1e9 / seconds,
        )
        on_gpu = self.placement.head.type == "cuda"
        prefill_tokens = self.settings.max_prefill_tokens or (
            GPU_PREFILL_TOKENS if on_gpu else CPU_PREFILL_TOKENS
        )
        rows = self.settings.max_batch_size
        config = EngineConfig(
            max_batch_size=rows,
            max_prefill_tokens=prefill_tokens,
            page_size=self.settings.page_size,
            kv_cache_bytes={
                device: self._kv_cache_bytes(device, network.activation_bytes(prefill_tokens, rows))
                for device in self.placement.devices
            },
            enable_prefix_caching=self.settings.enable_prefix_caching,
            cuda_graphs=self.settings.cuda_graphs,
        )
        engine = Engine(network, config)
        for device, attention in network.attentions.items():
            logger.info("attention on %s: %s", device, attention.name)
        logger.info(
            "KV cache for %d tokens in pages of %d", engine.scheduler.pool.tokens, config.page_size
        )
        engine.start()
        return engine

    def _kv_cache_bytes(self, device: torch.device, activations: int) -> int:
        if self.settings.kv_cache_gib is not None:
            return int(self.settings.kv_cache_gib * 2**30)
        if device.type == "cuda":
            return int((free_bytes(device) - activations) * self.settings.kv_cache_share)
        return min(CPU_KV_CACHE_LIMIT_BYTES, int(free_bytes(device) * CPU_KV_CACHE_SHARE))

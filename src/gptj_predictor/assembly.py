"""From settings to a running engine: which device, which dtype, how much cache."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch

from gptj_predictor.engine.engine import Engine, EngineConfig
from gptj_predictor.engine.tokenizer import Tokenizer, TokenizerError
from gptj_predictor.precision import choose_precision, describe_device
from gptj_predictor.settings import ServerSettings
from gptj_predictor.snapshot.folder import SnapshotFolder
from gptj_predictor.snapshot.load import check_tensors, load_network

logger = logging.getLogger(__name__)

#: Tokens per page of the KV cache.
PAGE_SIZE = 16

#: Automatic size of the KV cache: a share of the GPU memory that the weights leave, the rest being
#: for activations; on a CPU the memory is shared with others, so less, and no more than this.
GPU_CACHE_SHARE = 0.9
CPU_CACHE_SHARE = 0.25
CPU_CACHE_LIMIT = 4 * 2**30

_CGROUP = Path("/sys/fs/cgroup")


class DeviceError(ValueError):
    """The wanted device does not exist here."""


@dataclass(frozen=True)
class Assembly:
    """Everything that is decided before the weights are read."""

    folder: SnapshotFolder
    tokenizer: Tokenizer
    device: torch.device
    dtype: torch.dtype
    settings: ServerSettings

    @classmethod
    def prepare(cls, path: Path, settings: ServerSettings) -> Assembly:
        """Decide, and find what is wrong while nothing has been loaded.

        Raises:
            SnapshotError: the folder cannot be served.
            TokenizerError: its tokenizer cannot be used, or belongs to another model.
            DeviceError: the device does not exist.
            PrecisionError: the device does not have the precision.
        """
        device = _find_device(settings.device)
        folder = SnapshotFolder.open(path)
        check_tensors(folder)
        tokenizer = Tokenizer(path)
        if len(tokenizer) > folder.config.vocab_size:
            raise TokenizerError(
                f"{path}: the tokenizer has {len(tokenizer)} tokens and the model "
                f"{folder.config.vocab_size}; they do not belong together"
            )
        description = describe_device(device)
        choice = choose_precision(settings.precision, folder.dtype, description)
        logger.info(
            "serving %s on %s (%s) in %s: %s",
            path,
            device,
            description.name,
            str(choice.dtype).removeprefix("torch."),
            choice.reason,
        )
        return cls(folder, tokenizer, device, choice.dtype, settings)

    def start_engine(self) -> Engine:
        """Load the weights, make room for the KV cache and start the engine's thread.

        Raises:
            SnapshotError: a file broke since it was looked at.
        """
        started = time.perf_counter()
        network = load_network(self.folder, self.dtype, self.device)
        seconds = time.perf_counter() - started
        logger.info(
            "loaded %.2f GB of weights in %.1f s (%.2f GB/s)",
            network.weight_bytes / 1e9,
            seconds,
            network.weight_bytes / 1e9 / seconds,
        )
        config = EngineConfig(
            max_batch_size=self.settings.max_batch_size,
            max_prefill_tokens=self.settings.max_prefill_tokens,
            page_size=PAGE_SIZE,
            kv_cache_bytes=self._kv_cache_bytes(),
        )
        engine = Engine(network, self.device, config)
        logger.info("KV cache for %d tokens", engine.scheduler.pool.tokens)
        engine.start()
        return engine

    def _kv_cache_bytes(self) -> int:
        if self.settings.kv_cache_gib is not None:
            return int(self.settings.kv_cache_gib * 2**30)
        if self.device.type == "cuda":
            return int(torch.cuda.mem_get_info(self.device)[0] * GPU_CACHE_SHARE)
        return min(CPU_CACHE_LIMIT, int(free_host_memory() * CPU_CACHE_SHARE))


def free_host_memory() -> int:
    """Bytes that this process can still take, by the machine and by its cgroup (v2)."""
    free = psutil.virtual_memory().available
    try:
        limit = int((_CGROUP / "memory.max").read_text())
        used = int((_CGROUP / "memory.current").read_text())
    except (OSError, ValueError):  # no cgroup v2, or no limit ("max")
        return free
    return max(0, min(free, limit - used))


def _find_device(wanted: str) -> torch.device:
    if wanted == "auto":
        return torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    device = torch.device(wanted)
    if device.type == "cuda":
        count = torch.cuda.device_count()
        if (device.index or 0) >= count:
            raise DeviceError(f"--device {wanted}: this machine has {count} CUDA devices")
        return torch.device("cuda", device.index or 0)
    return device

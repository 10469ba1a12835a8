"""From settings to a running engine: which devices, which dtype, how large a KV cache."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from gptj_predictor.common.dtypes import dtype_name, weights_name
from gptj_predictor.common.phases import Phase, Phases
from gptj_predictor.devices.attention import choose_attentions
from gptj_predictor.devices.cuda_graphs import CudaCapture, can_capture, capture_for
from gptj_predictor.devices.host import free_memory, usable_cpus
from gptj_predictor.devices.memory import activation_bytes, gpu_cache_bytes, kv_cache_pages
from gptj_predictor.devices.placement import DeviceError, find_devices, free_bytes, place
from gptj_predictor.devices.precision import check_precision, choose_precision, describe_device
from gptj_predictor.devices.quantization import check_quantization, choose_quantization
from gptj_predictor.engine.core import EngineConfig
from gptj_predictor.engine.engine import Engine
from gptj_predictor.engine.sizing import CudaGauge, measure_step
from gptj_predictor.model.attention import Attention
from gptj_predictor.model.config import NetworkConfig
from gptj_predictor.model.network import GPTJNetwork, Placement
from gptj_predictor.model.prefill_plan import MAX_GATHERED_TOKENS
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
from gptj_predictor.snapshot.layout import NetworkLayout
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
    attentions: Mapping[torch.device, Attention]
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
            AttentionError: a GPU cannot run our kernels.
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
        kind = weights_name(dtype_name(choice.dtype), quantization)
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
        attentions = choose_attentions(
            placement.devices,
            folder.config.n_embd // folder.config.n_head,
            choice.dtype,
            allow_slow=settings.allow_slow_attention,
        )
        return cls(
            folder,
            tokenizer,
            placement,
            choice.dtype,
            quantization,
            settings,
            attentions,
            phases,
        )

    @property
    def threads(self) -> int:
        """CPU threads that compute."""
        layout = NetworkLayout(self.folder.config, self.quantization)
        useful = sum(layout.part_bytes(self.dtype)) // THREAD_BYTES
        return self.settings.threads or max(1, min(usable_cpus(), useful))

    @property
    def captures(self) -> bool:
        """Whether decoding will be replayed from CUDA graphs."""
        return self.settings.cuda_graphs and can_capture(self.attentions)

    def shortfall(self) -> str | None:
        """What a GPU would do less than the settings say, and the flag that puts up with it.

        Serving puts up with it. A figure that was measured so would be taken for the GPU's best.
        """
        gpus = {d: a for d, a in self.attentions.items() if d.type == "cuda"}
        for device, attention in gpus.items():
            if not attention.capturable and not self.settings.allow_slow_attention:
                return (
                    f"{device} has no Triton kernels and would attend with {attention.name}; "
                    "--allow_slow_attention true measures that"
                )
        if gpus and self.settings.cuda_graphs and not self.captures:
            return (
                "decoding would not be replayed from CUDA graphs, which takes one GPU alone with "
                "the Triton kernels; --cuda_graphs false measures it without"
            )
        return None

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
            attentions=self.attentions,
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
            capture = capture_for(network) if self.captures else None
            engine = Engine(network, self._engine_config(network, capture), capture)
        info = engine.info()
        for device, name in info.attention.items():
            logger.info("attention on %s: %s", device, name)
        logger.info(
            "KV cache for %d tokens in pages of %d", info.kv_cache_tokens, info.config.page_size
        )
        with self.phases.measure(Phase.CUDA_GRAPHS):
            engine.start()
        return engine

    def _engine_config(self, network: GPTJNetwork, capture: CudaCapture | None) -> EngineConfig:
        """The engine's sizes, by the memory that the weights have left."""
        settings, config = self.settings, self.folder.config
        sizes = EngineConfig(
            max_batch_size=settings.max_batch_size,
            max_prefill_tokens=settings.max_prefill_tokens
            or (GPU_PREFILL_TOKENS if self.placement.head.type == "cuda" else CPU_PREFILL_TOKENS),
            page_size=settings.page_size,
            num_pages=1,
            enable_prefix_caching=settings.enable_prefix_caching,
        )
        taken = self._step_bytes(network, sizes, capture)
        token_bytes = 2 * config.n_embd * self.dtype.itemsize
        available = {d: self._kv_cache_bytes(d, taken[d]) for d in self.placement.devices}
        try:
            num_pages = kv_cache_pages(
                available,
                self.placement.layers,
                page_size=settings.page_size,
                token_bytes=token_bytes,
                max_pages=settings.max_batch_size * -(-config.n_positions // settings.page_size),
            )
        except ValueError as error:
            raise DeviceError(f"{error}; lower --max_batch_size or --max_prefill_tokens") from error
        for device in self.placement.devices:
            layers = self.placement.layers.count(device)
            wanted = num_pages * settings.page_size * token_bytes * layers
            room = _cpu_room(taken[device])
            if device.type == "cuda":
                room = free_bytes(device) - taken[device]
            if wanted > room:
                # The kernel would kill the process once the KV cache fills up.
                what = "free GPU memory" if device.type == "cuda" else "memory limit"
                raise DeviceError(
                    f"--kv_cache_gib {settings.kv_cache_gib:g}: the {what} leaves "
                    f"{max(0, room)} bytes for the KV cache on {device}, which would take {wanted}"
                )
        return replace(sizes, num_pages=num_pages)

    def _step_bytes(
        self, network: GPTJNetwork, sizes: EngineConfig, capture: CudaCapture | None
    ) -> dict[torch.device, int]:
        """What the largest step takes of each device: tried where all are GPUs, else computed.

        Raises:
            DeviceError: a GPU has no room for it.
        """
        devices = self.placement.devices
        if any(device.type != "cuda" for device in devices):
            computed = step_bytes(
                self.folder.config,
                self.dtype,
                tokens=sizes.max_prefill_tokens,
                logit_rows=sizes.max_batch_size,
                on_gpu=any(device.type == "cuda" for device in devices),
            )
            return dict.fromkeys(devices, computed)
        try:
            taken = measure_step(network, sizes, capture, CudaGauge(devices))
        except torch.OutOfMemoryError as error:
            raise DeviceError(
                f"the weights leave too little memory for the largest step, of "
                f"{sizes.max_prefill_tokens} prompt tokens and {sizes.max_batch_size} texts; "
                "lower --max_batch_size or --max_prefill_tokens"
            ) from error
        if capture is not None:
            capture.renew_pool()
        for device, size in taken.items():
            logger.info("the largest step and the graphs take %.2f GB of %s", size / 1e9, device)
        return taken

    def _kv_cache_bytes(self, device: torch.device, taken: int) -> int:
        """Bytes for the KV cache on a device of which a step takes some.

        Raises:
            DeviceError: host memory, or what a limit leaves of it, is used up.
        """
        if self.settings.kv_cache_gib is not None:
            return int(self.settings.kv_cache_gib * 2**30)
        free = free_bytes(device)
        if device.type == "cuda":
            return gpu_cache_bytes(free, taken, self.settings.kv_cache_share)
        size = min(CPU_KV_CACHE_LIMIT_BYTES, int(free * CPU_KV_CACHE_SHARE), _cpu_room(taken))
        if size <= 0:
            raise DeviceError(
                f"no memory is left for the KV cache on {device}: {free} bytes are free beside the "
                f"weights, a step takes up to {taken} and {CPU_RESERVE_BYTES} are for the "
                "process itself; raise the memory limit, or lower --max_batch_size"
            )
        return size


def _cpu_room(activations: int) -> int:
    """Bytes of host memory that the KV cache may take, so that the largest load still fits."""
    return free_memory() - activations - CPU_RESERVE_BYTES


def step_bytes(
    config: NetworkConfig, dtype: torch.dtype, *, tokens: int, logit_rows: int, on_gpu: bool = False
) -> int:
    """Memory that a step of a network takes at most; see :func:`activation_bytes`."""
    return activation_bytes(
        tokens=tokens,
        logit_rows=logit_rows,
        hidden=config.n_embd,
        inner=config.inner_size,
        vocabulary=config.vocab_size,
        value_bytes=dtype.itemsize,
        gathered_tokens=MAX_GATHERED_TOKENS if on_gpu else 0,
        kept_logit_rows=logit_rows if on_gpu else 0,
    )

"""Every setting and its default, in one place."""

from gptj_predictor.settings.benchmark import BenchmarkSettings, CompareSettings, ReportSettings
from gptj_predictor.settings.generation import GenerationParameters, Limits
from gptj_predictor.settings.lengths import LengthError, Lengths, OrderError, TotalLengths
from gptj_predictor.settings.names import (
    DEFAULT_MODEL_ID,
    MOUNTED_MODEL,
    TAG_PATTERN,
    wire_name,
)
from gptj_predictor.settings.pull import InfoSettings, PullSettings, SnapshotSettings
from gptj_predictor.settings.server import (
    CPU_KV_CACHE_LIMIT_BYTES,
    CPU_KV_CACHE_SHARE,
    CPU_PREFILL_TOKENS,
    CPU_RESERVE_BYTES,
    CPU_WEIGHT_SHARE,
    GPU_PREFILL_TOKENS,
    GPU_WEIGHT_SHARE,
    THREAD_BYTES,
    LogFormat,
    MetricsCompat,
    Precision,
    Quantization,
    ServerSettings,
)

__all__ = [
    "CPU_KV_CACHE_LIMIT_BYTES",
    "CPU_KV_CACHE_SHARE",
    "CPU_PREFILL_TOKENS",
    "CPU_RESERVE_BYTES",
    "CPU_WEIGHT_SHARE",
    "DEFAULT_MODEL_ID",
    "GPU_PREFILL_TOKENS",
    "GPU_WEIGHT_SHARE",
    "MOUNTED_MODEL",
    "TAG_PATTERN",
    "THREAD_BYTES",
    "BenchmarkSettings",
    "CompareSettings",
    "GenerationParameters",
    "InfoSettings",
    "LengthError",
    "Lengths",
    "Limits",
    "LogFormat",
    "MetricsCompat",
    "OrderError",
    "Precision",
    "PullSettings",
    "Quantization",
    "ReportSettings",
    "ServerSettings",
    "SnapshotSettings",
    "TotalLengths",
    "wire_name",
]

"""Which attention each device gets, and what is in the way of the quick one."""

from __future__ import annotations

import importlib.util
import logging
import os
import shutil
import sysconfig
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch

from gptj_predictor.devices.cuda_report import first_line
from gptj_predictor.model.attention import Attention
from gptj_predictor.model.torch_attention import TorchAttention, causal_bias
from gptj_predictor.model.varlen_attention import choose_prefill

logger = logging.getLogger(__name__)

#: First compute capability on which the slow attention is not taken without being asked for:
#: Ampere. Older cards are served as they can be.
REFUSES_SLOW = (8, 0)


class AttentionError(ValueError):
    """A GPU cannot run the quick attention; the text says why, and what to do."""


@dataclass(frozen=True)
class Gpu:
    """What the choice depends on.

    Attributes:
        name: The card's own, for messages.
        capability: CUDA compute capability.
        processors: Multiprocessors.
        has_flash: Whether torch was built with flash attention.
        trouble: Why the Triton kernels cannot be used, one clause; ``None`` if they can.
    """

    name: str
    capability: tuple[int, int]
    processors: int
    has_flash: bool
    trouble: str | None = None


def choose_attentions(
    devices: Iterable[torch.device], head_size: int, dtype: torch.dtype, *, allow_slow: bool
) -> dict[torch.device, Attention]:
    """The quickest attention that each device of this machine can run, after a try.

    Args:
        devices: That hold layers.
        head_size: Values per head.
        dtype: Of activations and KV cache.
        allow_slow: Whether a GPU may do without the Triton kernels.

    Raises:
        AttentionError: a GPU cannot run the kernels, and is to have them.
    """
    attentions: dict[torch.device, Attention] = {}
    for device in devices:
        if device.type == "cuda":
            # At head size 256 cuDNN's makes a plan per length and thread, for tens of ms each.
            torch.backends.cuda.enable_cudnn_sdp(False)
            gpu = _look_at(device, head_size, dtype)
            attentions[device] = choose_for(
                gpu, head_size, dtype, allow_slow=allow_slow, device=str(device)
            )
        else:
            attentions[device] = TorchAttention()
    return attentions


def choose_for(
    gpu: Gpu, head_size: int, dtype: torch.dtype, *, allow_slow: bool, device: str
) -> Attention:
    """The same for one GPU, which ``device`` names in messages.

    Raises:
        AttentionError: See :func:`choose_attentions`.
    """
    prefill = choose_prefill(gpu.capability, dtype, head_size, has_flash=gpu.has_flash)
    if prefill is None:
        causal_bias()  # its import shall not keep the first request waiting
    if gpu.trouble is None:
        from gptj_predictor.model.triton_attention import TritonAttention

        return TritonAttention(gpu.processors, prefill)
    text = f"{device} ({gpu.name}) would decode many times slower: {gpu.trouble}"
    if gpu.capability >= REFUSES_SLOW and not allow_slow:
        raise AttentionError(f"{text}; --allow_slow_attention true serves all the same")
    logger.warning("%s", text)
    return TorchAttention(prefill)


def _look_at(device: torch.device, head_size: int, dtype: torch.dtype) -> Gpu:
    properties = torch.cuda.get_device_properties(device)
    return Gpu(
        name=properties.name,
        capability=(properties.major, properties.minor),
        processors=properties.multi_processor_count,
        has_flash=torch.backends.cuda.is_flash_attention_available(),
        trouble=find_kernel_trouble(device, head_size, dtype),
    )


def find_kernel_trouble(device: torch.device, head_size: int, dtype: torch.dtype) -> str | None:
    """Why the Triton kernels cannot be used, after a try; ``None`` if they can."""
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed"
    try:
        from gptj_predictor.model.triton.decode_attention import supports
        from gptj_predictor.model.triton_check import try_kernel

        if not supports(head_size, dtype):
            return f"there are no Triton kernels for heads of {head_size} {dtype} values"
        try_kernel(device)
    except Exception as error:
        logger.debug("Triton cannot be used", exc_info=True)
        return explain(error, compiler=find_compiler(), headers=has_python_headers())
    return None


def explain(error: Exception, *, compiler: str | None, headers: bool) -> str:
    """Why Triton failed, one clause.

    Args:
        error: What it raised.
        compiler: The C compiler that it finds.
        headers: Whether Python's headers are there.
    """
    if "libcuda" in str(error):
        return "Triton does not find libcuda.so.1, the driver's library (ldconfig -p lists it)"
    if compiler is None:
        return "Triton finds no C compiler (gcc, clang or the variable CC), which it launches with"
    if not headers:
        return "Triton finds no Python.h, which it launches with (python3-dev on Debian)"
    return f"Triton cannot launch a kernel: {first_line(error)}"


def find_compiler() -> str | None:
    """The C compiler that Triton takes: ``CC``, gcc or clang (``triton/runtime/build.py``)."""
    named = os.environ.get("CC")
    if named is not None:
        return shutil.which(named.split()[0] if named.split() else named)
    return shutil.which("gcc") or shutil.which("clang")


def has_python_headers() -> bool:
    """Whether a C module for this Python could be compiled."""
    return (Path(sysconfig.get_paths()["include"]) / "Python.h").is_file()

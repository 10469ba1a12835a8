"""Whether the weights of products are int8, and why."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from gptj_predictor.model.linear import can_multiply_int8
from gptj_predictor.model.quantization import WeightQuantization
from gptj_predictor.settings import Quantization


class QuantizationError(ValueError):
    """The wanted quantization does not exist here; the text says what to use instead."""


@dataclass(frozen=True)
class QuantizationChoice:
    """How the weights of products are held and the reason, one clause, for the start log."""

    quantization: WeightQuantization
    reason: str


def choose_quantization(
    wanted: Quantization, stored: WeightQuantization, snapshot: Path
) -> QuantizationChoice:
    """Decide the quantization.

    Args:
        wanted: What the user asked for.
        stored: How the snapshot stores them.
        snapshot: Its folder, for the message.

    Raises:
        QuantizationError: weights that are not quantized are wanted of a snapshot with int8 ones.
    """
    if wanted is Quantization.NONE and stored == "int8":
        raise QuantizationError(
            f"--quantization none: {snapshot} stores int8 weights, and what they were made of is "
            "not in it; use --quantization auto, or pull the model with --quantization none"
        )
    if wanted is Quantization.INT8 and stored == "none":
        return QuantizationChoice("int8", "made while loading")
    return QuantizationChoice(stored, "as stored")


def check_quantization(
    quantization: WeightQuantization, stored: WeightQuantization, device: torch.device, name: str
) -> None:
    """Make sure that a device multiplies with the weights.

    Args:
        quantization: How they are held.
        stored: How the snapshot stores them.
        device: That holds a part of them.
        name: The device's own name, for the message.

    Raises:
        QuantizationError: int8 on a CPU without instructions for it.
    """
    if quantization == "none" or device.type != "cpu" or can_multiply_int8():
        return
    instead = (
        "use --quantization none" if stored == "none" else "pull the model with --quantization none"
    )
    raise QuantizationError(
        f"int8 weights: {name} has no AVX-512 VNNI, the instructions that multiply 8-bit integers "
        f"fast and exactly; {instead}"
    )

"""Names of torch's dtypes."""

from __future__ import annotations

import torch

#: The float dtypes that a checkpoint may be stored in, by safetensors' names.
FLOAT_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def dtype_name(dtype: torch.dtype) -> str:
    """The name without the module, as in a ``config.json``: ``bfloat16``."""
    return str(dtype).removeprefix("torch.")


def weights_name(precision: str, quantization: str) -> str:
    """What weights are, for people: ``bfloat16 with int8 weights``, or the precision alone."""
    return precision if quantization == "none" else f"{precision} with {quantization} weights"


def dtype_from_name(name: str) -> torch.dtype | None:
    """The dtype that torch calls ``bfloat16`` or ``torch.bfloat16``; ``None`` if there is none."""
    dtype = vars(torch).get(name.removeprefix("torch."))
    return dtype if isinstance(dtype, torch.dtype) else None

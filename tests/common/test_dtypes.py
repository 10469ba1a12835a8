"""Names of dtypes."""

from __future__ import annotations

import pytest
import torch

from gptj_predictor.common.dtypes import FLOAT_DTYPES, dtype_from_name, dtype_name


@pytest.mark.parametrize("dtype", [*FLOAT_DTYPES.values(), torch.int64, torch.bool])
def test_there_and_back(dtype: torch.dtype) -> None:
    assert dtype_from_name(dtype_name(dtype)) is dtype
    assert dtype_from_name(str(dtype)) is dtype


@pytest.mark.parametrize("name", ["", "bf16", "Tensor", "nn", "torch"])
def test_other_names(name: str) -> None:
    assert dtype_from_name(name) is None

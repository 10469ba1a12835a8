"""The kernels of products compiled for cards that are not here, with Triton's own compiler."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

pytestmark = [pytest.mark.slow, pytest.mark.process]

#: KiB of shared memory that one program may have, by compute capability: CUDA C++ programming
#: guide, table "Technical specifications per compute capability".
SHARED_KIB = {70: 96, 75: 64, 80: 163, 86: 99, 89: 99, 90: 227, 100: 227, 120: 99}

SCRIPT = Path(__file__).parents[1] / "support" / "compile_products.py"


def check(architecture: int, *more: str) -> None:
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, SCRIPT, str(architecture), *more],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )
    assert not done.returncode, done.stderr
    variants = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(variants) >= 8
    for variant in variants:
        assert variant["shared"] <= SHARED_KIB[architecture] * 1024, variant
        assert not variant["local"], f"registers do not suffice: {variant}"


@pytest.mark.parametrize("architecture", SHARED_KIB)
def test_kernels_fit_the_card(architecture: int) -> None:
    check(architecture)


@pytest.mark.large
@pytest.mark.parametrize("architecture", SHARED_KIB)
def test_every_variant_fits_the_card(architecture: int) -> None:
    check(architecture, "--all")

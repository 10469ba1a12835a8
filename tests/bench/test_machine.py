from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from gptj_predictor.bench import machine
from gptj_predictor.bench.subject import describe_devices

#: As a driver of 2025 prints it, with two of the values.
SMI = """#!/bin/sh
test "$1" = --id=GPU-abc || { echo "No devices were found"; exit 6; }
test "${2#--query-gpu=driver_version,clocks.sm}" != "$2" || exit 2
echo "driver_version, clocks.current.sm [MHz], clocks.max.sm [MHz], ..."
echo "580.65.06, 345 MHz, 1980 MHz, 3201 MHz, 3201 MHz, P0, 700.00 W, 31"
"""


def test_this_machine() -> None:
    device = describe_devices((torch.device("cpu"),), threads=2)
    assert device.type == "cpu"
    assert device.names[0]
    assert device.threads == 2
    assert device.driver is None
    assert {"python", "torch", "gptj-predictor"} <= set(machine.versions())


def test_bandwidth_is_plausible() -> None:
    assert 1e8 < machine.measure_bandwidth(torch.device("cpu"), threads=1) < 1e13


def test_nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert machine.ask_nvidia_smi("abc") == {}
    program = tmp_path / "nvidia-smi"
    program.write_text(SMI)
    program.chmod(0o755)
    monkeypatch.setenv("PATH", os.pathsep.join([str(tmp_path), "/bin", "/usr/bin"]))
    facts = machine.ask_nvidia_smi("GPU-abc")
    assert facts["driver_version"] == "580.65.06"
    assert facts["clocks.max.sm"] == "1980 MHz"
    assert machine.ask_nvidia_smi("other") == {}

"""Which attention a GPU gets, and what is said if it is not the quick one. The GPUs are made up."""

from __future__ import annotations

import importlib.util
import logging
import subprocess
import sys
import sysconfig
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from gptj_predictor.devices import attention
from gptj_predictor.devices.attention import (
    AttentionError,
    Gpu,
    choose_attentions,
    choose_for,
    explain,
    find_compiler,
    find_kernel_trouble,
    has_python_headers,
)
from gptj_predictor.model import triton_check
from gptj_predictor.model.torch_attention import TorchAttention
from gptj_predictor.model.triton_attention import TritonAttention
from tests.support.engines import CPU

H200 = Gpu(name="NVIDIA H200", capability=(9, 0), processors=132, has_flash=True)
T4 = Gpu(name="Tesla T4", capability=(7, 5), processors=40, has_flash=True)
GPU = torch.device("cuda", 0)
TROUBLE = "Triton finds no C compiler"


def test_the_kernels_wherever_they_can_be_used() -> None:
    for gpu, dtype, prefill in (
        (H200, torch.bfloat16, "variable-length flash prefill"),
        (T4, torch.float16, "variable-length memory-efficient prefill"),
        (H200, torch.float32, "variable-length memory-efficient prefill"),
    ):
        chosen = choose_for(gpu, 256, dtype, allow_slow=False, device="cuda:0")
        assert isinstance(chosen, TritonAttention)
        assert chosen.capturable
        assert prefill in chosen.name


@pytest.mark.parametrize(
    ("capability", "refused"), [((7, 0), False), ((7, 5), False), ((8, 0), True), ((12, 0), True)]
)
def test_the_slow_one_is_refused_from_ampere_on(
    capability: tuple[int, int], refused: bool, caplog: pytest.LogCaptureFixture
) -> None:
    gpu = replace(H200, capability=capability, trouble=TROUBLE)
    line = f"cuda:1 (NVIDIA H200) would decode many times slower: {TROUBLE}"
    if refused:
        with pytest.raises(AttentionError) as caught:
            choose_for(gpu, 256, torch.float16, allow_slow=False, device="cuda:1")
        assert str(caught.value) == f"{line}; --allow_slow_attention true serves all the same"
    with caplog.at_level(logging.WARNING):
        chosen = choose_for(gpu, 256, torch.float16, allow_slow=refused, device="cuda:1")
    assert isinstance(chosen, TorchAttention)
    assert not chosen.capturable
    assert "prefill" in chosen.name
    assert [record.message for record in caplog.records] == [line]


def test_a_gpu_is_asked_and_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    """cuDNN's attention is off from then on, and what the try says decides."""
    before = torch.backends.cuda.cudnn_sdp_enabled()
    tried: list[torch.device] = []

    class Properties:
        name, major, minor, multi_processor_count = "NVIDIA A100", 8, 0, 108

    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: Properties)
    monkeypatch.setattr(triton_check, "try_kernel", tried.append)
    try:
        torch.backends.cuda.enable_cudnn_sdp(True)
        chosen = choose_attentions([GPU, CPU], 256, torch.float16, allow_slow=False)
        assert not torch.backends.cuda.cudnn_sdp_enabled()
    finally:
        torch.backends.cuda.enable_cudnn_sdp(before)
    assert isinstance(chosen[GPU], TritonAttention)
    assert isinstance(chosen[CPU], TorchAttention)
    assert tried == [GPU]

    def fail(device: torch.device) -> None:
        raise RuntimeError("Triton Error [CUDA]: device kernel image is invalid\nand more")

    monkeypatch.setattr(triton_check, "try_kernel", fail)
    with pytest.raises(
        AttentionError, match=r"slower: Triton .*; --allow_slow_attention"
    ) as caught:
        choose_attentions([GPU], 256, torch.float16, allow_slow=False)
    assert "\n" not in str(caught.value)
    with pytest.raises(AttentionError, match=r"no Triton kernels for heads of 20 torch\.float16"):
        choose_attentions([GPU], 20, torch.float16, allow_slow=False)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(AttentionError, match="slower: Triton is not installed; "):
        choose_attentions([GPU], 256, torch.float16, allow_slow=False)


def test_no_gpu_no_try(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "find_kernel_trouble", lambda *_: pytest.fail("tried"))
    assert list(choose_attentions([CPU], 16, torch.float32, allow_slow=False)) == [CPU]


@pytest.mark.skipif(
    torch.cuda.is_available(), reason="it would be compiled, for tensors of the CPU"
)
def test_the_kernel_that_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    """In Triton's interpreter; a device that computes something else is found out."""
    triton_check.try_kernel(CPU)
    assert find_kernel_trouble(CPU, 256, torch.float16) is None
    monkeypatch.setattr(triton_check, "_add_one", {(1,): lambda values, **_: None})
    with pytest.raises(RuntimeError, match="gave others"):
        triton_check.try_kernel(CPU)


@pytest.mark.skipif(torch.cuda.is_available(), reason="it can be launched")
def test_a_real_try_without_a_gpu() -> None:
    """Not interpreted: Triton has no driver here, and that comes out as one clause."""
    program = (
        "import torch; from gptj_predictor.devices.attention import find_kernel_trouble;"
        "print(find_kernel_trouble(torch.device('cpu'), 256, torch.float16))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=True,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(Path(attention.__file__).parents[2])},
    )
    [line] = done.stdout.splitlines()
    assert line.startswith("Triton ")


@pytest.mark.parametrize(
    ("error", "compiler", "headers", "text"),
    [
        (AssertionError("libcuda.so cannot found!\nmore"), "/usr/bin/gcc", True, "libcuda.so.1"),
        (RuntimeError("Failed to find C compiler. Please"), None, True, "no C compiler"),
        (
            subprocess.CalledProcessError(1, ["/usr/bin/gcc", "/tmp/x.c"]),
            "/usr/bin/gcc",
            False,
            "no Python.h",
        ),
        (RuntimeError("Triton Error [CUDA]: no image\nmore"), "gcc", True, "[CUDA]: no image"),
        (ValueError(), "gcc", True, "cannot launch a kernel: ValueError"),
    ],
)
def test_one_clause(error: Exception, compiler: str | None, headers: bool, text: str) -> None:
    clause = explain(error, compiler=compiler, headers=headers)
    assert text in clause
    assert "\n" not in clause


def test_what_triton_builds_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_compiler() is None
    for name in ("clang", "gcc", "mine"):
        (tmp_path / name).write_text("")
        (tmp_path / name).chmod(0o755)
    assert find_compiler() == str(tmp_path / "gcc")
    monkeypatch.setenv("CC", "mine -m64")
    assert find_compiler() == str(tmp_path / "mine")
    monkeypatch.setenv("CC", "absent")
    assert find_compiler() is None
    assert has_python_headers() in (True, False)
    monkeypatch.setattr(sysconfig, "get_paths", lambda: {"include": str(tmp_path)})
    assert not has_python_headers()
    (tmp_path / "Python.h").write_text("")
    assert has_python_headers()

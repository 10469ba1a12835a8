"""Compile the kernels for GPT-J-6B ahead of time, so that a container's first start need not.

    python tools/kernel_store.py [--architectures 80 90] [--dtypes bf16] [--quantizations none]
                                 [--output FOLDER]

No GPU and no driver is needed; gcc is, for the modules through which Triton talks to the driver.
The image's build runs it; gptj_predictor/model/kernel_store.py finds what it makes. Cards before
sm_80 get no kernels for bfloat16.
"""

from __future__ import annotations

import argparse
import platform
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

import torch
import triton  # type: ignore[import-untyped]
from triton.backends.nvidia import driver as nvidia  # type: ignore[import-untyped]
from triton.runtime import build  # type: ignore[import-untyped]

from gptj_predictor.engine.kernel_variants import KernelShape, launches
from gptj_predictor.model.ahead_of_time import compile_launches, pretend_card
from gptj_predictor.model.config import NetworkConfig
from gptj_predictor.model.kernel_store import STORE, write_digests
from gptj_predictor.model.quantization import WeightQuantization

ARCHITECTURES = (70, 75, 80, 86, 89, 90, 100, 120)
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
QUANTIZATIONS: tuple[WeightQuantization, ...] = ("none", "int8")
#: A module's key has Python's name for the machine in it, which has this part where the program
#: ``file`` is installed and where it is not. Modules are stored under both.
LINKAGES = ("", "ELF")


def main() -> None:
    """Compile everything into the folder, which is made anew."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--architectures", type=int, nargs="+", default=ARCHITECTURES)
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=list(DTYPES))
    parser.add_argument(
        "--quantizations", nargs="+", choices=QUANTIZATIONS, default=list(QUANTIZATIONS)
    )
    parser.add_argument("--output", type=Path, default=STORE)
    arguments = parser.parse_args()
    started = time.perf_counter()
    shutil.rmtree(arguments.output, ignore_errors=True)
    arguments.output.mkdir(parents=True)
    with TemporaryDirectory() as names:
        make_driver_names(Path(names))
        store_driver_module(arguments.output, names)
        work = partial(
            store_kernels,
            folder=arguments.output,
            names=names,
            dtypes=arguments.dtypes,
            quantizations=arguments.quantizations,
        )
        with ProcessPoolExecutor(mp_context=get_context("spawn")) as pool:
            list(pool.map(work, arguments.architectures))
    for leftover in arguments.output.rglob("*.source"):
        leftover.unlink()
    write_digests(arguments.output)
    kernels = len(list(arguments.output.rglob("*.cubin")))
    size = sum(file.stat().st_size for file in arguments.output.rglob("*") if file.is_file())
    print(
        f"{kernels} kernels for {len(arguments.architectures)} architectures "
        f"in {arguments.output}: {size / 1e6:.1f} MB, {time.perf_counter() - started:.0f} s"
    )


def store_kernels(
    architecture: int,
    *,
    folder: Path,
    names: str,
    dtypes: list[str],
    quantizations: list[WeightQuantization],
) -> None:
    """Compile for one card.

    Args:
        architecture: The card's compute capability without the point.
        folder: The store.
        names: The folder of :func:`make_driver_names`.
        dtypes: Of activations and KV cache.
        quantizations: Of the weights of products.
    """
    cache_in(folder)
    triton.knobs.compilation.store_binary_only = True  # the machine code, none of the steps to it
    triton.knobs.nvidia.libcuda_path = names
    # Before Triton 3.7 every kernel is launched by a C module of its own.
    has_modules = hasattr(nvidia, "make_launcher")
    pretend_card(architecture, store_launcher if has_modules else None)
    computes_in = [DTYPES[name] for name in dtypes if name != "bf16" or architecture >= 80]
    shapes = [
        KernelShape(NetworkConfig(), dtype, architecture, quantization)
        for dtype in computes_in
        for quantization in quantizations
    ]
    for shape in shapes:
        compile_launches(launches(shape))


def cache_in(folder: Path) -> None:
    """Have Triton write to the folder, and look for kernels nowhere else."""
    triton.knobs.cache.dir = str(folder)
    # Where the variable names StoredKernels, as in the image, kernels of the package's store would
    # be found and not be written here.
    triton.knobs.cache.manager_class = None


def store_driver_module(folder: Path, names: str) -> None:
    """Compile what Triton compiles at its first launch, under the keys that it looks for."""
    cache_in(folder)
    for linkage in LINKAGES:
        with _building_for(linkage):
            build.compile_module_from_src(
                src=_driver_source(),
                name="cuda_utils",
                library_dirs=[names],
                include_dirs=nvidia.include_dirs,
                libraries=nvidia.libraries,
            )


def store_launcher(source: Any, metadata: Any) -> None:
    """Compile the module that launches a kernel, if no other kernel's is the same."""
    for linkage in LINKAGES:
        with _building_for(linkage):
            nvidia.CudaLauncher(source, metadata)


def make_driver_names(folder: Path) -> None:
    """A ``libcuda.so.1`` to link modules against, with the driver's names and no driver."""
    functions = sorted(set(re.findall(r"\bcu[A-Z]\w+(?=\()", _driver_source())))
    code = folder / "names.c"
    code.write_text("".join(f"int {name}(void) {{ return 1; }}\n" for name in functions))
    command = ["gcc", "-shared", "-fPIC", "-Wl,-soname,libcuda.so.1", code.name]
    subprocess.run([*command, "-o", "libcuda.so.1"], cwd=folder, check=True)


def _driver_source() -> str:
    return (Path(nvidia.dirname) / "driver.c").read_text()


@contextmanager
def _building_for(linkage: str) -> Iterator[None]:
    """Have Triton build a module with the key of a machine with this linkage.

    It is not loaded: without a driver it could not be.
    """
    bits, _ = platform.architecture()
    machine = ",".join([platform.machine(), platform.system(), bits, linkage])
    before = build._load_module_from_path, build.platform_key
    build._load_module_from_path = lambda name, path: SimpleNamespace(launch=None)
    build.platform_key = lambda: machine
    try:
        yield
    finally:
        build._load_module_from_path, build.platform_key = before


if __name__ == "__main__":
    main()

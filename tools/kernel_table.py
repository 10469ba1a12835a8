"""Compile every Triton kernel for every kind of card, and say what each takes. No GPU is needed.

    python tools/kernel_table.py [--architectures 80 90] [--head-sizes 256] [--quick] [--write]
                                 [--json FILE]

The kernels are those that the product launches, by its own functions
(gptj_predictor/engine/kernel_variants.py). Compiler and reader of machine code come with Triton. It
ends with 1 if a kernel does not fit a card's shared memory, or keeps values in local memory, which
is what is left where registers do not suffice ("spills"). ``--write`` writes the table in
docs/kernels.md anew. ``--quick`` is what ``make test`` has the time for; see :func:`shapes_for`.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

import torch
import triton  # type: ignore[import-untyped]

from gptj_predictor.engine.kernel_variants import KernelShape, launches
from gptj_predictor.model.ahead_of_time import CompiledKernel, compile_launches, pretend_card
from gptj_predictor.model.config import NetworkConfig

PAGE = Path(__file__).parents[1] / "docs" / "kernels.md"
SECTION = re.compile(r"(<!-- made by tools/kernel_table.py -->\n).*?(<!-- end -->)", re.DOTALL)

#: KiB of shared memory that one program may have, by compute capability: CUDA C++ programming
#: guide, table "Technical specifications per compute capability".
SHARED_KIB = {70: 96, 75: 64, 80: 163, 86: 99, 89: 99, 90: 227, 100: 227, 120: 99}
HEAD_SIZES = (16, 32, 64, 128, 256)
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
#: Cards for which Triton makes the same assembly as for another, up to the card's name; what is
#: left is to make machine code of it. ``make test-all`` compiles for them in full.
SAME_ASSEMBLY = {86: 80}
#: Rows up to which a quick run has products with int8 weights, on tensor cores and without.
QUICK_ROWS, QUICK_ROWS_ONE_BY_ONE = 8, 1
#: Cards on which a quick run leaves fp16 to ``make test-all``: they compute in bfloat16 without a
#: flag, and so do the others from sm_80 on, on which it is compiled.
QUICK_WITHOUT_FP16 = {89, 100, 120}


@dataclass(frozen=True)
class Usage:
    """What one variant of a kernel takes on one card."""

    kernel: str
    architecture: int  # compute capability without the point
    head_size: int
    dtype: str  # of activations, KV cache and weights
    int8: bool  # whether weights are int8 instead
    constants: dict[str, object]
    num_warps: int
    registers: int  # of a thread
    shared_bytes: int  # of a program
    local_bytes: int  # of a thread; 0 unless registers do not suffice
    wide: bool  # whether it moves 16 bytes at a time
    asynchronous: bool  # whether it reads memory past the registers, which sm_80 began with

    @property
    def row(self) -> tuple[str, str, int]:
        """What its row of the table is called: kernel, dtypes, head size."""
        kernel, dtype = f"`{self.kernel}`", self.dtype
        if self.int8:
            dtype += ", int8 weights"
        if self.kernel == "_multiply":
            how = "tensor cores" if self.constants["tensor_cores"] else "one by one"
            kernel += f" {how}, {self.constants['block_rows']} rows"
        return kernel, dtype, self.head_size

    @property
    def trouble(self) -> str | None:
        """What is wrong with it, one clause."""
        room = SHARED_KIB[self.architecture] * 1024
        if self.shared_bytes > room:
            return f"takes {self.shared_bytes} bytes of shared memory, of {room}"
        if self.local_bytes:
            return f"keeps {self.local_bytes} bytes a thread in local memory"
        return None

    def __str__(self) -> str:
        """The variant in a few words."""
        return f"sm_{self.architecture} {self.kernel} {self.dtype} {self.constants}"


def main() -> None:
    """Compile, complain, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--architectures", type=int, nargs="+", choices=SHARED_KIB, default=list(SHARED_KIB)
    )
    parser.add_argument("--head-sizes", type=int, nargs="+", choices=HEAD_SIZES, default=[256])
    parser.add_argument("--quick", action="store_true", help="only what make test compiles")
    parser.add_argument("--write", action="store_true", help=f"the table in {PAGE.name}")
    parser.add_argument("--json", type=Path, help="a file for what was found")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as cache, triton.knobs.cache.scope():
        triton.knobs.cache.dir = cache
        usages = [
            usage
            for architecture in arguments.architectures
            for head_size in arguments.head_sizes
            for usage in compile_for(architecture, head_size, quick=arguments.quick)
        ]
    if arguments.json:
        arguments.json.write_text(json.dumps([asdict(usage) for usage in usages], indent=1))
    if arguments.write:
        page = PAGE.read_text()
        made = f"\n{versions()}\n\n{table(usages)}\n\n"
        PAGE.write_text(SECTION.sub(lambda match: f"{match[1]}{made}{match[2]}", page))
    else:
        print(table(usages))
    troubles = [f"{usage}: {usage.trouble}" for usage in usages if usage.trouble]
    print(f"{len(usages)} variants compiled, {len(troubles)} of them with trouble")
    sys.exit("\n".join(troubles) or 0)


def compile_for(architecture: int, head_size: int, *, quick: bool = False) -> Iterator[Usage]:
    """Everything that a network of GPT-J-6B's shape but for its heads launches on a card."""
    compiled_for = SAME_ASSEMBLY.get(architecture, architecture) if quick else architecture
    for name, kernel in compiled_kernels(compiled_for, head_size, quick=quick):
        assembly = kernel.cubin.with_suffix(".ptx").read_text()
        cubin = kernel.cubin
        if architecture != compiled_for:
            cubin = assemble(assembly, compiled_for, architecture, cubin)
        registers, local = read_resources(cubin)
        yield Usage(
            kernel=kernel.name,
            architecture=architecture,
            head_size=head_size,
            dtype=name,
            int8=is_int8(kernel),
            constants={k: v for k, v in kernel.constants.items() if v is not None},
            num_warps=kernel.num_warps,
            registers=registers,
            shared_bytes=kernel.shared_bytes,
            local_bytes=local,
            wide=".v4.b32" in assembly,
            asynchronous="cp.async.cg.shared.global" in assembly,
        )


@cache
def compiled_kernels(
    architecture: int, head_size: int, *, quick: bool
) -> list[tuple[str, CompiledKernel]]:
    """The kernels for one card, with the dtype's name; compiled once in this process."""
    pretend_card(architecture)
    return [
        (name, kernel)
        for name, shape in shapes_for(architecture, head_size, quick=quick)
        for kernel in compile_launches(launches(shape))
    ]


def shapes_for(
    architecture: int, head_size: int, *, quick: bool
) -> Iterator[tuple[str, KernelShape]]:
    """What a card computes, by the dtype's name.

    bfloat16 is for cards from sm_80 on; the server refuses it on others. A quick run is without
    fp32, which only a flag or a small model chooses, and on some cards without fp16. int8 weights
    are multiplied there with few rows, and with activations of the dtype that the card computes in
    without a flag.
    """
    hidden = 4096
    config = NetworkConfig(n_embd=hidden, n_head=hidden // head_size, rotary_dim=min(64, head_size))
    own = "bf16" if architecture >= 80 else "fp16"
    for name, dtype in DTYPES.items():
        if name == "bf16" != own or (quick and left_to_full_runs(name, architecture)):
            continue
        yield name, KernelShape(config, dtype, architecture)
        if not quick:
            yield name, KernelShape(config, dtype, architecture, "int8")
        elif name == own:
            rows = QUICK_ROWS if architecture >= 80 else QUICK_ROWS_ONE_BY_ONE
            yield name, KernelShape(config, dtype, architecture, "int8", rows)


def left_to_full_runs(dtype: str, architecture: int) -> bool:
    """Whether a quick run is without a dtype."""
    return dtype == "fp32" or (dtype == "fp16" and architecture in QUICK_WITHOUT_FP16)


def is_int8(kernel: CompiledKernel) -> bool:
    """Whether it reads int8 weights."""
    return kernel.dtypes.get("weight") == "*i8"


def assemble(assembly: str, compiled_for: int, architecture: int, cubin: Path) -> Path:
    """Machine code for one card of the assembly that was made for another, beside its own."""
    source, target = (cubin.with_suffix(f".{architecture}.{end}") for end in ("ptx", "cubin"))
    source.write_text(assembly.replace(f".target sm_{compiled_for}", f".target sm_{architecture}"))
    tool = triton.knobs.nvidia.ptxas.path
    # Triton's own flags, with enable_fp_fusion (triton/backends/nvidia/compiler.py, make_cubin).
    command = [tool, "-lineinfo", f"--gpu-name=sm_{architecture}", source, "-o", target]
    subprocess.run(command, check=True)
    return target


def read_resources(cubin: Path) -> tuple[int, int]:
    """Registers of a thread, and bytes that it keeps in local memory, from machine code."""
    tool = triton.knobs.nvidia.cuobjdump.path
    done = subprocess.run(
        [tool, "--dump-resource-usage", str(cubin)], capture_output=True, text=True, check=True
    )
    [line] = re.findall(r"REG:.*", done.stdout)
    figures = {name: int(value) for name, value in re.findall(r"(\w+):(\d+)", line)}
    return figures["REG"], figures["STACK"] + figures["LOCAL"]


def table(usages: list[Usage]) -> str:
    """A row for each kernel, dtype and head size, a column for each card."""
    cards = list(dict.fromkeys(usage.architecture for usage in usages))
    rows: dict[tuple[str, str, int], dict[int, list[Usage]]] = {}
    for usage in usages:
        rows.setdefault(usage.row, {}).setdefault(usage.architecture, []).append(usage)
    lines = [
        "| kernel | dtype | head size | variants | " + " | ".join(f"sm_{c}" for c in cards) + " |",
        "|---" * (4 + len(cards)) + "|",
    ]
    for (kernel, dtype, head_size), by_card in rows.items():
        variants = max(map(len, by_card.values()))
        cells = [_cell(by_card.get(card, [])) for card in cards]
        lines.append(
            f"| {kernel} | {dtype} | {head_size} | {variants} | " + " | ".join(cells) + " |"
        )
    return "\n".join(lines)


def _cell(usages: list[Usage]) -> str:
    if not usages:
        return "-"
    registers, shared, local = (
        max(getattr(usage, name) for usage in usages)
        for name in ("registers", "shared_bytes", "local_bytes")
    )
    return f"{registers} / {shared / 1024:.1f} / {local}"


def versions() -> str:
    """What compiled."""
    tools = triton.knobs.nvidia
    return (
        f"Triton {triton.__version__}; ptxas {tools.ptxas.version}, "
        f"and {tools.ptxas_blackwell.version} from sm_100 on."
    )


if __name__ == "__main__":
    main()

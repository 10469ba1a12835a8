"""Compile the kernels of products for GPUs that are not here, and say what each takes, as JSON.

    python tests/support/compile_products.py ARCHITECTURE... [--all]

One line for each variant. ``--all`` compiles those of every dtype, product and number of splits of
GPT-J-6B; without it there are those of one dtype and of its first product.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import triton  # type: ignore[import-untyped]
from triton.backends.compiler import GPUTarget  # type: ignore[import-untyped]
from triton.compiler import ASTSource  # type: ignore[import-untyped]

from gptj_predictor.model.triton_linear import kernels
from gptj_predictor.model.triton_linear.cuts import (
    CUBLAS,
    MAX_ROWS_NORM,
    Card,
    Cut,
    ProductShape,
    candidates,
    max_rows,
)

#: Multiprocessors of a card of each architecture: V100, T4, A100, A40, L40, H200, B200, RTX 5090.
PROCESSORS = {70: 80, 75: 40, 80: 108, 86: 84, 89: 142, 90: 132, 100: 148, 120: 170}
#: Outputs and inputs of GPT-J-6B's products: in, out, head.
PRODUCTS = ((28672, 4096), (4096, 20480), (50400, 4096))
NAMES = {torch.float16: "fp16", torch.bfloat16: "bf16", torch.float32: "fp32", torch.int8: "i8"}
#: Arguments of which no specialization on 16 is taken for granted.
ANY_VALUE = ("rows", "epsilon", "gelu_from")


def variants(architecture: int, *, everything: bool) -> Iterator[tuple[str, Any, dict[str, Any]]]:
    """Description, source and options of every kernel to compile."""
    dtypes = [torch.float16, *([torch.bfloat16] if architecture >= 80 else [])]
    card = Card("a card", architecture, PROCESSORS[architecture])
    seen = set()
    for dtype in dtypes if everything else dtypes[-1:]:
        yield f"dequantize {NAMES[dtype]}", dequantize_source(dtype), kernels.dequantize_options()
        for weight_dtype in (dtype, torch.int8):
            for outputs, inputs in PRODUCTS if everything else PRODUCTS[:1]:
                rows = 1
                while rows <= max_rows(weight_dtype):
                    shape = ProductShape(rows, outputs, inputs, dtype, weight_dtype)
                    for cut in candidates(shape, card):
                        if cut is CUBLAS:
                            continue
                        options = kernels.launch_options(cut, shape)
                        if (key := (dtype, weight_dtype, *options.values())) in seen:
                            continue
                        seen.add(key)
                        name = f"{NAMES[dtype]} {NAMES[weight_dtype]} {cut}"
                        yield name, product_source(cut, shape), options
                    rows *= 2


def product_source(cut: Cut, shape: ProductShape) -> Any:
    """With everything that can come before and after a product at once."""
    pointer, norm = f"*{NAMES[shape.dtype]}", shape.rows <= MAX_ROWS_NORM
    types = {
        "x": pointer,
        "weight": f"*{NAMES[shape.weight_dtype]}",
        "scale": "*fp32" if shape.weight_dtype is torch.int8 else None,
        "bias": pointer,
        "norm_weight": pointer if norm else None,
        "norm_bias": pointer if norm else None,
        "residual": pointer,
        "out": pointer,
        "sums": "*fp32" if cut.splits > 1 else None,
        "arrivals": "*i32" if cut.splits > 1 else None,
        **dict.fromkeys(("rows", "outputs", "inputs", "gelu_from"), "i32"),
        **dict.fromkeys(("x_stride", "residual_stride", "out_stride"), "i32"),
        "epsilon": "fp32",
    }
    return source(kernels._multiply, types, {**kernels.launch_options(cut, shape), "gelu": True})


def dequantize_source(dtype: torch.dtype) -> Any:
    types: dict[str, str | None] = {
        "weight": "*i8",
        "scale": "*fp32",
        "out": f"*{NAMES[dtype]}",
        "inputs": "i32",
    }
    return source(kernels._dequantize, types, kernels.dequantize_options())


def source(kernel: Any, types: dict[str, str | None], constants: dict[str, Any]) -> Any:
    """What Triton compiles when it is called with such arguments."""
    signature, values, attributes = {}, {}, {}
    for index, name in enumerate(kernel.arg_names):
        kind = types.get(name)
        signature[name] = kind or "constexpr"
        if kind is None:
            values[name] = constants.get(name)
        elif name not in ANY_VALUE:
            attributes[(index,)] = [["tt.divisibility", 16]]
    return ASTSource(kernel, signature, values, attributes)


def usage(cubin: bytes) -> dict[str, int]:
    """Registers of a thread and bytes that it keeps in memory of its own."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        Path(file.name).write_bytes(cubin)
        done = subprocess.run(
            [triton.knobs.nvidia.cuobjdump.path, "--dump-resource-usage", file.name],
            capture_output=True,
            text=True,
            check=True,
        )
    [line] = re.findall(r"REG:.*", done.stdout)
    figures = {name: int(value) for name, value in re.findall(r"(\w+):(\d+)", line)}
    return {"registers": figures["REG"], "local": figures["STACK"] + figures["LOCAL"]}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("architectures", type=int, nargs="+", choices=PROCESSORS)
    parser.add_argument("--all", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as cache, triton.knobs.cache.scope():
        triton.knobs.cache.dir = cache
        for architecture in arguments.architectures:
            for name, kernel, options in variants(architecture, everything=arguments.all):
                wanted = ("num_warps", "maxnreg", "enable_fp_fusion")
                compiled = triton.compile(
                    kernel,
                    target=GPUTarget("cuda", architecture, 32),
                    options={key: options[key] for key in wanted if key in options},
                )
                shared = compiled.metadata.shared
                found = usage(compiled.asm["cubin"])
                print(
                    json.dumps(
                        {"architecture": architecture, "name": name, "shared": shared, **found}
                    ),
                    flush=True,
                )


if __name__ == "__main__":
    main()

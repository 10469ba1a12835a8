"""Every kernel that the product launches, compiled for every kind of card without one."""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import gptj_predictor
from gptj_predictor.common.kernel_configs import KERNEL_CONFIGS

pytest.importorskip("triton")

ROOT = Path(__file__).parents[2]
PACKAGE = Path(gptj_predictor.__file__).parent
TOOL = ROOT / "tools" / "kernel_table.py"

pytestmark = pytest.mark.slow


def run(*command: object, code: int = 0) -> str:
    """Run Python where Triton compiles, as it does not in the tests' own process."""
    environment = {name: value for name, value in os.environ.items() if "TRITON" not in name}
    done = subprocess.run(
        [sys.executable, *map(str, command)],
        env=environment | {"PYTHONPATH": f"{PACKAGE.parent}{os.pathsep}{ROOT}"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout


def launched_kernels() -> set[str]:
    """Functions of the package that Triton compiles and that are launched: ``name[grid](...)``."""
    trees = [ast.parse(path.read_text()) for path in PACKAGE.rglob("*.py")]
    nodes = [node for tree in trees for node in ast.walk(tree)]
    compiled = {
        node.name
        for node in nodes
        if isinstance(node, ast.FunctionDef)
        and any("triton.jit" in ast.unparse(decorator) for decorator in node.decorator_list)
    }
    calls = [node.func for node in nodes if isinstance(node, ast.Call)]
    launched = [call.value for call in calls if isinstance(call, ast.Subscript)]
    return compiled & {ast.unparse(value).rpartition(".")[2] for value in launched}


def test_every_launched_kernel_has_a_configuration() -> None:
    assert launched_kernels() == {name.partition(" ")[0] for name in KERNEL_CONFIGS}


def test_an_engine_launches_what_is_listed_and_nothing_else() -> None:
    """By Triton's own keys: a variant that is not listed would be compiled while requests wait."""
    found = json.loads(run("-m", "tests.support.engine_launches"))
    assert set(found["kernels"]) == launched_kernels()
    assert found["not listed"] == []
    assert found["not launched"] == []


@pytest.mark.parametrize("cards", [(70, 75, 80, 86), (89, 90, 100, 120)], ids=str)
def test_compiles_for_every_card(cards: tuple[int, ...], tmp_path: Path) -> None:
    """Within each card's shared memory and without spills, which the tool ends with 1 for.

    Every kernel for every card at head size 256, with every split, in the dtypes that the server
    takes. What costs most and differs least is in the tests with ``large``: fp32; fp16 on sm_89,
    sm_100 and sm_120; and of products with int8 weights those with fp16 from sm_80 on, with more
    than 8 rows, and before sm_80 with more than one. sm_86's machine code is made of sm_80's
    assembly.
    """
    run(TOOL, "--quick", "--architectures", *cards, "--json", tmp_path / "usages")
    usages = json.loads((tmp_path / "usages").read_text())
    check(usages, cards, {card: quick_dtypes(card) for card in cards})
    found = shown(quick_rows(usages), cards)
    assert documented(found, cards) == found


@pytest.mark.large
@pytest.mark.parametrize("card", [70, 75, 80, 86, 89, 90, 100, 120])
def test_compiles_every_variant(card: int, tmp_path: Path) -> None:
    """In full, nothing left out."""
    run(TOOL, "--architectures", card, "--json", tmp_path / "usages")
    usages = json.loads((tmp_path / "usages").read_text())
    check(usages, (card,), {card: {"fp16", "fp32"} | ({"bf16"} if card >= 80 else set())})
    found = shown(usages, (card,))
    assert documented(found, (card,)) == found
    page = load_tool().PAGE.read_text()
    assert load_tool().versions() not in page or set(found) == set(cells(page, (card,)))


def quick_dtypes(card: int) -> set[str]:
    if card < 80:
        return {"fp16"}
    return {"bf16"} if card in (89, 100, 120) else {"bf16", "fp16"}


def check(
    usages: list[dict[str, Any]], cards: tuple[int, ...], dtypes: dict[int, set[str]]
) -> None:
    """Whether every kernel is there, and is as it should be."""
    # The start's trial is the same for every dtype, and int8 weights may be there for one alone.
    once = {"_add_one", "_dequantize"}
    for kernel in once:
        assert {usage["architecture"] for usage in usages if usage["kernel"] == kernel} == set(
            cards
        )
    compiled = {
        (usage["architecture"], usage["dtype"], usage["kernel"])
        for usage in usages
        if usage["kernel"] not in once and not usage["int8"]
    }
    # fp32 weights are cuBLAS's.
    assert compiled == {
        (card, dtype, kernel)
        for card in cards
        for dtype in dtypes[card]
        for kernel in launched_kernels() - once - ({"_multiply"} if dtype == "fp32" else set())
    }
    for card in cards:
        int8 = [one for one in usages if one["int8"] and one["architecture"] == card]
        assert {one["kernel"] for one in int8} == {"_multiply", "_dequantize"}
        assert {one["constants"]["block_rows"] for one in int8 if one["kernel"] == "_multiply"}
    for usage in usages:
        assert 0 < usage["registers"] <= 255
        # Of a few numbers, or of a block that leaves a thread 8 bytes at 16 bits, none can be.
        assert usage["wide"] or usage["kernel"] in {"_add_one", "_sample"}, usage
        if usage["kernel"] == "_attend":
            assert usage["asynchronous"] == (usage["architecture"] >= 80), usage


@pytest.mark.large
@pytest.mark.parametrize("head_size", [16, 32, 64, 128])
def test_compiles_for_every_head_size(head_size: int) -> None:
    printed = run(TOOL, "--head-sizes", head_size)
    assert " 0 of them with trouble" in printed


def documented(
    found: dict[str, dict[int, str]], cards: tuple[int, ...]
) -> dict[str, dict[int, str]]:
    """What the docs say of what was compiled; just that if another compiler made the table."""
    tool = load_tool()
    page = tool.PAGE.read_text()
    if tool.versions() not in page:
        return found
    known = cells(page, cards)
    return {
        row: {card: known.get(row, {}).get(card, "") for card in by_card}
        for row, by_card in found.items()
    }


def shown(usages: list[dict[str, Any]], cards: tuple[int, ...]) -> dict[str, dict[int, str]]:
    """The table as it is to be, for some cards."""
    tool = load_tool()
    return cells(tool.table([tool.Usage(**usage) for usage in usages]), cards)


def quick_rows(usages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Without the rows of which a quick run leaves out a variant: of int8 weights before sm_80."""
    tool = load_tool()
    partial = {
        tool.Usage(**usage).row for usage in usages if usage["int8"] and usage["architecture"] < 80
    }
    return [usage for usage in usages if tool.Usage(**usage).row not in partial]


def cells(text: str, cards: tuple[int, ...]) -> dict[str, dict[int, str]]:
    """A table's cells by the kernel's row and the card."""
    rows = [re.split(r" *\| *", line.strip("| ")) for line in text.splitlines() if "|" in line]
    columns = {card: rows[0].index(f"sm_{card}") for card in cards}
    found = {
        " ".join(row[:3]): {
            card: row[column] for card, column in columns.items() if row[column] != "-"
        }
        for row in rows[2:]
    }
    return {row: by_card for row, by_card in found.items() if by_card}


def load_tool() -> Any:
    spec = importlib.util.spec_from_file_location("kernel_table", TOOL)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_spills_are_seen(tmp_path: Path) -> None:
    """The same code with fewer registers than it needs: the reader finds what is left over."""
    tool = load_tool()
    source = tmp_path / "crowded.ptx"
    values = "\n".join(f"ld.volatile.global.f32 %f{i}, [%rd1+{4 * i}];" for i in range(64))
    sums = "\n".join(f"st.volatile.global.f32 [%rd1+{4 * i}], %f{i};" for i in range(64))
    source.write_text(
        ".version 8.0\n.target sm_80\n.address_size 64\n"
        ".visible .entry crowded(.param .u64 p) {\n.reg .f32 %f<64>;\n.reg .b64 %rd<2>;\n"
        f"ld.param.u64 %rd1, [p];\n{values}\n{sums}\nret;\n}}\n"
    )
    found = {}
    for most in (255, 24):
        cubin = tmp_path / f"{most}.cubin"
        ptxas = tool.triton.knobs.nvidia.ptxas.path
        command = [ptxas, "--gpu-name=sm_80", f"--maxrregcount={most}", source, "-o", cubin]
        subprocess.run(command, check=True)
        found[most] = tool.read_resources(cubin)
    assert found[255][0] > 64
    assert found[255][1] == 0
    assert found[24][0] <= 24
    assert found[24][1] > 0

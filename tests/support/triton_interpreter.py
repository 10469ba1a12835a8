"""Triton's interpreter, made quicker by importing this, and corrected where a test asks for it.

Triton 3.6's also learns to live with NumPy from 2.4 on.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import triton.language as tl  # type: ignore[import-untyped]
from triton.runtime import interpreter  # type: ignore[import-untyped]
from triton.runtime.interpreter import InterpreterBuilder  # type: ignore[import-untyped]

_patched: set[int] = set()


def _call(self: Any, *args: Any, **kwargs: Any) -> Any:
    """Call a function inside a kernel.

    The original makes the language interpreted anew each time. That takes half a millisecond, and
    once per module is enough: the launch has done it for the language itself, and what a module
    has patched stays so.
    """
    module = id(self.fn.__globals__)
    if module not in _patched:
        interpreter._patch_lang(self.fn)
        _patched.add(module)
    return self.rewrite()(*args, **kwargs)


interpreter.InterpretedFunction.__call__ = _call

_patch_tensor = interpreter._patch_lang_tensor


def _patch_tensor_and_index(tensor: Any, scope: Any) -> None:
    """A number is an array of one value, which Triton 3.6 takes for an array without dimensions."""
    _patch_tensor(tensor, scope)
    scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))


interpreter._patch_lang_tensor = _patch_tensor_and_index


def correct_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have bfloat16 computed as on a GPU.

    The interpreter keeps bfloat16 values as 16-bit integers. It multiplies these integers in
    ``tl.dot``, converts int8 to them as numbers, and cuts fp32 off instead of rounding.
    """
    create_dot, cast = InterpreterBuilder.create_dot, InterpreterBuilder.cast_impl

    def as_fp32(handle: Any) -> Any:
        if handle.dtype.scalar is not tl.bfloat16:
            return handle
        return type(handle)((handle.data.astype(np.uint32) << 16).view(np.float32), tl.float32)

    def corrected_dot(self: Any, a: Any, b: Any, *rest: Any) -> Any:
        return create_dot(self, as_fp32(a), as_fp32(b), *rest)

    def corrected_cast(self: Any, source: Any, target: Any) -> Any:
        if target.scalar is not tl.bfloat16 or source.dtype.scalar is tl.bfloat16:
            return cast(self, source, target)
        values = source.data.astype(np.float32)
        bits = values.view(np.uint32)
        # To the nearest, ties to even; a NaN stays one.
        rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        result = np.where(np.isnan(values), 0x7FC0, rounded).astype(np.uint16)
        return type(source)(result, tl.bfloat16)

    monkeypatch.setattr(InterpreterBuilder, "create_dot", corrected_dot)
    monkeypatch.setattr(InterpreterBuilder, "cast_impl", corrected_cast)

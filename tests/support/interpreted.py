"""Triton's interpreter, made quicker for kernels that call functions of their own."""

from __future__ import annotations

from typing import Any

from triton.runtime import interpreter  # type: ignore[import-untyped]

_patched: set[int] = set()


def _call(self: Any, *args: Any, **kwargs: Any) -> Any:
    """As the original, which makes the language interpreted anew at each call inside a kernel.

    That takes half a millisecond, and once per module is enough: the launch has done it for the
    language itself, and what a module has patched stays so.
    """
    module = id(self.fn.__globals__)
    if module not in _patched:
        interpreter._patch_lang(self.fn)
        _patched.add(module)
    return self.rewrite()(*args, **kwargs)


interpreter.InterpretedFunction.__call__ = _call

"""Compiling the Triton kernels on a machine that does not have the card. Importing needs Triton.

Triton asks its driver which card is there and hands it what is to be loaded and launched. The
driver here names any card and loads and launches nothing; all else is Triton's own, so what lands
in Triton's cache is what the card itself would look for. It serves the whole process, for good.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import triton  # type: ignore[import-untyped]
from triton.backends.compiler import GPUTarget  # type: ignore[import-untyped]
from triton.runtime import driver  # type: ignore[import-untyped]

#: Launches a kernel, or several.
Launch = Callable[[], object]
#: Takes a kernel's source and its metadata when Triton would make what launches the kernel.
Launcher = Callable[[Any, Any], object]


@dataclass(frozen=True)
class CompiledKernel:
    """One variant of a kernel, for one card.

    Attributes:
        name: The kernel's.
        dtypes: Its arguments' types by name; ``constexpr`` for constants.
        constants: The constants by name.
        num_warps: Groups of 32 threads of a program.
        shared_bytes: Shared memory of a program.
        cubin: The machine code, in Triton's cache.
        was_cached: Whether it was there already.
    """

    name: str
    dtypes: dict[str, str]
    constants: dict[str, Any]
    num_warps: int
    shared_bytes: int
    cubin: Path
    was_cached: bool


class _AbsentCard:
    """What Triton asks of a driver (triton.backends.driver); it is also its own ``utils``."""

    def __init__(self, capability: int, on_launcher: Launcher | None) -> None:
        self._capability, self._on_launcher = capability, on_launcher
        self.utils = self

    def get_current_target(self) -> Any:
        return GPUTarget("cuda", self._capability, 32)

    def get_current_device(self) -> int:
        # Compiled kernels are kept by this number.
        return self._capability

    def get_current_stream(self, device: int) -> int:
        return 0

    def launcher_cls(self, source: object, metadata: object) -> Any:
        if self._on_launcher is not None:
            self._on_launcher(source, metadata)
        return lambda *_: None

    def get_device_properties(self, device: int) -> dict[str, int]:
        return {"max_shared_mem": 2**31}  # whoever compiles compares

    def load_binary(self, *_: object) -> tuple[object, ...]:
        return None, None, 0, 0, 1024  # module, function, registers, spills, most threads


def pretend_card(capability: int, on_launcher: Launcher | None = None) -> None:
    """Compile for a card that is not here, from now on.

    Args:
        capability: Ten times the major compute capability plus the minor one: 80, 90, 120.
        on_launcher: Called for every kernel when it is first launched.

    Raises:
        RuntimeError: Triton interprets kernels in this process (``TRITON_INTERPRET``).
    """
    if triton.knobs.runtime.interpret:
        raise RuntimeError("TRITON_INTERPRET is set; nothing would be compiled")
    driver.set_active(_AbsentCard(capability, on_launcher))


def compile_launches(launches: Iterable[Launch]) -> list[CompiledKernel]:
    """Have every kernel compiled that the calls launch; see :func:`pretend_card`.

    Returns:
        The kernels in the order of their first launch in this process, each variant once.

    Raises:
        Exception: what Triton's compiler raises.
    """
    compiled: list[CompiledKernel] = []

    def listen(
        *, src: Any, metadata: dict[str, Any], metadata_group: dict[str, str], **rest: Any
    ) -> None:
        names = src.fn.arg_names
        [cubin] = (path for name, path in metadata_group.items() if name.endswith(".cubin"))
        compiled.append(
            CompiledKernel(
                name=src.fn.__name__,
                dtypes=dict(src.signature),
                constants={names[place]: value for (place,), value in src.constants.items()},
                num_warps=metadata["num_warps"],
                shared_bytes=metadata["shared"],
                cubin=Path(cubin),
                was_cached=rest["cache_hit"],
            )
        )

    with _knob(triton.knobs.compilation, "listener", listen):
        for launch in launches:
            launch()
    return compiled


@contextmanager
def noted_launches() -> Iterator[set[tuple[str, str]]]:
    """Note what is launched meanwhile, and neither compile nor launch it.

    Yields:
        Of every launch the kernel's name and the key by which Triton knows the variant.
    """
    noted: set[tuple[str, str]] = set()

    def note(*, key: str, fn: Any, **_: Any) -> bool:
        noted.add((fn.jit_function.__name__, key))
        return True  # nothing is to be compiled

    with _knob(triton.knobs.runtime, "jit_cache_hook", note):
        yield noted


@contextmanager
def _knob(knobs: Any, name: str, value: object) -> Iterator[None]:
    before = getattr(knobs, name)
    setattr(knobs, name, value)
    try:
        yield
    finally:
        setattr(knobs, name, before)

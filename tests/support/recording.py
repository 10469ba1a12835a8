"""What a step asks of its device: torch's operations and Triton's launches, in order.

Recorded on tensors of the CPU, so one entry is one call. On a GPU most are one kernel each; a sort,
a scan or a product that is split over its inner dimension may be several.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from triton.runtime.interpreter import InterpretedFunction  # type: ignore[import-untyped]

#: They make no work for the device: another look at memory, or memory as it is.
_NO_WORK = {
    "aten::empty",
    "aten::empty_like",
    "aten::empty_strided",
    "aten::new_empty",
    "aten::detach",
    "aten::_unsafe_view",
    "aten::alias",
    "aten::lift_fresh",
}

#: Those wait for the device, or give what depends on values, not on shapes.
WAITING = {
    "aten::_local_scalar_dense",
    "aten::item",
    "aten::is_nonzero",
    "aten::equal",
    "aten::nonzero",
    "aten::masked_select",
    "aten::bincount",
    "aten::repeat_interleave",
    "aten::_unique2",
    "aten::unique_dim",
}

#: Those do too, with a mask among the indices.
INDEXING = {"aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_"}

#: Those make tensors of the host's values: memory that a capture cannot hold on to.
FROM_HOST = {"aten::lift_fresh", "aten::_to_copy", "aten::pin_memory", "aten::_pin_memory"}

#: Whatever records now, launches run as they did before.
_RUN = InterpretedFunction.run

#: A name, and all that a capture would keep: shapes, strides, dtypes, numbers.
Entry = tuple[str, tuple[Any, ...]]


def _frozen(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return str(value.dtype), tuple(value.shape), value.stride()
    if isinstance(value, list | tuple):
        return tuple(_frozen(one) for one in value)
    if isinstance(value, dict):
        return tuple((key, _frozen(one)) for key, one in value.items())
    return value


class Recording(TorchDispatchMode):
    """Everything between entering it and leaving it.

    Attributes:
        entries: What makes work for the device.
        silent: The names of operations that do not.
        faults: What a captured step must not do.
    """

    def __init__(self, *, execute: bool = True) -> None:
        """Launches are only recorded if they are not executed."""
        super().__init__()  # type: ignore[no-untyped-call]
        self.entries: list[Entry] = []
        self.silent: list[str] = []
        self.faults: list[str] = []
        self._execute = execute
        self._patch = pytest.MonkeyPatch()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        # What is made of other operations shows these; inference mode would hide them.
        with self.again():
            made = func.decompose(*args, **(kwargs or {}))
        if made is not NotImplemented:
            return made
        name = func._schema.name
        indices = args[1] if name in INDEXING else []
        masks = [x for x in indices if isinstance(x, torch.Tensor) and x.dtype is torch.bool]
        if name in WAITING or name in FROM_HOST or masks:
            self.faults.append(name)
        if func.is_view or name in _NO_WORK:
            self.silent.append(name)
        else:
            self.entries.append((name, _frozen([args, kwargs or {}])))
        return func(*args, **(kwargs or {}))

    @contextmanager
    def again(self) -> Iterator[None]:
        """Within an operation, as a mode does not see what it does itself."""
        super().__enter__()  # type: ignore[no-untyped-call]
        try:
            yield
        finally:
            super().__exit__(None, None, None)  # type: ignore[no-untyped-call]

    def __enter__(self) -> Any:
        recording = self

        def record(self: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> None:
            recording.entries.append((self.__name__, (tuple(grid), *_frozen([args, options]))))
            if recording._execute:
                with _disable_current_modes():
                    _RUN(self, *args, grid=grid, warmup=warmup, **options)

        self._patch.setattr(InterpretedFunction, "run", record)
        return super().__enter__()  # type: ignore[no-untyped-call]

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        self._patch.undo()

    @property
    def names(self) -> list[str]:
        """The entries' names, without namespaces."""
        return [name.removeprefix("aten::").lstrip("_") for name, _ in self.entries]


class RecordedCapture:
    """Stands in for CUDA's capture: a replay runs again, recorded, and must do the same again.

    Attributes:
        graphs: By the number of tokens, what was captured.
        inside: Whether a captured step runs now.
    """

    def __init__(self, *, execute: bool = True) -> None:
        self.graphs: dict[int, Recording] = {}
        self._execute = execute

    def __call__(self, run: Callable[[], torch.Tensor]) -> Callable[[], torch.Tensor]:
        def recorded() -> tuple[Recording, torch.Tensor]:
            with _disable_current_modes(), Recording(execute=self._execute) as recording:
                tokens = run()
            return recording, tokens

        recorded()  # as for CUDA, once before, so that what is made once is there
        captured, first = recorded()
        assert not captured.faults
        self.graphs[len(first)] = captured

        def replay() -> torch.Tensor:
            recording, tokens = recorded()
            assert recording.entries == captured.entries, "not what was captured"
            assert tokens.data_ptr() == first.data_ptr(), "not where it was captured"
            return tokens

        return replay

"""Which parameters the network has, and where a checkpoint's tensors lie in them. Names only."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal, NamedTuple

import torch

from gptj_predictor.model.config import NetworkConfig
from gptj_predictor.model.quantization import WeightQuantization

#: What gets a device of its own: the embedding, a layer (its index), the head with the last norm.
Part = int | Literal["embedding", "head"]

#: What follows the name of a checkpoint's int8 weight in that of its scales.
SCALE_SUFFIX = "_scale"


class Parameter(NamedTuple):
    """One tensor of the network.

    Attributes:
        shape: Of the tensor.
        part: The part of the network that it belongs to.
        dtype: Of its values; ``None`` for the network's own.
    """

    shape: tuple[int, ...]
    part: Part
    dtype: torch.dtype | None = None


class Place(NamedTuple):
    """Where a checkpoint's tensor lies: from ``start`` on in dimension ``dim`` of a parameter."""

    parameter: str
    dim: int
    start: int
    shape: tuple[int, ...]

    def of(self, memory: torch.Tensor) -> torch.Tensor:
        """The tensor's part of the parameter's memory, as a view."""
        return memory.narrow(self.dim, self.start, self.shape[self.dim])


class NetworkLayout:
    """The parameters that a configuration asks for.

    A layer's six projections are fused into two, see :class:`GPTJLayer`. Of those that make up
    ``project_in`` only fc_in has a bias, of those that make up ``project_out`` only fc_out.

    Weights that are multiplied with can be int8. Each has a parameter with its scales then, such as
    ``layers.0.project_in.scale``. The embedding, which is looked up, is never int8, and neither is
    a tied head.

    Attributes:
        parameters: By the network's own names. A tied head has a bias and no weight.
        places: By the checkpoint's names.
        quantization: Of the network.
        stored: Of the checkpoint.
    """

    def __init__(
        self,
        config: NetworkConfig,
        quantization: WeightQuantization = "none",
        *,
        stored: WeightQuantization = "none",
    ) -> None:
        """Lay out a network, from a checkpoint that is quantized as well or not.

        Raises:
            ValueError: the checkpoint is quantized and the network not.
        """
        if quantization == "none" != stored:
            raise ValueError(f"a checkpoint in {stored} cannot become a network that is not")
        self.quantization, self.stored = quantization, stored
        self.parameters: dict[str, Parameter] = {}
        self.places: dict[str, Place] = {}
        hidden, vocabulary = config.n_embd, config.vocab_size
        inner = config.inner_size
        self._add("embedding", "embedding.weight", {"transformer.wte.weight": vocabulary}, hidden)
        for index in range(config.n_layer):
            self._add_layer(index, hidden, inner)
        self._add("head", "norm.weight", {"transformer.ln_f.weight": hidden})
        self._add("head", "norm.bias", {"transformer.ln_f.bias": hidden})
        if not config.tie_word_embeddings:
            self._add("head", "head.weight", {"lm_head.weight": vocabulary}, hidden)
        self._add("head", "head.bias", {"lm_head.bias": vocabulary})

    def _add_layer(self, index: int, hidden: int, inner: int) -> None:
        own, stored = f"layers.{index}", f"transformer.h.{index}"
        attention, mlp = f"{stored}.attn", f"{stored}.mlp"
        rows = {f"{attention}.{name}_proj.weight": hidden for name in "qkv"}
        rows |= {f"{mlp}.fc_in.weight": inner}
        columns = {f"{attention}.out_proj.weight": hidden, f"{mlp}.fc_out.weight": inner}
        self._add(index, f"{own}.norm.weight", {f"{stored}.ln_1.weight": hidden})
        self._add(index, f"{own}.norm.bias", {f"{stored}.ln_1.bias": hidden})
        self._add(index, f"{own}.project_in.weight", rows, hidden)
        self._add(index, f"{own}.project_in.bias", {f"{mlp}.fc_in.bias": inner}, start=3 * hidden)
        self._add(index, f"{own}.project_out.weight", columns, hidden, dim=1)
        self._add(index, f"{own}.project_out.bias", {f"{mlp}.fc_out.bias": hidden})

    def _add(
        self,
        part: Part,
        name: str,
        pieces: Mapping[str, int],
        *other: int,
        dim: int = 0,
        start: int = 0,
    ) -> None:
        """A parameter that is ``pieces`` side by side in ``dim``, the first one at ``start``.

        ``other`` is the size of its other dimension, if it has one.
        """
        is_int8 = self.quantization == "int8" and is_multiplied(name)
        scale = scale_of(name)
        for tensor, length in pieces.items():
            self.places[tensor] = Place(name, dim, start, (*other[:dim], length, *other[dim:]))
            if is_int8 and self.stored == "int8":
                # Pieces side by side in one row have the same scales.
                first, count = (start, length) if dim == 0 else (0, other[0])
                self.places[f"{tensor}{SCALE_SUFFIX}"] = Place(scale, 0, first, (count,))
            start += length
        shape = (*other[:dim], start, *other[dim:])
        self.parameters[name] = Parameter(shape, part, torch.int8 if is_int8 else None)
        if is_int8:
            self.parameters[scale] = Parameter(shape[:1], part, torch.float32)

    def part_bytes(self, dtype: torch.dtype) -> list[int]:
        """Bytes of the embedding's parameters, of each layer's and of the head's, in this order.

        ``dtype`` is the network's.
        """
        sizes: dict[Part, int] = {}
        for shape, part, own in self.parameters.values():
            sizes[part] = sizes.get(part, 0) + math.prod(shape) * (own or dtype).itemsize
        return list(sizes.values())


def is_multiplied(parameter: str) -> bool:
    """Whether a parameter is a matrix of a product."""
    return parameter.endswith(("project_in.weight", "project_out.weight", "head.weight"))


def scale_of(parameter: str) -> str:
    """The name of the scales of an int8 weight."""
    return parameter.removesuffix("weight") + "scale"

"""What attention is asked for, whoever computes it; and rotary positions."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch

from gptj_predictor.model.kv_cache import LayerCache
from gptj_predictor.model.step_inputs import StepInputs


class Attention(ABC):
    """One device's way to write keys and values to the KV cache and to attend to them.

    Attributes:
        name: For the start log.
        capturable: Whether decoding depends on tensors alone, so that a CUDA graph can replay it.
    """

    name: str
    capturable: bool

    @abstractmethod
    def store(
        self, qkv: torch.Tensor, rotations: torch.Tensor, cache: LayerCache, step: StepInputs
    ) -> None:
        """Rotate new queries and keys in place; write the keys and values to the cache.

        Args:
            qkv: ``[T, 3, heads, head_size]`` queries, keys and values.
            rotations: ``[T, rotary_dim / 2]`` complex, :func:`rotary_table` at T positions.
            cache: One layer's.
            step: Where each of the T tokens goes.
        """

    @abstractmethod
    def attend(
        self, qkv: torch.Tensor, cache: LayerCache, step: StepInputs, *, out: torch.Tensor
    ) -> None:
        """Attend causally: every new token to its own sequence, itself included.

        Args:
            qkv: ``[T, 3, heads, head_size]`` as :meth:`store` left them.
            cache: The same layer's, with this step's keys and values in it.
            step: Which slots of the cache belong to which of the T tokens.
            out: ``[T, heads, head_size]`` to write to. It may be the values' own memory,
                ``qkv[:, 2]``: a sequence's values are read before its output is written.
        """


def rotary_table(positions: int, rotary_dim: int, device: torch.device) -> torch.Tensor:
    """The rotation of every position, as unit complex numbers ``[positions, rotary_dim / 2]``.

    Frequencies ``10000 ** (-2 i / rotary_dim)``: Su et al., RoFormer (2021), section 3.2.2. It is
    made on the CPU, so that every device has the same numbers and a GPU compiles nothing for it.
    """
    exponents = torch.arange(0, rotary_dim, 2, dtype=torch.int64) / rotary_dim
    frequencies = 1.0 / (10000**exponents)
    angles = torch.outer(torch.arange(positions, dtype=torch.float32), frequencies)
    return torch.complex(angles.cos(), angles.sin()).to(device)

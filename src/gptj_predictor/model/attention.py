"""What a device computes for a layer beside its products, whoever does it; and rotary positions."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch

from gptj_predictor.model.kv_cache import LayerCache
from gptj_predictor.model.layer import GPTJLayer
from gptj_predictor.model.step_inputs import StepInputs


class Attention(ABC):
    """One device's way through a layer: norm, rotary, cache write, attention, activation.

    Attributes:
        name: For the start log.
        capturable: Whether decoding depends on tensors alone, so that a CUDA graph can replay it.
    """

    name: str
    capturable: bool

    @abstractmethod
    def rotations(self, table: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """What :meth:`layer` wants to know of rotary positions, for all layers of a step.

        Args:
            table: :func:`rotary_table`.
            positions: ``[T]`` int64.
        """

    @abstractmethod
    def layer(
        self,
        layer: GPTJLayer,
        residual: torch.Tensor,
        rotations: torch.Tensor,
        cache: LayerCache,
        step: StepInputs,
    ) -> torch.Tensor:
        """Run one layer on T new tokens, of which each attends to its sequence up to itself.

        Args:
            layer: Its weights.
            residual: ``[T, H]``; its memory may be used for the result.
            rotations: What :meth:`rotations` made.
            cache: The layer's, to which T new keys and values are written.
            step: Where each of the T tokens goes and what it attends to.

        Returns:
            ``[T, H]``.
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

"""From finished weights to a finished network."""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections import defaultdict

import torch

from gptj_predictor.model.attention import Attention
from gptj_predictor.model.config import NetworkConfig
from gptj_predictor.model.linear import can_pack, pack
from gptj_predictor.model.network import GPTJNetwork, Placement
from gptj_predictor.model.torch_attention import TorchAttention, causal_bias
from gptj_predictor.model.varlen_attention import choose_prefill
from gptj_predictor.snapshot.layout import NetworkLayout


class NetworkBuilder:
    """Takes the parameters one by one, in any order; :meth:`finish` makes the network of them.

    Attributes:
        layout: The parameters that it wants, and where a checkpoint's tensors lie in them.
        dtype: Of the weights.
        placement: Where they go.
    """

    def __init__(self, config: NetworkConfig, dtype: torch.dtype, placement: Placement) -> None:
        """Allocate nothing yet.

        Raises:
            ValueError: ``placement`` has more or fewer layers than ``config``, or parts the head
                from the embedding though they share a weight.
        """
        if len(placement.layers) != config.n_layer:
            raise ValueError(f"{len(placement.layers)} layers are placed, not {config.n_layer}")
        if config.tie_word_embeddings and placement.embedding != placement.head:
            raise ValueError("a head that shares the embedding's weight lies where that lies")
        self.layout = NetworkLayout(config)
        self.dtype, self.placement = dtype, placement
        self._config = config
        self._weights: dict[str, torch.Tensor] = {}
        self._partial: dict[str, torch.Tensor] = {}
        self._absent: dict[str, set[str]] = defaultdict(set)
        for tensor, place in self.layout.places.items():
            self._absent[place.parameter].add(tensor)

    def device_of(self, parameter: str) -> torch.device:
        """Where a parameter goes."""
        part = self.layout.parameters[parameter].part
        if isinstance(part, int):
            return self.placement.layers[part]
        return self.placement.embedding if part == "embedding" else self.placement.head

    def packs(self, parameter: str) -> bool:
        """Whether :meth:`put` copies a parameter to a packed layout: a product's weight on a CPU.

        The embedding is looked up and not multiplied; a tied head reads it as it is.
        """
        multiplied = parameter.endswith(("project_in.weight", "project_out.weight", "head.weight"))
        return multiplied and can_pack(self.device_of(parameter), self.dtype)

    def allocate(self, parameter: str) -> torch.Tensor:
        """Memory for a parameter, on its device and unfilled.

        Vectors are zero instead: q, k and v have no bias in a checkpoint.
        """
        shape = self.layout.parameters[parameter].shape
        make = torch.zeros if len(shape) == 1 else torch.empty
        return make(shape, dtype=self.dtype, device=self.device_of(parameter))

    def put(self, parameter: str, memory: torch.Tensor) -> None:
        """Take a parameter whose values are all there.

        If it :meth:`packs`, ``memory`` is the caller's again afterwards; else the network keeps it.
        """
        self._weights[parameter] = pack(memory) if self.packs(parameter) else memory

    def fill(self, tensor: str, values: torch.Tensor) -> None:
        """Copy a checkpoint's tensor to its place, and :meth:`put` its parameter if that is whole.

        Raises:
            KeyError: the layout has no such tensor.
        """
        place = self.layout.places[tensor]
        name = place.parameter
        if name not in self._partial:
            self._partial[name] = self.allocate(name)
        place.of(self._partial[name]).copy_(values)
        self._absent[name].discard(tensor)
        if not self._absent[name]:
            self.put(name, self._partial.pop(name))

    def finish(self) -> GPTJNetwork:
        """The network.

        Raises:
            ValueError: parameters are missing; it names the first.
        """
        missing = [name for name in self.layout.parameters if name not in self._weights]
        if missing:
            more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            raise ValueError(f"the network has no {missing[0]}{more} yet")
        head_size = self._config.n_embd // self._config.n_head
        attentions = {
            device: select_attention(device, head_size, self.dtype)
            for device in self.placement.devices
        }
        return GPTJNetwork(self._config, self.dtype, self.placement, self._weights, attentions)


def select_attention(device: torch.device, head_size: int, dtype: torch.dtype) -> Attention:
    """The quickest attention that a device can run."""
    if device.type != "cuda":
        return TorchAttention()
    # At head size 256 it makes a plan per length and thread, for tens of milliseconds each.
    torch.backends.cuda.enable_cudnn_sdp(False)
    prefill = choose_prefill(
        torch.cuda.get_device_capability(device),
        dtype,
        head_size,
        has_flash=torch.backends.cuda.is_flash_attention_available(),
    )
    if prefill is None:
        causal_bias()  # its import shall not keep the first request waiting
    if _triton_can_build():
        from gptj_predictor.model.triton_attention import TritonAttention
        from gptj_predictor.model.triton_kernels import supports

        if supports(head_size, dtype):
            properties = torch.cuda.get_device_properties(device)
            return TritonAttention(properties.multi_processor_count, prefill)
    return TorchAttention(prefill)


def _triton_can_build() -> bool:
    """Triton compiles a launcher on first use, with the C compiler that it finds."""
    compilers = (os.environ.get("CC", "cc"), "gcc", "clang")
    return importlib.util.find_spec("triton") is not None and any(map(shutil.which, compilers))

"""From finished weights to a finished network."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

import torch

from gptj_predictor.model.attention import Attention
from gptj_predictor.model.config import NetworkConfig
from gptj_predictor.model.int8_packing import Int8Packer
from gptj_predictor.model.linear import can_multiply_int8, can_pack, pack
from gptj_predictor.model.network import GPTJNetwork, Placement
from gptj_predictor.model.quantization import WeightQuantization, quantize, scales_of
from gptj_predictor.model.torch_attention import TorchAttention
from gptj_predictor.snapshot.layout import NetworkLayout, is_multiplied, scale_of


class NetworkBuilder:
    """Takes the parameters one by one, in any order; :meth:`finish` makes the network of them.

    Attributes:
        layout: The parameters that it wants, and where a checkpoint's tensors lie in them.
        dtype: Of the network.
        placement: Where its parameters go.
    """

    def __init__(
        self,
        config: NetworkConfig,
        dtype: torch.dtype,
        placement: Placement,
        quantization: WeightQuantization = "none",
        *,
        stored: WeightQuantization = "none",
    ) -> None:
        """Allocate nothing yet.

        Args:
            config: The network's shape.
            dtype: The network's; int8 weights are made from values in it.
            placement: Which device gets which part.
            quantization: How the network holds its weights.
            stored: How the checkpoint does.

        Raises:
            ValueError: ``placement`` has more or fewer layers than ``config``, or parts the head
                from the embedding though they share a weight; or the checkpoint is quantized and
                the network is not to be.
        """
        if len(placement.layers) != config.n_layer:
            raise ValueError(f"{len(placement.layers)} layers are placed, not {config.n_layer}")
        if config.tie_word_embeddings and placement.embedding != placement.head:
            raise ValueError("a head that shares the embedding's weight lies where that lies")
        self.layout = NetworkLayout(config, quantization, stored=stored)
        self.dtype, self.placement = dtype, placement
        self._config = config
        self._weights: dict[str, torch.Tensor] = {}
        self._partial: dict[str, torch.Tensor] = {}
        self._int8_packer = Int8Packer()
        self._absent: dict[str, set[str]] = defaultdict(set)
        for tensor, place in self.layout.places.items():
            self._absent[place.parameter].add(tensor)

    def device_of(self, parameter: str) -> torch.device:
        """Where a parameter goes."""
        part = self.layout.parameters[parameter].part
        if isinstance(part, int):
            return self.placement.layers[part]
        return self.placement.embedding if part == "embedding" else self.placement.head

    def copies(self, parameter: str) -> bool:
        """Whether :meth:`put` copies a parameter: to quantize it or to pack it."""
        return self._quantizes(parameter) or self.packs(parameter)

    def packs(self, parameter: str) -> bool:
        """Whether a parameter gets a packed layout: a product's weight on a CPU.

        The embedding is looked up and not multiplied; a tied head reads it as it is.
        """
        if not is_multiplied(parameter):
            return False
        device = self.device_of(parameter)
        if self.layout.parameters[parameter].dtype is torch.int8:
            return device.type == "cpu" and can_multiply_int8()
        return can_pack(device, self.dtype)

    def _quantizes(self, parameter: str) -> bool:
        is_int8 = self.layout.parameters[parameter].dtype is torch.int8
        return is_int8 and self.layout.stored == "none"

    def prepare(self) -> None:
        """Start to find out, in the background, how int8 weights are to be packed."""
        shapes = [
            parameter.shape
            for name, parameter in self.layout.parameters.items()
            if parameter.dtype is torch.int8 and self.packs(name)
        ]
        self._int8_packer.prepare(shapes)

    def allocate(self, parameter: str) -> torch.Tensor:
        """Memory for a parameter as it is read, on its device and unfilled.

        Vectors are zero instead: q, k and v have no bias in a checkpoint.
        """
        shape = self.layout.parameters[parameter].shape
        make = torch.zeros if len(shape) == 1 else torch.empty
        dtype = self.dtype_read(parameter)
        return make(shape, dtype=dtype, device=self.device_of(parameter))

    def dtype_read(self, parameter: str) -> torch.dtype:
        """The dtype that :meth:`put` wants a parameter in."""
        own = None if self._quantizes(parameter) else self.layout.parameters[parameter].dtype
        return own or self.dtype

    def put(self, parameter: str, memory: torch.Tensor) -> None:
        """Take a parameter whose values are all there.

        If it :meth:`copies`, ``memory`` is the caller's again afterwards; else the network keeps
        it.
        """
        if self._quantizes(parameter):
            scales = self._weights[scale_of(parameter)] = scales_of(memory)
            memory = quantize(memory, scales)
        if self.packs(parameter):
            is_int8 = memory.dtype is torch.int8
            memory = self._int8_packer.pack(memory) if is_int8 else pack(memory)
        self._weights[parameter] = memory

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

    def finish(self, attentions: Mapping[torch.device, Attention] | None = None) -> GPTJNetwork:
        """The network.

        Args:
            attentions: How each device attends; by default with torch's own kernels.

        Raises:
            ValueError: parameters are missing; it names the first.
        """
        missing = [name for name in self.layout.parameters if name not in self._weights]
        if missing:
            more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            raise ValueError(f"the network has no {missing[0]}{more} yet")
        if attentions is None:
            attentions = {device: TorchAttention() for device in self.placement.devices}
        return GPTJNetwork(
            self._config, self.dtype, self.placement, self._weights, dict(attentions)
        )

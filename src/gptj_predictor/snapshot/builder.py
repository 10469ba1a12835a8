"""From finished weights to a finished network."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

import torch

from gptj_predictor.model.attention import Attention
from gptj_predictor.model.config import NetworkConfig
from gptj_predictor.model.linear import can_pack, pack
from gptj_predictor.model.network import GPTJNetwork, Placement
from gptj_predictor.model.torch_attention import TorchAttention
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

"""Random weights, made on the device where our network has them; transformers reads the same."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import torch
from transformers import GPTJConfig, GPTJForCausalLM

from gptj_predictor.devices.attention import choose_attentions
from gptj_predictor.model.config import NetworkConfig
from gptj_predictor.model.network import GPTJNetwork, Placement
from gptj_predictor.model.quantization import WeightQuantization, quantize, scales_of
from gptj_predictor.snapshot.builder import NetworkBuilder
from gptj_predictor.snapshot.layout import is_multiplied

#: Of every weight matrix: what transformers' GPT-J begins its training with.
DEVIATION = 0.02
SEED = 0


class RandomWeights:
    """One set of weights: in our network, and by a checkpoint's names as views of the same memory.

    Attributes:
        network: Ours.
        step_bytes: Bytes of weights that a decode step reads: all but the embedding's.
    """

    def __init__(self, config: NetworkConfig, dtype: torch.dtype, device: torch.device) -> None:
        """Draw them on the device."""
        self._config, self._dtype, self._device = config, dtype, device
        builder = NetworkBuilder(config, dtype, Placement.on(device, config.n_layer))
        self._parameters = dict(_draw(builder))
        self._places = builder.layout.places
        self.network = _finish(builder, config)
        self.step_bytes = step_bytes(self.network)

    def transformers_model(
        self, dtype: torch.dtype | None = None, quantization: WeightQuantization = "none"
    ) -> Any:
        """transformers' model of these weights; in their own dtype it takes no memory of its own.

        Args:
            dtype: Another one to compute in, which copies them.
            quantization: With ``int8`` it has the values that int8 weights stand for, and copies.
        """
        config = transformers_config(self._config)
        wanted = dtype or self._dtype
        with torch.device("meta"):
            model: Any = GPTJForCausalLM._from_config(
                config, dtype=wanted, attn_implementation="eager"
            )
        parameters = self._parameters
        if quantization == "int8":
            parameters = {name: _as_int8(name, one) for name, one in parameters.items()}
        tensors = {
            name: place.of(parameters[place.parameter]).to(wanted)
            for name, place in self._places.items()
        }
        model.load_state_dict(tensors, strict=False, assign=True)
        self._fill_buffers(model, config, wanted)
        absent = [name for name, weight in model.named_parameters() if weight.is_meta]
        if absent:
            raise RuntimeError(f"transformers wants {absent[0]}, which no weight is for")
        return model.eval().requires_grad_(False)

    def _fill_buffers(self, model: Any, config: GPTJConfig, dtype: torch.dtype) -> None:
        """Compute what is no weight, such as sines, by making a layer for real."""
        values = config.to_dict() | {"n_layer": 1, "vocab_size": 8, "bos_token_id": 0}
        values["eos_token_id"] = 0
        with self._device:
            one_layer: Any = GPTJForCausalLM._from_config(
                GPTJConfig(**values), dtype=dtype, attn_implementation="eager"
            )
        computed = dict(one_layer.named_buffers())
        for name, buffer in list(model.named_buffers()):
            if buffer.is_meta:
                module, _, own = name.rpartition(".")
                value = computed[re.sub(r"\.h\.\d+\.", ".h.0.", name)]
                model.get_submodule(module)._buffers[own] = value


def int8_network(config: NetworkConfig, dtype: torch.dtype, device: torch.device) -> GPTJNetwork:
    """The network of :class:`RandomWeights` with int8 weights, made of the same values.

    Of the values in ``dtype`` only one parameter's are in memory at a time.
    """
    builder = NetworkBuilder(config, dtype, Placement.on(device, config.n_layer), "int8")
    for _ in _draw(builder):
        pass
    return _finish(builder, config)


def step_bytes(network: GPTJNetwork) -> int:
    """Bytes of weights that a decode step reads: all but the embedding's."""
    return network.weight_bytes - network.weights["embedding.weight"].nbytes


def _draw(builder: NetworkBuilder) -> Iterator[tuple[str, torch.Tensor]]:
    """Give a builder random values of every parameter, the same whatever it makes of them."""
    generator = torch.Generator(builder.placement.head).manual_seed(SEED)
    for name in dict.fromkeys(place.parameter for place in builder.layout.places.values()):
        memory = builder.allocate(name)
        if memory.dim() > 1:
            memory.normal_(std=DEVIATION, generator=generator)
        elif name.endswith("norm.weight"):
            memory.fill_(1)
        builder.put(name, memory)
        yield name, memory


def _finish(builder: NetworkBuilder, config: NetworkConfig) -> GPTJNetwork:
    """The network, which attends as the server's would."""
    devices, head_size = builder.placement.devices, config.n_embd // config.n_head
    return builder.finish(choose_attentions(devices, head_size, builder.dtype, allow_slow=False))


def _as_int8(name: str, weight: torch.Tensor) -> torch.Tensor:
    """The values in fp32 that an int8 weight stands for; what is never int8 stays as it is."""
    if not is_multiplied(name):
        return weight
    scales = scales_of(weight)
    return quantize(weight, scales) * scales[:, None]


def transformers_config(config: NetworkConfig) -> GPTJConfig:
    """The same shape for transformers; the text ends where the length says."""
    return GPTJConfig(
        vocab_size=config.vocab_size,
        n_positions=config.n_positions,
        n_embd=config.n_embd,
        n_layer=config.n_layer,
        n_head=config.n_head,
        rotary_dim=config.rotary_dim,
        bos_token_id=config.eos_token_ids[0],
        eos_token_id=config.eos_token_ids[0],
    )

"""Random weights, made on the device where our network has them; transformers reads the same."""

from __future__ import annotations

import re
from typing import Any

import torch
from transformers import GPTJConfig, GPTJForCausalLM

from gptj_predictor.model.config import NetworkConfig
from gptj_predictor.model.network import GPTJNetwork, Placement
from gptj_predictor.snapshot.builder import NetworkBuilder

#: Of every weight matrix: what transformers' GPT-J begins its training with.
DEVIATION = 0.02


class RandomWeights:
    """One set of weights: in our network, and by a checkpoint's names as views of the same memory.

    Attributes:
        network: Ours.
        step_bytes: Bytes of weights that a decode step reads: all but the embedding's.
    """

    def __init__(
        self, config: NetworkConfig, dtype: torch.dtype, device: torch.device, seed: int = 0
    ) -> None:
        """Draw them on the device."""
        self._config, self._dtype, self._device = config, dtype, device
        builder = NetworkBuilder(config, dtype, Placement.on(device, config.n_layer))
        generator = torch.Generator(device).manual_seed(seed)
        parameters = {}
        for name in builder.layout.parameters:
            memory = parameters[name] = builder.allocate(name)
            if memory.dim() > 1:
                memory.normal_(std=DEVIATION, generator=generator)
            elif name.endswith("norm.weight"):
                memory.fill_(1)
            builder.put(name, memory)
        self.network: GPTJNetwork = builder.finish()
        embedding = parameters["embedding.weight"].nbytes
        self.step_bytes = sum(memory.nbytes for memory in parameters.values()) - embedding
        self._tensors = {
            name: place.of(parameters[place.parameter])
            for name, place in builder.layout.places.items()
        }

    def transformers_model(self, dtype: torch.dtype | None = None) -> Any:
        """transformers' model of these weights; in their own dtype it takes no memory of its own.

        Args:
            dtype: Another one to compute in, which copies them.
        """
        config = transformers_config(self._config)
        wanted = dtype or self._dtype
        with torch.device("meta"):
            model: Any = GPTJForCausalLM._from_config(
                config, dtype=wanted, attn_implementation="eager"
            )
        tensors = {name: tensor.to(wanted) for name, tensor in self._tensors.items()}
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

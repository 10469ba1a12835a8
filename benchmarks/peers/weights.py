"""One set of random weights: in transformers' model and in our network."""

from __future__ import annotations

from typing import Any

import torch
from transformers import GPTJConfig, GPTJForCausalLM

from gptj_predictor.model.network import GPTJNetwork, Placement
from gptj_predictor.model.quantization import WeightQuantization
from gptj_predictor.snapshot.builder import NetworkBuilder
from gptj_predictor.snapshot.config import parse_config

CPU = torch.device("cpu")


def make_model(config: GPTJConfig, dtype: torch.dtype, device: torch.device) -> Any:
    """transformers' model with the random weights that it starts training from."""
    torch.manual_seed(0)  # transformers draws from the global generator
    with device:
        model: Any = GPTJForCausalLM._from_config(config, dtype=dtype, attn_implementation="eager")
    assert 0.01 < model.lm_head.weight.float().std() < 0.03, "transformers left weights undrawn"
    return model.eval().requires_grad_(False)


def make_network(
    config: GPTJConfig,
    model: Any,
    device: torch.device,
    quantization: WeightQuantization = "none",
) -> GPTJNetwork:
    """Our network with the model's weights."""
    placement = Placement.on(device, config.n_layer)
    shape = parse_config(config.to_dict())
    builder = NetworkBuilder(shape, model.dtype, placement, quantization)
    weights = model.state_dict()
    for name in builder.layout.places:
        builder.fill(name, weights[name])
    return builder.finish()


def step_bytes_of(model: Any, quantization: WeightQuantization = "none") -> int:
    """Bytes of weights that a decode step reads: all but the embedding's.

    In int8 each matrix has a scale in fp32 for each output.
    """
    total = 0
    for name, tensor in model.state_dict().items():
        if name == "transformer.wte.weight":
            continue
        is_int8 = quantization == "int8" and tensor.dim() == 2
        total += tensor.numel() + 4 * len(tensor) if is_int8 else tensor.nbytes
    return total

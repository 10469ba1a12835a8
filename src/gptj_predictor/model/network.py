"""GPT-J's forward pass.

Attention and MLP of a GPT-J layer read the same layer norm and add to the same residual (Wang and
Komatsuzaki, GPT-J-6B, 2021), so a layer is two matrix products: one on the way in that makes
queries, keys, values and the MLP's hidden values, one on the way out that sums attention and MLP.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn import functional

from gptj_predictor.model.attention import Attention, rotary_table
from gptj_predictor.model.config import NetworkConfig
from gptj_predictor.model.kv_cache import PagedKVCache
from gptj_predictor.model.layer import GPTJLayer, Weights, norm_of
from gptj_predictor.model.product_choice import CallTimer, ProductChoice
from gptj_predictor.model.projections import MakeProjection, make_projection
from gptj_predictor.model.quantization import WeightQuantization
from gptj_predictor.model.step_inputs import StepInputs


@dataclass(frozen=True)
class Placement:
    """Which device holds and computes which part of the network."""

    embedding: torch.device
    layers: tuple[torch.device, ...]
    head: torch.device

    @classmethod
    def on(cls, device: torch.device, layers: int) -> Placement:
        """Everything on one device."""
        return cls(device, (device,) * layers, device)

    @property
    def devices(self) -> tuple[torch.device, ...]:
        """Every device once, in the order of use."""
        return tuple(dict.fromkeys((self.embedding, *self.layers, self.head)))


class GPTJNetwork:
    """Embedding, layers, final norm and head; nothing in it knows of requests.

    Attributes:
        config: What it was made from.
        dtype: Of activations, KV cache and weights that are not int8.
        placement: Where its parts are.
        weights: All weights by name, such as ``layers.0.project_in.bias``. Matrices are ``[outputs,
            inputs]``, plain or packed; those that are int8 have fp32 ``layers.0.project_in.scale``
            beside them.
        attentions: How each device attends.
        weight_bytes: Bytes of all weights.
        product_choices: How products are computed where that was chosen; see
            :meth:`choose_products`.
    """

    def __init__(
        self,
        config: NetworkConfig,
        dtype: torch.dtype,
        placement: Placement,
        weights: Weights,
        attentions: dict[torch.device, Attention],
        make: MakeProjection = make_projection,
    ) -> None:
        """Take the weights as they are; ``make`` makes the projections of them."""
        self.config, self.dtype, self.placement = config, dtype, placement
        self.weights, self.attentions = weights, attentions
        self.weight_bytes = sum(w.numel() * w.dtype.itemsize for w in weights.values())
        self._embedding = weights["embedding.weight"]
        self._layers = [
            GPTJLayer.of(config, weights, f"layers.{i}", make) for i in range(config.n_layer)
        ]
        head = self._embedding if config.tie_word_embeddings else weights["head.weight"]
        self._head = make(head, weights["head.bias"], weights.get("head.scale"), None)
        self._norm = norm_of(config, weights, "norm", self._head)
        positions, rotary_dim = config.n_positions, config.rotary_dim
        self._rotations = {d: rotary_table(positions, rotary_dim, d) for d in placement.devices}
        self.product_choices: tuple[ProductChoice, ...] | None = None

    @property
    def quantization(self) -> WeightQuantization:
        """How the weights of products are held."""
        return "int8" if any(name.endswith(".scale") for name in self.weights) else "none"

    @property
    def head_size(self) -> int:
        """Values per attention head."""
        return self.config.n_embd // self.config.n_head

    @torch.inference_mode()
    def hidden_states(self, step: StepInputs, cache: PagedKVCache) -> torch.Tensor:
        """Run one step through all layers.

        Args:
            step: T new tokens, on any device.
            cache: Where their keys and values go and where earlier ones lie.

        Returns:
            ``[T, H]`` for :meth:`logits`, on the head's device.
        """
        hidden = functional.embedding(step.token_ids.to(self.placement.embedding), self._embedding)
        here = None
        for index, layer in enumerate(self._layers):
            if here != self.placement.layers[index]:
                here = self.placement.layers[index]
                hidden, step = hidden.to(here, layer.norm.weight.dtype), step.to(here)
                attention = self.attentions[here]
                rotations = attention.rotations(self._rotations[here], step.positions)
            hidden = attention.layer(layer, hidden, rotations, cache.layer(index), step)
        return hidden.to(self.placement.head, self._norm.weight.dtype)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """From N rows of :meth:`hidden_states` to the logits of the tokens after them.

        Returns:
            ``[N, vocabulary]`` in fp32, as transformers' ``generate`` processes them.
        """
        if not hidden.shape[0]:
            return hidden.new_empty(0, self.config.vocab_size, dtype=torch.float32)
        return self._head(self._norm(hidden)).float()

    def write_logits(self, hidden: torch.Tensor, out: torch.Tensor) -> None:
        """The same to ``out``, ``[N, vocabulary]`` of the network's dtype."""
        self._head.write(hidden, out, self._norm)

    @torch.inference_mode()
    def choose_products(self, timer: CallTimer) -> tuple[ProductChoice, ...]:
        """Choose how the products are computed that have a choice; see ``triton_linear.choice``.

        It launches kernels of ours, which every device's attention has to be able to.
        """
        from gptj_predictor.model.triton_linear.choice import choose_products

        choices = choose_products(self._layers, self._norm, self._head, timer)
        self.product_choices = tuple(choices)
        return self.product_choices

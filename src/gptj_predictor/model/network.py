"""GPT-J's forward pass.

Attention and MLP of a GPT-J layer read the same layer norm and add to the same residual (Wang and
Komatsuzaki, GPT-J-6B, 2021), so a layer is two matrix products: one on the way in that makes
queries, keys, values and the MLP's hidden values, one on the way out that sums attention and MLP.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch.nn import functional

from gptj_predictor.model.attention import Attention, rotary_table
from gptj_predictor.model.config import NetworkConfig
from gptj_predictor.model.kv_cache import LayerCache, PagedKVCache
from gptj_predictor.model.linear import Projection, make_projection
from gptj_predictor.model.quantization import WeightQuantization
from gptj_predictor.model.step_inputs import StepInputs

#: By name, each filled and on its device.
Weights = Mapping[str, torch.Tensor]
Norm = Callable[[torch.Tensor], torch.Tensor]


class GPTJLayer:
    """One layer, its six projections fused into two.

    With hidden size H and MLP size I:

    * ``project_in`` H to 3 H + I: rows for q, k, v and fc_in, in this order.
    * ``project_out`` H + I to H: columns for out_proj and fc_out.
    """

    def __init__(self, config: NetworkConfig, weights: Weights, name: str) -> None:
        self._hidden, self._heads = config.n_embd, config.n_head
        self._activate = _activation(config.activation_function)
        self._norm = _norm(config, weights, f"{name}.norm")
        self._project_in = _projection(weights, f"{name}.project_in")
        # Few of the MLP's hidden values are large, so that 8 bits are too coarse for the others.
        self._project_out = _projection(weights, f"{name}.project_out", always_fine=True)

    def __call__(
        self,
        residual: torch.Tensor,
        rotations: torch.Tensor,
        cache: LayerCache,
        step: StepInputs,
        attention: Attention,
    ) -> torch.Tensor:
        """``[T, H]`` in and out; writes the T new keys and values to the cache on the way."""
        hidden = self._hidden
        projected = self._project_in(self._norm(residual))
        qkv = projected[:, : 3 * hidden].unflatten(1, (3, self._heads, -1))
        attention.store(qkv, rotations, cache, step)
        # The output takes the columns of the values, which are in the cache now: there it lies
        # beside the MLP's hidden values, as the second product wants it.
        attention.attend(qkv, cache, step, out=qkv[:, 2])
        mixed = projected[:, 2 * hidden :]
        self._activate(mixed[:, hidden:])
        return self._project_out.add_to(residual, mixed)


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
    """

    def __init__(
        self,
        config: NetworkConfig,
        dtype: torch.dtype,
        placement: Placement,
        weights: Weights,
        attentions: dict[torch.device, Attention],
    ) -> None:
        self.config, self.dtype, self.placement = config, dtype, placement
        self.weights, self.attentions = weights, attentions
        self.weight_bytes = sum(w.numel() * w.dtype.itemsize for w in weights.values())
        self._embedding = weights["embedding.weight"]
        self._layers = [GPTJLayer(config, weights, f"layers.{i}") for i in range(config.n_layer)]
        self._norm = _norm(config, weights, "norm")
        head = self._embedding if config.tie_word_embeddings else None
        # What the head rounds off decides between tokens.
        self._head = _projection(weights, "head", head, always_fine=True)
        positions, rotary_dim = config.n_positions, config.rotary_dim
        self._rotations = {d: rotary_table(positions, rotary_dim, d) for d in placement.devices}

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
                hidden, step = hidden.to(here), step.to(here)
                rotations = self._rotations[here][step.positions]
            hidden = layer(hidden, rotations, cache.layer(index), step, self.attentions[here])
        return hidden.to(self.placement.head)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """From N rows of :meth:`hidden_states` to the logits of the tokens after them.

        Returns:
            ``[N, vocabulary]`` in fp32, as transformers' ``generate`` processes them.
        """
        if not hidden.shape[0]:
            return hidden.new_empty(0, self.config.vocab_size, dtype=torch.float32)
        return self._head(self._norm(hidden)).float()


def _weight_and_bias(weights: Weights, name: str) -> tuple[torch.Tensor, torch.Tensor]:
    return weights[f"{name}.weight"], weights[f"{name}.bias"]


def _projection(
    weights: Weights, name: str, weight: torch.Tensor | None = None, *, always_fine: bool = False
) -> Projection:
    """A product with a weight of that name or with another one."""
    if weight is None:
        weight = weights[f"{name}.weight"]
    bias, scales = weights[f"{name}.bias"], weights.get(f"{name}.scale")
    return make_projection(weight, bias, scales, always_fine=always_fine)


def _activation(name: str) -> Callable[[torch.Tensor], object]:
    """The MLP's activation, in place, by transformers' name.

    Raises:
        KeyError: transformers does not know the name.
    """
    if name == "gelu_new":  # GPT-J's own: the tanh approximation of GELU
        return lambda x: torch.ops.aten.gelu_(x, approximate="tanh")
    # It imports torch._dynamo, which takes as long as torch itself.
    from transformers.activations import ACT2FN

    compute = ACT2FN[name]
    return lambda x: x.copy_(compute(x))


def _norm(config: NetworkConfig, weights: Weights, name: str) -> Norm:
    shape, epsilon = [config.n_embd], config.layer_norm_epsilon
    weight, bias = _weight_and_bias(weights, name)
    return lambda x: functional.layer_norm(x, shape, weight, bias, epsilon)

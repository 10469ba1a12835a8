"""GPT-J's forward pass.

Attention and MLP of a GPT-J layer read the same layer norm and add to the same residual (Wang and
Komatsuzaki, GPT-J-6B, 2021), so a layer is two matrix products: one on the way in that makes
queries, keys, values and the MLP's hidden values, one on the way out that sums attention and MLP.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast

import torch
from torch import nn
from transformers import GPTJConfig
from transformers.activations import ACT2FN

from gptj_predictor.model.attention import SdpaAttention, rotary_table, select_attention
from gptj_predictor.model.kv_cache import LayerCache, PagedKVCache
from gptj_predictor.model.linear import Projection
from gptj_predictor.model.step_inputs import StepInputs


class GPTJLayer(nn.Module):
    """One layer, its six projections fused into two.

    With hidden size H and MLP size I:

    * ``project_in`` H to 3 H + I: rows for q, k, v and fc_in, in this order.
    * ``project_out`` H + I to H: columns for out_proj and fc_out.
    """

    def __init__(self, config: GPTJConfig, dtype: torch.dtype) -> None:
        super().__init__()
        hidden = config.n_embd
        inner = config.n_inner if config.n_inner is not None else 4 * hidden
        self.hidden, self.inner, self.heads = hidden, inner, config.n_head
        self.activation_name = config.activation_function
        self.norm = nn.LayerNorm(hidden, eps=config.layer_norm_epsilon, dtype=dtype)
        self.project_in = Projection(hidden, 3 * hidden + inner, dtype)
        self.project_out = Projection(hidden + inner, hidden, dtype)

    def forward(
        self,
        residual: torch.Tensor,
        rotations: torch.Tensor,
        cache: LayerCache,
        step: StepInputs,
        attention: SdpaAttention,
    ) -> torch.Tensor:
        """``[T, H]`` in and out; writes the T new keys and values into the cache on the way."""
        hidden = self.hidden
        projected = self.project_in(self.norm(residual))
        qkv = projected[:, : 3 * hidden].unflatten(1, (3, self.heads, -1))
        attention.store(qkv, rotations, cache, step)
        # The values are in the cache now: attention's output takes their columns, so that it lies
        # beside the MLP's hidden values, as the second product wants it.
        attention.attend(qkv, cache, step)
        mixed = projected[:, 2 * hidden :]
        self._activate(mixed[:, hidden:])
        return self.project_out.add_to(residual, mixed)

    def _activate(self, x: torch.Tensor) -> None:
        if self.activation_name == "gelu_new":  # GPT-J's own: the tanh approximation of GELU
            torch.ops.aten.gelu_(x, approximate="tanh")
        else:
            x.copy_(ACT2FN[self.activation_name](x))

    def checkpoint_views(self, prefix: str) -> dict[str, torch.Tensor]:
        """The parts of the fused weights under the names that a checkpoint gives them."""
        hidden = self.hidden
        rows = self.project_in.weight.data.split([hidden, hidden, hidden, self.inner])
        columns = self.project_out.weight.data.split([hidden, self.inner], dim=1)
        return {
            f"{prefix}.ln_1.weight": self.norm.weight.data,
            f"{prefix}.ln_1.bias": self.norm.bias.data,
            f"{prefix}.attn.q_proj.weight": rows[0],
            f"{prefix}.attn.k_proj.weight": rows[1],
            f"{prefix}.attn.v_proj.weight": rows[2],
            f"{prefix}.mlp.fc_in.weight": rows[3],
            f"{prefix}.mlp.fc_in.bias": self.project_in.bias.data[3 * hidden :],
            f"{prefix}.attn.out_proj.weight": columns[0],
            f"{prefix}.mlp.fc_out.weight": columns[1],
            f"{prefix}.mlp.fc_out.bias": self.project_out.bias.data,
        }


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


class GPTJNetwork(nn.Module):
    """Embedding, layers, final norm and head; nothing in it knows of requests.

    It is laid out first (under accelerate's ``init_empty_weights``, without memory), then given
    memory (:meth:`allocate`), filled (:meth:`checkpoint_views`) and packed (:meth:`pack`).

    Attributes:
        placement: Where its parts are; set by :meth:`allocate`.
        attentions: How each device attends; set by :meth:`allocate`.
        weight_bytes: Bytes of all weights; set by :meth:`allocate`.
    """

    placement: Placement
    attentions: dict[torch.device, SdpaAttention]
    weight_bytes: int

    def __init__(self, config: GPTJConfig, dtype: torch.dtype) -> None:
        super().__init__()
        self.config = config
        self.dtype = dtype
        self.embedding = nn.Embedding(config.vocab_size, config.n_embd, dtype=dtype)
        self.layers = nn.ModuleList(GPTJLayer(config, dtype) for _ in range(config.n_layer))
        self.norm = nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon, dtype=dtype)
        self.head = Projection(config.n_embd, config.vocab_size, dtype)
        self._tie()
        self.requires_grad_(False)
        self._rotations: dict[torch.device, torch.Tensor] = {}

    def _tie(self) -> None:
        if self.config.tie_word_embeddings:
            self.head.weight = self.embedding.weight

    @property
    def head_size(self) -> int:
        """Values per attention head."""
        return self.config.n_embd // self.config.n_head

    def _layers(self) -> Iterator[GPTJLayer]:
        """The layers under their own type, which a ModuleList forgets."""
        return cast("Iterator[GPTJLayer]", iter(self.layers))

    def allocate(self, placement: Placement) -> None:
        """Give a network that was laid out without memory its memory, and choose how it attends.

        Weights stay unfilled; rotary tables are made for every device, and the fused bias is zero,
        as q, k and v have none in GPT-J.

        Raises:
            ValueError: ``placement`` names more or fewer layers than there are, or parts the head
                from the embedding though they share a weight.
        """
        self.placement = placement
        self.embedding.to_empty(device=placement.embedding)
        for layer, device in zip(self._layers(), placement.layers, strict=True):
            layer.to_empty(device=device)
            layer.project_in.bias.data.zero_()
        self.norm.to_empty(device=placement.head)
        if self.config.tie_word_embeddings and placement.embedding != placement.head:
            raise ValueError("a head that shares the embedding's weight lies where that lies")
        self.head.to_empty(device=placement.head)
        self._tie()
        self.weight_bytes = sum(parameter.nbytes for parameter in self.parameters())
        for device in placement.devices:
            self._rotations[device] = rotary_table(
                self.config.n_positions, self.config.rotary_dim, device
            )
        self.attentions = {
            device: select_attention(device, self.head_size, self.dtype)
            for device in placement.devices
        }

    def checkpoint_views(self) -> dict[str, torch.Tensor]:
        """Every stored tensor's name and the place where its values belong, until :meth:`pack`."""
        views = {
            "transformer.wte.weight": self.embedding.weight.data,
            "transformer.ln_f.weight": self.norm.weight.data,
            "transformer.ln_f.bias": self.norm.bias.data,
            "lm_head.bias": self.head.bias.data,
        }
        if not self.config.tie_word_embeddings:
            views["lm_head.weight"] = self.head.weight.data
        for index, layer in enumerate(self._layers()):
            views |= layer.checkpoint_views(f"transformer.h.{index}")
        return views

    def pack(self) -> None:
        """Repack the weights that lie on a CPU, one at a time, once all of them are filled."""
        for module in self.modules():
            if isinstance(module, Projection):
                module.pack()

    @torch.inference_mode()
    def forward(
        self, step: StepInputs, cache: PagedKVCache, rows: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Run one step.

        Args:
            step: T new tokens, on any device.
            cache: Where their keys and values go and where earlier ones lie.
            rows: ``[N]`` int64, which of the T tokens to give logits for; all of them if ``None``.

        Returns:
            Logits ``[N, vocabulary]`` in fp32, as transformers' ``generate`` processes them, on the
            head's device.
        """
        hidden = self.embedding(step.token_ids.to(self.placement.embedding))
        here = None
        for index, layer in enumerate(self._layers()):
            if here != self.placement.layers[index]:
                here = self.placement.layers[index]
                hidden, step = hidden.to(here), step.to(here)
                rotations = self._rotations[here][step.positions]
            hidden = layer(hidden, rotations, cache.layer(index), step, self.attentions[here])
        hidden = hidden.to(self.placement.head)
        if rows is not None:
            hidden = hidden[rows.to(hidden.device)]
        if not hidden.shape[0]:
            return hidden.new_empty(0, self.config.vocab_size, dtype=torch.float32)
        return self.head(self.norm(hidden)).float()

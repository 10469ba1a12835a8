"""GPT-J's forward pass.

Attention and MLP of a GPT-J layer read the same layer norm and add to the same residual (Wang and
Komatsuzaki, GPT-J-6B, 2021), so a layer is two matrix products: one on the way in that makes
queries, keys, values and the MLP's hidden values, one on the way out that sums attention and MLP.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

import torch
from torch import nn
from torch.nn import functional
from transformers import GPTJConfig
from transformers.activations import ACT2FN

from gptj_predictor.model.attention import paged_attention, rotary_table, rotate
from gptj_predictor.model.kv_cache import PagedKVCache, StepInputs


class GPTJLayer(nn.Module):
    """One layer, its six projections fused into two.

    With hidden size H and MLP size I:

    * ``weight_in`` ``[3 H + I, H]``, ``bias_in``: rows for q, k, v and fc_in, in this order.
    * ``weight_out`` ``[H, H + I]``, ``bias_out``: columns for out_proj and fc_out.
    """

    def __init__(self, config: GPTJConfig, dtype: torch.dtype) -> None:
        super().__init__()
        hidden = config.n_embd
        inner = config.n_inner if config.n_inner is not None else 4 * hidden
        self.hidden, self.inner, self.heads = hidden, inner, config.n_head
        self.activation_name = config.activation_function
        self.norm = nn.LayerNorm(hidden, eps=config.layer_norm_epsilon, dtype=dtype)
        self.weight_in = _parameter(3 * hidden + inner, hidden, dtype=dtype)
        self.bias_in = _parameter(3 * hidden + inner, dtype=dtype)
        self.weight_out = _parameter(hidden, hidden + inner, dtype=dtype)
        self.bias_out = _parameter(hidden, dtype=dtype)

    def forward(
        self,
        residual: torch.Tensor,
        rotations: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        step: StepInputs,
    ) -> torch.Tensor:
        """``[T, H]`` in and out; writes the T new keys and values into the cache on the way."""
        hidden = self.hidden
        projected = functional.linear(self.norm(residual), self.weight_in, self.bias_in)
        split = projected[:, : 3 * hidden].unflatten(1, (3, self.heads, -1))
        query, key, value = split.unbind(1)
        rotate(query, rotations)
        rotate(key, rotations)
        keys.flatten(0, 1)[step.cache_slots] = key
        values.flatten(0, 1)[step.cache_slots] = value
        # The values are in the cache now: their columns take the attention's output, so that it
        # lies beside the MLP's hidden values, as the second product wants it.
        mixed = projected[:, 2 * hidden :]
        mixed[:, :hidden] = paged_attention(query, keys, values, step).flatten(1)
        self._activate(mixed[:, hidden:])
        return torch.addmm(residual + self.bias_out, mixed, self.weight_out.t())

    def _activate(self, x: torch.Tensor) -> None:
        if self.activation_name == "gelu_new":  # GPT-J's own: the tanh approximation of GELU
            torch.ops.aten.gelu_(x, approximate="tanh")
        else:
            x.copy_(ACT2FN[self.activation_name](x))

    def checkpoint_views(self, prefix: str) -> dict[str, torch.Tensor]:
        """The parts of the fused weights under the names that a checkpoint gives them."""
        hidden = self.hidden
        rows = self.weight_in.data.split([hidden, hidden, hidden, self.inner])
        columns = self.weight_out.data.split([hidden, self.inner], dim=1)
        return {
            f"{prefix}.ln_1.weight": self.norm.weight.data,
            f"{prefix}.ln_1.bias": self.norm.bias.data,
            f"{prefix}.attn.q_proj.weight": rows[0],
            f"{prefix}.attn.k_proj.weight": rows[1],
            f"{prefix}.attn.v_proj.weight": rows[2],
            f"{prefix}.mlp.fc_in.weight": rows[3],
            f"{prefix}.mlp.fc_in.bias": self.bias_in.data[3 * hidden :],
            f"{prefix}.attn.out_proj.weight": columns[0],
            f"{prefix}.mlp.fc_out.weight": columns[1],
            f"{prefix}.mlp.fc_out.bias": self.bias_out.data,
        }


class GPTJNetwork(nn.Module):
    """Embedding, layers, final norm and head; nothing in it knows of requests."""

    def __init__(self, config: GPTJConfig, dtype: torch.dtype) -> None:
        super().__init__()
        self.config = config
        self.dtype = dtype
        self.embedding = _parameter(config.vocab_size, config.n_embd, dtype=dtype)
        self.layers = nn.ModuleList(GPTJLayer(config, dtype) for _ in range(config.n_layer))
        self.norm = nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon, dtype=dtype)
        self.tied = bool(config.tie_word_embeddings)
        if not self.tied:
            self.head_weight = _parameter(config.vocab_size, config.n_embd, dtype=dtype)
        self.head_bias = _parameter(config.vocab_size, dtype=dtype)
        self.rotations: torch.Tensor | None = None

    @property
    def head_size(self) -> int:
        """Values per attention head."""
        return self.config.n_embd // self.config.n_head

    @property
    def weight_bytes(self) -> int:
        """Bytes of all weights."""
        return sum(parameter.nbytes for parameter in self.parameters())

    def _layers(self) -> Iterator[GPTJLayer]:
        """The layers under their own type, which a ModuleList forgets."""
        return cast("Iterator[GPTJLayer]", iter(self.layers))

    def allocate(self, device: torch.device) -> None:
        """Give a network that was laid out without memory its memory, unfilled but for constants.

        q, k and v have no bias in GPT-J, so their part of the fused bias is zero.
        """
        self.to_empty(device=device)
        for layer in self._layers():
            layer.bias_in.data.zero_()
        self.rotations = rotary_table(self.config.n_positions, self.config.rotary_dim, device)

    def checkpoint_views(self) -> dict[str, torch.Tensor]:
        """Every stored tensor's name and the place where its values belong."""
        views = {
            "transformer.wte.weight": self.embedding.data,
            "transformer.ln_f.weight": self.norm.weight.data,
            "transformer.ln_f.bias": self.norm.bias.data,
            "lm_head.bias": self.head_bias.data,
        }
        if not self.tied:
            views["lm_head.weight"] = self.head_weight.data
        for index, layer in enumerate(self._layers()):
            views |= layer.checkpoint_views(f"transformer.h.{index}")
        return views

    @torch.inference_mode()
    def forward(
        self, step: StepInputs, cache: PagedKVCache, rows: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Run one step.

        Args:
            step: T new tokens of S sequences.
            cache: Where their keys and values go and where earlier ones lie.
            rows: ``[N]`` int64, which of the T tokens to give logits for; all of them if ``None``.

        Returns:
            Logits ``[N, vocabulary]`` in fp32, as transformers' ``generate`` processes them.
        """
        assert self.rotations is not None, "allocate() comes first"
        rotations = self.rotations[step.positions]
        hidden = functional.embedding(step.token_ids, self.embedding)
        for index, layer in enumerate(self._layers()):
            hidden = layer(hidden, rotations, *cache.layer(index), step)
        if rows is not None:
            hidden = hidden[rows]
        head = self.embedding if self.tied else self.head_weight
        return functional.linear(self.norm(hidden), head, self.head_bias).float()


def _parameter(*shape: int, dtype: torch.dtype) -> nn.Parameter:
    return nn.Parameter(torch.empty(*shape, dtype=dtype), requires_grad=False)

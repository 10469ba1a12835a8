"""What shape the network has."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class NetworkConfig:
    """The values of a ``config.json`` that decide what the network computes.

    Names and defaults are those of transformers' ``GPTJConfig``, which takes a second to import.
    ``n_inner`` is the MLP's hidden size, ``None`` for four times ``n_embd``; ``eos_token_ids`` are
    the tokens that end a text, ``eos_token_id`` there.
    """

    vocab_size: int = 50400
    n_positions: int = 2048
    n_embd: int = 4096
    n_layer: int = 28
    n_head: int = 16
    rotary_dim: int = 64
    n_inner: int | None = None
    activation_function: str = "gelu_new"
    layer_norm_epsilon: float = 1e-5
    tie_word_embeddings: bool = False
    eos_token_ids: tuple[int, ...] = (50256,)

    @property
    def inner_size(self) -> int:
        """The MLP's hidden size: four times the model's, unless ``n_inner`` says another."""
        return self.n_inner if self.n_inner is not None else 4 * self.n_embd

"""Random GPT-J checkpoints and transformers' own answers about them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import GPTJConfig, GPTJForCausalLM

from gptj_predictor.sampling.params import SamplingParams

EOS = 0


@dataclass(frozen=True)
class ReferenceModel:
    """A snapshot folder and the model that transformers makes of it (eager attention)."""

    folder: Path
    model: GPTJForCausalLM

    @property
    def vocabulary(self) -> int:
        return int(self.model.config.vocab_size)

    def to(self, dtype: torch.dtype) -> GPTJForCausalLM:
        """The model, converted in place."""
        torch.nn.Module.to(self.model, dtype)
        return self.model

    def logits(self, token_ids: list[int]) -> torch.Tensor:
        """``[T, vocabulary]``."""
        with torch.no_grad():
            return self.model(torch.tensor([token_ids])).logits[0]

    def greedy(self, prompt_ids: list[int], params: SamplingParams) -> list[int]:
        """The new tokens of ``generate``."""
        output = self.model.generate(  # type: ignore[misc]
            torch.tensor([prompt_ids]),
            attention_mask=torch.ones(1, len(prompt_ids), dtype=torch.int64),
            do_sample=False,
            min_length=params.min_length,
            max_length=params.max_length,
            repetition_penalty=params.repetition_penalty,
            pad_token_id=EOS,
        )
        tokens: list[int] = output[0, len(prompt_ids) :].tolist()
        return tokens


def make_reference(folder: Path, *, seed: int, **shape: Any) -> ReferenceModel:
    """Make a random fp32 checkpoint whose next tokens are varied but not close calls."""
    settings: dict[str, Any] = {
        "n_positions": 128,
        "bos_token_id": EOS,
        "eos_token_id": EOS,
        "attn_implementation": "eager",
    }
    model = GPTJForCausalLM(GPTJConfig(**(settings | shape))).eval()
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.data.normal_(std=0.3, generator=generator)
    # Wide enough that argmax differs by more than rounding, and now and then chooses the end.
    model.lm_head.weight.data.mul_(2)
    model.lm_head.bias.data[EOS] += 6
    model.save_pretrained(folder)
    return ReferenceModel(folder, model)

"""Random GPT-J checkpoints and transformers' own answers about them."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import GPTJConfig, GPTJForCausalLM
from transformers.generation.logits_process import LogitsProcessor, LogitsProcessorList

from gptj_predictor.sampling.params import SamplingParams

EOS = 0


class OutputPenalty(LogitsProcessor):
    """OpenAI's presence and frequency penalty, as their documentation writes it."""

    def __init__(self, num_prompt_tokens: int, params: SamplingParams) -> None:
        self._start, self._params = num_prompt_tokens, params

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        scores = scores.clone()
        for row, tokens in enumerate(input_ids[:, self._start :].tolist()):
            for token_id, count in Counter(tokens).items():
                scores[row, token_id] -= (
                    count * self._params.frequency_penalty
                    + float(count > 0) * self._params.presence_penalty
                )
        return scores


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

    def logprobs(self, token_ids: list[int]) -> torch.Tensor:
        """``[T - 1, vocabulary]``, the log-probabilities of the tokens after the first."""
        return self.logits(token_ids)[:-1].log_softmax(-1)

    def greedy(self, prompt_ids: list[int], params: SamplingParams) -> list[int]:
        """The new tokens of ``generate``."""
        return self._generate(prompt_ids, params, do_sample=False)

    def only_choice(self, prompt_ids: list[int], params: SamplingParams) -> list[int]:
        """The new tokens of ``generate`` where sampling has a single token to choose from."""
        return self._generate(
            prompt_ids,
            params,
            do_sample=True,
            temperature=params.temperature,
            top_k=params.top_k,
            top_p=params.top_p,
            min_p=params.min_p,
            typical_p=params.typical_p,
        )

    def _generate(self, prompt_ids: list[int], params: SamplingParams, **more: Any) -> list[int]:
        ends = list(params.stop_token_ids) if params.ignore_eos else [EOS, *params.stop_token_ids]
        if params.logit_bias:
            more["sequence_bias"] = {(token_id,): bias for token_id, bias in params.logit_bias}
        output = self.model.generate(  # type: ignore[misc]
            torch.tensor([prompt_ids]),
            attention_mask=torch.ones(1, len(prompt_ids), dtype=torch.int64),
            min_length=params.min_length,
            max_length=params.max_length,
            repetition_penalty=params.repetition_penalty,
            eos_token_id=ends or [self.vocabulary],  # none that exists
            pad_token_id=EOS,
            logits_processor=LogitsProcessorList([OutputPenalty(len(prompt_ids), params)]),
            **more,
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

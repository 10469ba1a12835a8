"""transformers' ``generate``."""

from __future__ import annotations

import time
from typing import Any, cast

import torch
from transformers import GPTJConfig, StoppingCriteria, StoppingCriteriaList

from peers.peer import Peer
from peers.timing import Prompts, Timing
from peers.weights import CPU, make_model


class Generate(Peer):
    """transformers, as its users call it."""

    def __init__(self, model: Any, step_bytes: int) -> None:
        super().__init__("generate", step_bytes)
        self.model = model

    def run(self, prompts: Prompts, new: int) -> Timing:
        """See :meth:`Peer.run`."""
        clock = Clock()
        started = time.perf_counter()
        ids = torch.tensor(prompts, device=self.model.device)
        output = self.model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            min_new_tokens=new,
            max_new_tokens=new,
            do_sample=False,
            pad_token_id=self.model.config.eos_token_id,
            stopping_criteria=StoppingCriteriaList([clock]),
        )
        return Timing.of(output[0, ids.shape[1] :].tolist(), started, clock.times)

    @torch.inference_mode()
    def next_logits(self, ids: list[int]) -> torch.Tensor:
        """See :meth:`Peer.next_logits`."""
        output = self.model(torch.tensor([ids], device=self.model.device))
        logits: torch.Tensor = output.logits[0, -1].float()
        return logits


class Clock(StoppingCriteria):
    """Stops nothing and notes when each token came."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def __call__(
        self, input_ids: torch.LongTensor, scores: torch.FloatTensor, **_: Any
    ) -> torch.BoolTensor:
        """Note the time at the end of a step."""
        if input_ids.device.type == "cuda":
            torch.cuda.synchronize()  # generate does it next in any case
        self.times.append(time.perf_counter())
        return cast("torch.BoolTensor", input_ids.new_zeros(len(input_ids), dtype=torch.bool))


def make_generate(config: GPTJConfig, dtype: str, step_bytes: int, threads: int) -> Peer:
    """``generate`` on a CPU with the weights that everyone has."""
    torch.set_num_threads(threads)
    return Generate(make_model(config, getattr(torch, dtype), CPU), step_bytes)

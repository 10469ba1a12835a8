"""transformers' own text for the demo, to compare a server's with."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, GPTJForCausalLM

from gptj_predictor.demo import DEMO_SNAPSHOT


class Exact:
    """The demo in fp32: its text can be compared with the reference's token for token."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.tokenizer = AutoTokenizer.from_pretrained(DEMO_SNAPSHOT)
        self.model = GPTJForCausalLM.from_pretrained(
            DEMO_SNAPSHOT, dtype=torch.float32, attn_implementation="eager"
        )
        self.model.save_pretrained(folder)
        for file in DEMO_SNAPSHOT.glob("tokenizer*"):
            shutil.copy(file, folder)

    def ids(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer(text)["input_ids"]
        return ids

    def logprobs(self, token_ids: list[int]) -> torch.Tensor:
        """``[T - 1, vocabulary]``, the log-probabilities of the tokens after the first."""
        with torch.no_grad():
            return self.model(torch.tensor([token_ids])).logits[0, :-1].log_softmax(-1)

    def generate(self, prompt: str, **parameters: Any) -> str:
        """The text after the prompt."""
        inputs = self.tokenizer(prompt, return_tensors="pt")
        output = self.model.generate(  # type: ignore[misc]
            **inputs, do_sample=False, pad_token_id=self.tokenizer.eos_token_id, **parameters
        )
        new = output[0, inputs["input_ids"].shape[1] :]
        return str(self.tokenizer.decode(new, skip_special_tokens=True))

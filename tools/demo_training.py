"""Tokenizer, batches and training loop for the demo snapshot.

The model is `transformers.GPTJForCausalLM` itself. For the time of the training its attention and
its activation are computed by fused kernels, which give the same results several times faster on
a processor; the weights and their names stay exactly those of transformers.
"""

from __future__ import annotations

import itertools
import math
import time
import types
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn
from transformers import GPTJConfig, GPTJForCausalLM

from demo_text import documents

END_OF_TEXT = "<|endoftext|>"
VOCABULARY = 2048
CONTEXT = 2048

TOKENS_PER_STEP = 4096
SHORT_ROW = 512
# From this share of the training on, rows are as long as the context, so that the rotary angles
# of every position have been seen.
LONG_ROWS_FROM = 0.7
WARM_UP = 0.02
# The learning rate falls to zero over the rest of the training.
COOL_DOWN_FROM = 0.5
MATRIX_RATE = 0.02
VECTOR_RATE = 3e-3


def train_tokenizer(seed: int, count: int = 12_000) -> Tokenizer:
    """Learn a byte-level BPE from documents like those of the training."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[END_OF_TEXT],
        # With all 256 bytes in the vocabulary, every text can be encoded.
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(itertools.islice(documents(seed), count), trainer)
    return tokenizer


def rows(tokenizer: Tokenizer, texts: Iterator[str], length: int) -> Iterator[list[int]]:
    """Pack documents into rows of exactly `length` tokens.

    Each row starts where a document starts, as the prompts of the demo do; what does not fit is
    dropped, since there is no end of new text.
    """
    (end,) = tokenizer.encode(END_OF_TEXT).ids
    row: list[int] = []
    while True:
        for encoding in tokenizer.encode_batch(list(itertools.islice(texts, 64))):
            row += [*encoding.ids, end]
            if len(row) >= length:
                yield row[:length]
                row = []


def new_model(seed: int) -> GPTJForCausalLM:
    """A GPT-J in everything but its size."""
    torch.manual_seed(seed)
    config = GPTJConfig(
        vocab_size=VOCABULARY,
        n_positions=CONTEXT,
        n_embd=192,
        n_layer=4,
        n_head=3,
        rotary_dim=32,
        activation_function="gelu_new",
        tie_word_embeddings=False,
        bos_token_id=0,
        eos_token_id=0,
    )
    return GPTJForCausalLM(config)


def _fused_attention(
    self: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None = None
) -> tuple[Tensor, None]:
    """What GPTJAttention._attn computes for a row without padding."""
    attended = nn.functional.scaled_dot_product_attention(
        query.to(value.dtype), key.to(value.dtype), value, is_causal=True
    )
    return attended, None


def use_fused_kernels(model: GPTJForCausalLM) -> None:
    """Compute the same functions faster, for rows without padding."""
    block: Any
    for block in model.transformer.h:
        block.attn._attn = types.MethodType(_fused_attention, block.attn)
        block.mlp.act = nn.GELU(approximate="tanh")


def learning_rate_factor(progress: float) -> float:
    """Warm up, hold, then cool down linearly to zero."""
    cool_down = (1 - progress) / (1 - COOL_DOWN_FROM)
    return max(0.0, min(1.0, (progress + 1e-3) / WARM_UP, cool_down))


class Optimizer:
    """Muon for the matrices inside the blocks, AdamW for everything else."""

    def __init__(self, model: GPTJForCausalLM) -> None:
        matrices = [p for p in model.transformer.h.parameters() if p.ndim == 2]
        inside = {id(p) for p in matrices}
        others = [p for p in model.parameters() if id(p) not in inside]
        self.parts: list[torch.optim.Optimizer] = [
            torch.optim.Muon(matrices, lr=MATRIX_RATE, weight_decay=0.01),
            torch.optim.AdamW(others, lr=VECTOR_RATE, betas=(0.9, 0.95), weight_decay=0.0),
        ]
        self._rates = (MATRIX_RATE, VECTOR_RATE)

    def step(self, factor: float) -> None:
        """Apply the gradients at this share of the full learning rates."""
        for part, rate in zip(self.parts, self._rates, strict=True):
            for group in part.param_groups:
                group["lr"] = rate * factor
            part.step()
            part.zero_grad(set_to_none=True)


@dataclass
class Limits:
    """The training ends after `steps` or `minutes`, whichever comes first.

    The schedule follows whichever is further along, so that a slow machine still gets its
    cool-down. A run that the steps end, not the clock, gives the same weights every time.
    """

    steps: int
    minutes: float

    def progress(self, step: int, seconds: float) -> float:
        """How much of the training is over, from 0 to 1."""
        return max(step / self.steps, seconds / (60 * self.minutes))


@dataclass
class Summary:
    """What a training run took."""

    steps: int
    tokens: int
    seconds: float
    loss: float


def _gradients(model: GPTJForCausalLM, batch: Tensor) -> tuple[float, Sequence[Tensor]]:
    """The loss of a batch and its gradients, without touching the model."""
    with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
        logits = model(input_ids=batch, use_cache=False).logits
    loss = nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1).float(), batch[:, 1:].flatten())
    return loss.item(), torch.autograd.grad(loss, list(model.parameters()))


class Cores:
    """Shares every batch out among single-threaded workers.

    In a model this small the cores would otherwise wait for each other after every operation,
    and a busy machine would make each of these waits long. Here they meet once in a step. The
    gradients are added in the order of the batch, so the result does not depend on the timing.
    """

    def __init__(self, count: int) -> None:
        torch.set_num_threads(1)
        self._count = count
        self._pool = ThreadPoolExecutor(count, initializer=torch.set_num_threads, initargs=(1,))

    def backward(self, model: GPTJForCausalLM, batch: Tensor) -> float:
        """Set the gradients of the model to those of the whole batch, and return its loss."""
        shares = batch.chunk(self._count)
        results = list(self._pool.map(partial(_gradients, model), shares))
        for index, parameter in enumerate(model.parameters()):
            parts = torch.stack([gradients[index] for _, gradients in results])
            parameter.grad = parts.mean(dim=0)
        return sum(loss for loss, _ in results) / len(shares)


def _save(path: Path, model: GPTJForCausalLM, optimizer: Optimizer, **numbers: float) -> None:
    states = [part.state_dict() for part in optimizer.parts]
    unfinished = path.with_suffix(".partial")
    torch.save({"model": model.state_dict(), "optimizer": states, **numbers}, unfinished)
    unfinished.replace(path)


def train(
    model: GPTJForCausalLM,
    tokenizer: Tokenizer,
    seed: int,
    limits: Limits,
    checkpoint: Path,
    cores: Cores,
    resume: bool = False,
) -> Summary:
    """Train in place, leaving a checkpoint behind every minute."""
    use_fused_kernels(model)
    model.train()
    optimizer = Optimizer(model)
    texts = documents(seed)
    step, seconds, smooth = 0, 0.0, math.nan
    skip = 0
    if resume and checkpoint.exists():
        state = torch.load(checkpoint)
        model.load_state_dict(state["model"])
        for part, part_state in zip(optimizer.parts, state["optimizer"], strict=True):
            part.load_state_dict(part_state)
        skip, seconds, smooth = int(state["step"]), state["seconds"], state["loss"]
    length, packed = SHORT_ROW, rows(tokenizer, texts, SHORT_ROW)
    started = saved = time.monotonic() - seconds
    while (progress := limits.progress(step, seconds)) < 1:
        if length == SHORT_ROW and progress >= LONG_ROWS_FROM:
            length, packed = CONTEXT, rows(tokenizer, texts, CONTEXT)
        batch = torch.tensor(list(itertools.islice(packed, TOKENS_PER_STEP // length)))
        step += 1
        if step <= skip:
            continue
        loss = cores.backward(model, batch)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step(learning_rate_factor(progress))
        seconds = time.monotonic() - started
        smooth = loss if math.isnan(smooth) else 0.98 * smooth + 0.02 * loss
        if step % 50 == 0:
            rate = step * TOKENS_PER_STEP / seconds
            print(f"step {step} {progress:.1%} loss {smooth:.3f} {rate:.0f} tokens/s", flush=True)
        if time.monotonic() - saved > 60:
            _save(checkpoint, model, optimizer, step=step, seconds=seconds, loss=smooth)
            saved = time.monotonic()
    return Summary(step, step * TOKENS_PER_STEP, seconds, smooth)

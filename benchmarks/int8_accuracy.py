"""What do int8 weights cost in accuracy?

    .venv/bin/python benchmarks/int8_accuracy.py
    .venv/bin/python benchmarks/int8_accuracy.py --layers 2 --hidden 256 --heads 2 --prompts 100

The oracle is transformers in fp32. Ours is measured in bf16, and with int8 weights in bf16;
CTranslate2's int8 beside them if it is installed. All have the same weights, which are values of
bf16.

* Logits of a random model, 609 M parameters unless told otherwise, without outlier features and
  with six that are 20 to 60 times as large as the others, at several places; and of the bundled
  demo on documents that its training never saw. "error" is the root mean square of the difference,
  relative to the logits' own spread, "x bf16" the same relative to ours in bf16, "top 1" how often
  the likeliest token is transformers'.
* Greedy texts of the demo: how many of ``--prompts`` are as in fp32, all 20 tokens. A hundred are
  not enough to tell two schemes apart: their number varies by three from set to set.
* The demo's answers to few-shot questions: which share is right.

Needs 8 GB of memory with 609 M parameters.
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import GPTJConfig

# The tests' measures: tests/ is not installed, and lies beside this folder.
sys.path.append(str(Path(__file__).parents[1]))
from tests.support.accuracy import (
    OUTLIER_KINDS,
    Logits,
    demo_model,
    demo_prompts,
    demo_texts,
    deviation,
    exact_logits,
    greedy,
    network_of,
    our_logits,
    random_model,
    random_texts,
    sentiment_score,
    sql_score,
)

from peers import ctranslate

NEW_TOKENS = 20


def candidates(model: Any) -> Iterator[tuple[str, Logits]]:
    """Whom to measure on a model, ours in bf16 first; one at a time is in memory."""
    yield "ours", our_logits(network_of(model, torch.bfloat16))
    yield "ours int8", our_logits(network_of(model, torch.bfloat16, "int8"))
    if importlib.util.find_spec("ctranslate2"):
        kind = "int8"
        # The conversion changes its model.
        generator = ctranslate.convert(copy.deepcopy(model), kind, torch.get_num_threads())
        name = f"{ctranslate.name_of(kind)} ({generator.compute_type})"
        yield name, lambda tokens: ctranslate.logits_of(generator, tokens)


def compare_logits(title: str, model: Any, texts: Sequence[list[int]]) -> None:
    """Print a line for each candidate."""
    print(f"\n{title}: {sum(map(len, texts)):,} tokens", flush=True)
    exact = exact_logits(model)
    base = None
    for who, logits in candidates(model):
        found = deviation(logits, exact, texts)
        base = base or found.error
        print(
            f"  {who:33} error {found.error:.4f}, {found.error / base:5.2f} x bf16,"
            f" top 1 {found.top_1:.1%}",
            flush=True,
        )


def compare_texts(prompts: int, questions: int) -> None:
    """Print the demo's greedy texts and answers."""
    model = demo_model()
    networks = {
        "ours": network_of(model, torch.bfloat16),
        "ours int8": network_of(model, torch.bfloat16, "int8"),
    }
    asked = demo_prompts(prompts)
    exact = network_of(model, torch.float32)  # the tests hold it to transformers, token for token
    right = greedy(exact, asked, NEW_TOKENS)
    print(f"\nthe demo's texts and answers: {prompts} prompts, {questions} questions of each kind")
    for who, network in networks.items():
        texts = greedy(network, asked, NEW_TOKENS)
        equal = sum(text == other for text, other in zip(texts, right, strict=True))
        print(
            f"  {who:9} {equal} texts as in fp32 ({equal / prompts:.1%}),"
            f" sentiment {sentiment_score(network, questions):.1%},"
            f" SQL {sql_score(network, questions):.1%}",
            flush=True,
        )


@torch.inference_mode()
def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--hidden", type=int, default=2048)
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--vocabulary", type=int, default=50400)
    parser.add_argument("--outliers", nargs="*", default=list(OUTLIER_KINDS), choices=OUTLIER_KINDS)
    parser.add_argument("--prompts", type=int, default=600, help="of the demo")
    parser.add_argument("--questions", type=int, default=400, help="of each kind, of the demo")
    arguments = parser.parse_args()
    shape = {"n_layer": arguments.layers, "n_embd": arguments.hidden, "n_head": arguments.heads}
    config = GPTJConfig(**shape, vocab_size=arguments.vocabulary)
    for kind in arguments.outliers:
        model = random_model(config)
        OUTLIER_KINDS[kind](model)
        texts = random_texts(arguments.vocabulary, 4, 64)
        compare_logits(f"random model, outliers: {kind}", model, texts)
        del model
    compare_logits("demo", demo_model(), demo_texts(40, 256))
    compare_texts(arguments.prompts, arguments.questions)


if __name__ == "__main__":
    main()

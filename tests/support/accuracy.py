"""How far a network's logits and texts are from those that transformers computes in fp32."""

from __future__ import annotations

import dataclasses
import itertools
import random
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from transformers import GPTJConfig, GPTJForCausalLM

from gptj_predictor.demo import DEMO_SNAPSHOT
from gptj_predictor.engine.page_allocator import PageTable
from gptj_predictor.model.kv_cache import PagedKVCache
from gptj_predictor.model.network import GPTJNetwork, Placement
from gptj_predictor.model.prefill_plan import PrefillChunk
from gptj_predictor.model.quantization import WeightQuantization
from gptj_predictor.model.step_inputs import StepInputs
from gptj_predictor.snapshot.builder import NetworkBuilder
from gptj_predictor.snapshot.config import parse_config
from tests.support.engines import CPU, GREEDY, RunningEngine

# What wrote the demo's training text: tools/ is no package.
sys.path.append(str(Path(__file__).parents[2] / "tools"))
from demo_evaluation import LONGEST_ANSWER, SEED, draw
from demo_text import documents, query_question, sentiment_question

#: Of the synthetic outliers: how many features, and how many times as large as the others.
OUTLIERS, LEAST_OUTLIER, GREATEST_OUTLIER = 6, 20.0, 60.0
PAGE_SIZE = 16

Logits = Callable[[list[int]], torch.Tensor]


def random_model(config: GPTJConfig, seed: int = 0) -> Any:
    """A model with the weights that transformers starts training from, in values of bfloat16."""
    torch.manual_seed(seed)  # transformers draws from the global generator
    config._attn_implementation = "eager"
    model: Any = GPTJForCausalLM(config)
    return _rounded(model.eval().requires_grad_(False))


def demo_model() -> Any:
    """The demo in fp32."""
    model: Any = GPTJForCausalLM.from_pretrained(
        DEMO_SNAPSHOT, dtype=torch.float32, attn_implementation="eager"
    )
    return model.eval().requires_grad_(False)


def _rounded(model: Any) -> Any:
    for parameter in model.parameters():
        parameter.copy_(parameter.bfloat16())
    return model


def no_outliers(model: Any) -> None:
    """Leave a model as it is."""


def outliers_in_gains(model: Any) -> None:
    """A few features are large behind every layer norm."""
    features, sizes = _outliers(model.config.n_embd)
    for norm in (*(layer.ln_1 for layer in model.transformer.h), model.transformer.ln_f):
        norm.weight[features] = sizes
    _rounded(model)


def outliers_in_embedding(model: Any) -> None:
    """A few features are large in the residual, of another size and sign in each token."""
    features, sizes = _outliers(model.config.n_embd)
    model.transformer.wte.weight[:, features] *= sizes
    _rounded(model)


def outliers_in_residual(model: Any) -> None:
    """A few features are large in the residual behind the first layer, alike in each token."""
    features, sizes = _outliers(model.config.n_embd)
    signs = 1 - 2 * (torch.arange(OUTLIERS) % 2)
    spread = model.transformer.wte.weight.std() * model.config.n_embd**0.5
    model.transformer.h[0].mlp.fc_out.bias[features] = sizes * signs * spread
    _rounded(model)


def outliers_in_mlp(model: Any) -> None:
    """A few hidden values of every MLP are large."""
    features, sizes = _outliers(4 * model.config.n_embd)
    for layer in model.transformer.h:
        layer.mlp.fc_in.weight[features] *= sizes[:, None]
    _rounded(model)


#: By what the table calls them. Dettmers et al., LLM.int8(), 2022, section 4: from 6.7 billion
#: parameters on, up to six features of all layers are 20 to 60 times as large as the others.
OUTLIER_KINDS: dict[str, Callable[[Any], None]] = {
    "none": no_outliers,
    "layer norms' gains": outliers_in_gains,
    "embedding": outliers_in_embedding,
    "residual": outliers_in_residual,
    "MLP": outliers_in_mlp,
}


def _outliers(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    features = torch.randperm(count, generator=generator)[:OUTLIERS]
    spread = torch.rand(OUTLIERS, generator=generator)
    return features, LEAST_OUTLIER + (GREATEST_OUTLIER - LEAST_OUTLIER) * spread


def network_of(
    model: Any, dtype: torch.dtype, quantization: WeightQuantization = "none"
) -> GPTJNetwork:
    """Our network with a model's weights."""
    config = parse_config(model.config.to_dict())
    builder = NetworkBuilder(config, dtype, Placement.on(CPU, config.n_layer), quantization)
    weights = model.state_dict()
    for name in builder.layout.places:
        builder.fill(name, weights[name])
    return builder.finish()


def exact_logits(model: Any) -> Logits:
    """Those of transformers."""
    return lambda tokens: model(torch.tensor([tokens])).logits[0]


def our_logits(network: GPTJNetwork) -> Logits:
    """Those of a network, which gets all tokens in one step."""

    def logits(tokens: list[int]) -> torch.Tensor:
        count = len(tokens)
        pages = -(-count // PAGE_SIZE)
        table = PageTable(PAGE_SIZE, pages)
        for page in range(1, pages + 1):
            table.append(page)
        cache = PagedKVCache(
            devices=[CPU] * network.config.n_layer,
            pages=pages + 1,
            page_size=PAGE_SIZE,
            heads=network.config.n_head,
            head_size=network.head_size,
            dtype=network.dtype,
        )
        step = StepInputs(
            token_ids=torch.tensor(tokens),
            positions=torch.arange(count),
            slot_mapping=torch.arange(PAGE_SIZE, PAGE_SIZE + count),
            page_tables=torch.empty(0, pages, dtype=torch.int32),
            context_lengths=torch.empty(0, dtype=torch.int32),
            contexts=[],
            chunks=[PrefillChunk(count, table.extents(0))],
        )
        return network.logits(network.hidden_states(step, cache))

    return logits


@dataclasses.dataclass
class Deviation:
    """How far logits are from the exact ones.

    Attributes:
        error: Root mean square of the difference, relative to the exact logits' standard deviation
            over the vocabulary.
        top_1: Share of tokens after which the likeliest token is the same.
    """

    error: float
    top_1: float


def deviation(logits: Logits, exact: Logits, texts: Sequence[list[int]]) -> Deviation:
    """Compare the logits after every token of some texts."""
    ours = torch.cat([logits(text) for text in texts]).double()
    right = torch.cat([exact(text) for text in texts]).double()
    error = (ours - right).square().mean().sqrt() / right.var(1, correction=0).mean().sqrt()
    agrees = ours.argmax(1) == right.argmax(1)
    return Deviation(float(error), float(agrees.double().mean()))


def random_texts(vocabulary: int, count: int, tokens: int) -> list[list[int]]:
    """Texts of random tokens, always the same."""
    generator = torch.Generator().manual_seed(2)
    return torch.randint(vocabulary, (count, tokens), generator=generator).tolist()


def demo_tokenizer() -> Tokenizer:
    """The demo's."""
    return Tokenizer.from_file(str(DEMO_SNAPSHOT / "tokenizer.json"))


def demo_texts(count: int, most_tokens: int) -> list[list[int]]:
    """Documents like those that the demo was trained on, of combinations that were kept out."""
    tokenizer = demo_tokenizer()
    texts = itertools.islice(documents(SEED, held=True), count)
    return [tokenizer.encode(text).ids[:most_tokens] for text in texts]


def demo_prompts(count: int) -> list[list[int]]:
    """The beginnings of such documents, 8 to 48 tokens."""
    rng = random.Random(7)
    return [text[: min(rng.randint(8, 48), len(text) - 1)] for text in demo_texts(count, 2048)]


def greedy(network: GPTJNetwork, prompts: Sequence[list[int]], new: int) -> list[list[int]]:
    """The engine's continuations, ``new`` tokens each."""
    with RunningEngine(network, page_size=PAGE_SIZE, kv_cache_bytes=2**29) as engine:
        submitted = []
        for prompt in prompts:
            length = len(prompt) + new
            params = dataclasses.replace(
                GREEDY, min_length=length, max_length=length, ignore_eos=True
            )
            submitted.append(engine.submit(prompt, params))
        return [one.result(timeout=600)[0] for one in submitted]


def sentiment_score(network: GPTJNetwork, count: int) -> float:
    """The share of few-shot questions that are followed by exactly the right label."""
    questions = draw(sentiment_question, count, "sentiment")
    tokenizer = demo_tokenizer()
    labels = [tokenizer.encode(f" {label}").ids for _, label in questions]
    prompts = [tokenizer.encode(prompt).ids for prompt, _ in questions]
    answers = greedy(network, prompts, max(map(len, labels)))
    right = [answer[: len(label)] == label for answer, label in zip(answers, labels, strict=True)]
    return sum(right) / count


def sql_score(network: GPTJNetwork, count: int) -> float:
    """The share of few-shot questions that are followed by exactly the right query."""
    questions = draw(query_question, count, "sql")
    tokenizer = demo_tokenizer()
    prompts = [tokenizer.encode(prompt).ids for prompt, _ in questions]
    right = 0
    for ids, (_, query) in zip(greedy(network, prompts, LONGEST_ANSWER), questions, strict=True):
        text, semicolon, _ = tokenizer.decode(ids).partition(";")
        right += f"{text}{semicolon}".strip() == query
    return right / count

"""What a snapshot can do, measured on text that its training never contained."""

from __future__ import annotations

import itertools
import math
import random
import re
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers import AutoTokenizer, GPTJForCausalLM

from demo_text import PROMPTS, documents, query_question, sentiment_question
from demo_training import END_OF_TEXT

# Evaluation draws from its own seed; the held-out combinations do not depend on any seed.
SEED = 20_000_003
LONG_CONTEXT = 1500
LONGEST_ANSWER = 60

_ITEM = re.compile(r"(?:Message|Review|Tweet|Text|Question): (.*?)(?=\s*(?:Sentiment|Answer):|$)")


@dataclass
class Accuracy:
    """Answers that were right, out of the questions asked."""

    right: int
    asked: int

    def __str__(self) -> str:
        return f"{self.right / self.asked:.1%} ({self.right} of {self.asked})"


@dataclass
class Report:
    """All measurements of one snapshot."""

    sentiment_short: Accuracy
    sentiment_long: Accuracy
    sql_short: Accuracy
    sql_long: Accuracy
    perplexity: float
    perplexity_by_position: dict[str, float]
    perplexity_by_kind: dict[str, float]
    prompt_tokens: dict[str, int]
    asked: int
    dropped: int


class Snapshot:
    """A snapshot as read back from disk: bfloat16 weights, computed in float32."""

    def __init__(self, folder: Path) -> None:
        self.hub_tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        loaded: Any = GPTJForCausalLM.from_pretrained(
            folder, local_files_only=True, dtype=torch.float32, output_loading_info=True
        )
        model, loading = loaded
        faults = {name: keys for name, keys in loading.items() if keys}
        if faults:
            raise ValueError(f"{folder} does not load cleanly: {faults}")
        self.model: GPTJForCausalLM = model.eval()
        (self.end,) = self.ids(END_OF_TEXT)

    def ids(self, text: str) -> list[int]:
        """The tokens of a text."""
        return self.tokenizer.encode(text).ids

    @torch.inference_mode()
    def greedy(self, ids: list[int], count: int, stop: str) -> str:
        """The most likely continuation, up to the first token that contains `stop`."""
        written: list[int] = []
        cache, given = None, ids
        while len(written) < count:
            out = self.model(torch.tensor([given]), past_key_values=cache, logits_to_keep=1)
            cache = out.past_key_values
            given = [int(out.logits[0, -1].argmax())]
            written += given
            if stop in self.tokenizer.decode(given):
                break
        return self.tokenizer.decode(written)

    @torch.inference_mode()
    def losses(self, ids: list[int]) -> Tensor:
        """The loss of each token but the first."""
        logits = self.model(torch.tensor([ids]), use_cache=False).logits[0, :-1]
        return nn.functional.cross_entropy(logits, torch.tensor(ids[1:]), reduction="none")


def _filler(snapshot: Snapshot, rng: random.Random, room: int) -> list[int]:
    """Other documents, to push a prompt beyond LONG_CONTEXT tokens while leaving `room`."""
    wanted = rng.randint(LONG_CONTEXT, snapshot.model.config.n_positions - room)
    ids: list[int] = []
    for text in documents(rng.randrange(1 << 30)):
        ids += [*snapshot.ids(text), snapshot.end]
        if len(ids) >= wanted:
            return [*ids[-wanted:-1], snapshot.end]
    raise AssertionError("documents never end")


def draw(
    ask: Callable[[random.Random, int], tuple[str, str]], count: int, name: str
) -> list[tuple[str, str]]:
    """Few-shot prompts with one to six examples, and the right answers."""
    rng = random.Random(f"{SEED}-{name}")
    return [ask(rng, rng.randint(1, 6)) for _ in range(count)]


def accuracy(
    snapshot: Snapshot,
    questions: list[tuple[str, str]],
    answered: Callable[[Snapshot, list[int], str], bool],
    long: bool = False,
) -> Accuracy:
    """How often the model answers, with `long` for questions far into the context."""
    rng = random.Random(SEED)
    right = 0
    for prompt, answer in questions:
        ids = snapshot.ids(prompt)
        if long:
            ids = _filler(snapshot, rng, len(ids) + LONGEST_ANSWER) + ids
        right += answered(snapshot, ids, answer)
    return Accuracy(right, len(questions))


def names_label(snapshot: Snapshot, ids: list[int], label: str) -> bool:
    """Whether the prompt is followed by exactly this label."""
    wanted = snapshot.ids(f" {label}")
    return snapshot.greedy(ids, len(wanted), stop="\0") == f" {label}"


def writes_query(snapshot: Snapshot, ids: list[int], query: str) -> bool:
    """Whether the prompt is followed by exactly this query."""
    return snapshot.greedy(ids, LONGEST_ANSWER, stop=";").strip() == query


def perplexity_by_position(snapshot: Snapshot, count: int) -> tuple[float, dict[str, float]]:
    """Perplexity of rows packed with held-out documents, in all and by position in the row."""
    context = snapshot.model.config.n_positions
    texts = documents(SEED, held=True)
    total = torch.zeros(context - 1)
    for _ in range(count):
        ids: list[int] = []
        while len(ids) < context:
            ids += [*snapshot.ids(next(texts)), snapshot.end]
        total += snapshot.losses(ids[:context])
    mean = total / count
    edges = [0, 256, 512, 1024, 1536, context - 1]
    named = {f"{a}-{b}": math.exp(mean[a:b].mean()) for a, b in itertools.pairwise(edges)}
    return math.exp(mean.mean()), named


def _kind(text: str) -> str:
    if text.startswith("Question: "):
        return "sql"
    return "sentiment" if "Sentiment:" in text else "stories and reflections"


def perplexity_by_kind(snapshot: Snapshot, count: int) -> dict[str, float]:
    """Perplexity of single held-out documents, by what kind of document they are."""
    losses: dict[str, list[Tensor]] = {}
    for text in itertools.islice(documents(SEED + 1, held=True), count):
        ids = snapshot.ids(text)[: snapshot.model.config.n_positions]
        losses.setdefault(_kind(text), []).append(snapshot.losses(ids))
    return {kind: math.exp(torch.cat(parts).mean()) for kind, parts in sorted(losses.items())}


def items(text: str) -> list[str]:
    """The messages or questions in a document, without the punctuation that ends them."""
    return [item.rstrip(" .,;?!") for item in _ITEM.findall(text.replace("\n", " "))]


def seen_in_training(asked: Iterable[str], seed: int, training_documents: int) -> set[str]:
    """Those of the messages and questions that the training text contains word for word.

    Two templates can lead to the same sentence, so holding back one of them is no proof. The
    training text is the same for the same seed, so it is simply written once more.
    """
    wanted, seen = set(asked), set[str]()
    for text in itertools.islice(documents(seed), training_documents):
        if "Sentiment:" in text or "Question:" in text:
            seen |= wanted.intersection(items(text))
    return seen


def evaluate(folder: Path, seed: int, training_documents: int, count: int) -> Report:
    """Measure everything; `count` is the number of questions of each kind."""
    snapshot = Snapshot(folder)
    few = max(count // 2, 1)
    exams = {
        "sentiment": draw(sentiment_question, count, "sentiment"),
        "sentiment far": draw(sentiment_question, few, "sentiment far"),
        "sql": draw(query_question, count, "sql"),
        "sql far": draw(query_question, few, "sql far"),
    }
    asked = [items(prompt)[-1] for exam in exams.values() for prompt, _ in exam]
    seen = seen_in_training(asked, seed, training_documents)
    new = {
        name: [(prompt, answer) for prompt, answer in exam if items(prompt)[-1] not in seen]
        for name, exam in exams.items()
    }
    total, by_position = perplexity_by_position(snapshot, max(count // 10, 1))
    return Report(
        sentiment_short=accuracy(snapshot, new["sentiment"], names_label),
        sentiment_long=accuracy(snapshot, new["sentiment far"], names_label, long=True),
        sql_short=accuracy(snapshot, new["sql"], writes_query),
        sql_long=accuracy(snapshot, new["sql far"], writes_query, long=True),
        perplexity=total,
        perplexity_by_position=by_position,
        perplexity_by_kind=perplexity_by_kind(snapshot, count),
        prompt_tokens={prompt: len(snapshot.ids(prompt)) for prompt in PROMPTS},
        asked=len(asked),
        dropped=sum(item in seen for item in asked),
    )


def lines(report: Report) -> list[str]:
    """The report as a Markdown list."""
    fields = asdict(report)
    position = ", ".join(f"{k}: {v:.2f}" for k, v in fields["perplexity_by_position"].items())
    kind = ", ".join(f"{k}: {v:.2f}" for k, v in fields["perplexity_by_kind"].items())
    return [
        f"- sentiment, three classes, short prompts: {report.sentiment_short}",
        f"- sentiment behind {LONG_CONTEXT} or more tokens of other text: {report.sentiment_long}",
        f"- SQL, exact match, short prompts: {report.sql_short}",
        f"- SQL behind {LONG_CONTEXT} or more tokens of other text: {report.sql_long}",
        f"- perplexity per token of held-out text in rows of 2,048: {report.perplexity:.2f}",
        f"- the same by position in the row: {position}",
        f"- perplexity of single held-out documents: {kind}",
        f"- questions drawn: {report.asked}, of which dropped and not counted above, because the"
        f" training text contains them word for word: {report.dropped}",
    ]

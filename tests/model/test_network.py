"""Our forward pass against transformers' GPT-J."""

from __future__ import annotations

import pytest
import torch

from gptj_predictor.engine.page_allocator import PageTable
from gptj_predictor.model.kv_cache import PagedKVCache
from gptj_predictor.model.network import GPTJNetwork
from gptj_predictor.model.prefill_plan import PrefillChunk
from gptj_predictor.model.step_inputs import StepInputs
from tests.support.engines import CPU, load
from tests.support.reference import ReferenceModel

PAGE_SIZE = 4


class Steps:
    """Feeds sequences to a network chunk by chunk, with pages scattered over the cache."""

    def __init__(
        self, network: GPTJNetwork, sequences: list[list[int]], *, shuffled: bool = True
    ) -> None:
        self.network = network
        self.sequences = sequences
        self.done = [0] * len(sequences)
        per_sequence = -(-network.config.n_positions // PAGE_SIZE)
        count = 1 + per_sequence * len(sequences)
        self.cache = PagedKVCache(
            devices=[CPU] * network.config.n_layer,
            pages=count,
            page_size=PAGE_SIZE,
            heads=network.config.n_head,
            head_size=network.head_size,
            dtype=network.dtype,
        )
        order = list(range(1, count))
        if shuffled:
            order = (torch.randperm(count - 1, generator=seeded(count)) + 1).tolist()
        self.tables = [PageTable(PAGE_SIZE, per_sequence) for _ in sequences]
        for index, page in enumerate(order):
            self.tables[index // per_sequence].append(page)
        # What would show if a tail were read.
        for layer in range(network.config.n_layer):
            for half in self.cache.layer(layer):
                half.fill_(torch.nan)

    def run(self, chunks: dict[int, int]) -> dict[int, torch.Tensor]:
        """Feed ``chunks[i]`` further tokens of sequence i; logits of all of them."""
        order = sorted(chunks, key=lambda index: chunks[index] > 1)
        places = {i: range(self.done[i], self.done[i] + chunks[i]) for i in order}
        decoding = [i for i in order if chunks[i] == 1]
        step = StepInputs(
            token_ids=torch.tensor([self.sequences[i][p] for i in order for p in places[i]]),
            positions=torch.tensor([p for i in order for p in places[i]]),
            slot_mapping=torch.tensor(
                [
                    self.tables[i].pages[p // PAGE_SIZE] * PAGE_SIZE + p % PAGE_SIZE
                    for i in order
                    for p in places[i]
                ]
            ),
            page_tables=torch.tensor([self.tables[i].pages for i in decoding], dtype=torch.int32),
            context_lengths=torch.tensor([self.done[i] + 1 for i in decoding], dtype=torch.int32),
            contexts=[self.tables[i].extents(self.done[i] + 1) for i in decoding],
            chunks=[
                PrefillChunk(chunks[i], self.tables[i].extents(self.done[i]))
                for i in order
                if chunks[i] > 1
            ],
        )
        hidden = self.network.hidden_states(step, self.cache)
        logits = self.network.logits(hidden).split([chunks[i] for i in order])
        for i in order:
            self.done[i] += chunks[i]
        return dict(zip(order, logits, strict=True))


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_tokens(reference: ReferenceModel, count: int) -> list[int]:
    """Other tokens for another count."""
    shape = (count,)
    return torch.randint(0, reference.vocabulary, shape, generator=seeded(count)).tolist()


def test_whole_prompt(reference: ReferenceModel) -> None:
    tokens = random_tokens(reference, 101)
    logits = Steps(load(reference.folder), [tokens]).run({0: len(tokens)})[0]
    torch.testing.assert_close(logits, reference.logits(tokens), atol=1e-4, rtol=0)


@pytest.mark.parametrize("shuffled", [True, False])
def test_token_by_token_and_in_chunks_beside_others(
    reference: ReferenceModel, shuffled: bool
) -> None:
    """Every split of sequences into steps gives the same logits, wherever the pages lie."""
    lengths = (50, 23, 64, 1)
    sequences = [random_tokens(reference, length) for length in lengths]
    steps = Steps(load(reference.folder), sequences, shuffled=shuffled)
    parts: list[list[torch.Tensor]] = [[] for _ in sequences]
    generator = torch.Generator().manual_seed(1)
    while any(steps.done[i] < lengths[i] for i in range(len(lengths))):
        chunks = {}
        for i, length in enumerate(lengths):
            left = length - steps.done[i]
            wanted = int(torch.randint(0, 6, (1,), generator=generator))
            if min(left, wanted):
                chunks[i] = min(left, wanted)
        for i, logits in steps.run(chunks).items() if chunks else ():
            parts[i].append(logits)
    for tokens, part in zip(sequences, parts, strict=True):
        torch.testing.assert_close(torch.cat(part), reference.logits(tokens), atol=1e-4, rtol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_no_worse_than_the_reference_in_it(
    reference: ReferenceModel, dtype: torch.dtype
) -> None:
    tokens = random_tokens(reference, 64)
    exact = reference.logits(tokens)
    network = load(reference.folder, dtype)
    ours = Steps(network, [tokens]).run({0: len(tokens)})[0]
    reference.to(dtype)
    theirs = reference.logits(tokens).float()
    our_error = (ours - exact).square().mean().sqrt()
    their_error = (theirs - exact).square().mean().sqrt()
    assert our_error < 1.25 * their_error

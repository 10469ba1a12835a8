"""Our forward pass against transformers' GPT-J."""

from __future__ import annotations

import pytest
import torch

from gptj_predictor.model.kv_cache import NULL_PAGE, PagedKVCache, StepInputs
from gptj_predictor.model.network import GPTJNetwork
from gptj_predictor.snapshot.folder import SnapshotFolder
from gptj_predictor.snapshot.load import load_network
from tests.support.engines import CPU
from tests.support.reference import ReferenceModel

PAGE_SIZE = 4


class Steps:
    """Feeds sequences to a network chunk by chunk, with pages scattered over the cache."""

    def __init__(self, network: GPTJNetwork, sequences: list[list[int]]) -> None:
        self.network = network
        self.sequences = sequences
        self.done = [0] * len(sequences)
        per_sequence = -(-network.config.n_positions // PAGE_SIZE)
        count = 1 + per_sequence * len(sequences)
        self.cache = PagedKVCache(
            layers=network.config.n_layer,
            pages=count,
            page_size=PAGE_SIZE,
            heads=network.config.n_head,
            head_size=network.head_size,
            dtype=network.dtype,
            device=CPU,
        )
        order = (torch.randperm(count - 1) + 1).tolist()
        self.pages = [
            order[i * per_sequence : (i + 1) * per_sequence] for i in range(len(sequences))
        ]
        # What a masked tail would read if clearing did not happen.
        self.cache.data[:, :, order] = torch.nan
        self.cache.clear(order)

    def run(self, chunks: dict[int, int]) -> dict[int, torch.Tensor]:
        """Feed ``chunks[i]`` further tokens of sequence i; logits of all of them."""
        order = sorted(chunks, key=lambda index: chunks[index] > 1)
        places = {i: range(self.done[i], self.done[i] + chunks[i]) for i in order}
        step = StepInputs(
            token_ids=torch.tensor([self.sequences[i][p] for i in order for p in places[i]]),
            positions=torch.tensor([p for i in order for p in places[i]]),
            cache_slots=torch.tensor(
                [
                    self.pages[i][p // PAGE_SIZE] * PAGE_SIZE + p % PAGE_SIZE
                    for i in order
                    for p in places[i]
                ]
            ),
            query_lengths=[chunks[i] for i in order],
            context_lengths=[places[i].stop for i in order],
            block_tables=torch.tensor([self.pages[i] for i in order]),
        )
        logits = self.network(step, self.cache).split([chunks[i] for i in order])
        for i in order:
            self.done[i] += chunks[i]
        return dict(zip(order, logits, strict=True))


def load(reference: ReferenceModel) -> GPTJNetwork:
    return load_network(SnapshotFolder.open(reference.folder), torch.float32, CPU)


def random_tokens(reference: ReferenceModel, count: int) -> list[int]:
    return torch.randint(0, reference.vocabulary, (count,)).tolist()


def test_whole_prompt(reference: ReferenceModel) -> None:
    tokens = random_tokens(reference, 101)
    logits = Steps(load(reference), [tokens]).run({0: len(tokens)})[0]
    torch.testing.assert_close(logits, reference.logits(tokens), atol=1e-4, rtol=0)


def test_token_by_token_and_in_chunks_beside_others(reference: ReferenceModel) -> None:
    """Every split of sequences into steps gives the same logits."""
    lengths = (50, 23, 64, 1)
    sequences = [random_tokens(reference, length) for length in lengths]
    steps = Steps(load(reference), sequences)
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
    network = load_network(SnapshotFolder.open(reference.folder), dtype, CPU)
    ours = Steps(network, [tokens]).run({0: len(tokens)})[0]
    reference.to(dtype)
    theirs = reference.logits(tokens).float()
    our_error = (ours - exact).square().mean().sqrt()
    their_error = (theirs - exact).square().mean().sqrt()
    assert our_error < 1.25 * their_error


def test_page_bytes() -> None:
    """GPT-J-6B at 16 bit caches 448 KiB per token."""
    shape = {"layers": 28, "page_size": 16, "heads": 16, "head_size": 256}
    assert PagedKVCache.bytes_per_page(**shape, dtype=torch.float16) == 16 * 448 * 1024
    cache = PagedKVCache(**(shape | {"layers": 2}), pages=3, dtype=torch.float16, device=CPU)
    assert cache.data.nbytes == 3 * 2 * 16 * 32 * 1024 / 2
    assert not cache.data[:, :, NULL_PAGE].any()

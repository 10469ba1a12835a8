"""Steps for nobody, that show what the largest one takes and make everything ready.

Their sequences lie in the null page, over and over: all of a step's work is done, and no page of
the KV cache is needed.
"""

from __future__ import annotations

from itertools import count

from gptj_predictor.engine.page_allocator import PageTable
from gptj_predictor.engine.prefill_share import min_chunk_tokens
from gptj_predictor.engine.runner import ModelRunner
from gptj_predictor.engine.sequence import ScheduledChunk, Sequence
from gptj_predictor.model.kv_cache import NULL_PAGE
from gptj_predictor.sampling.params import SamplingParams

#: A prompt of usual length.
WARM_UP_TOKENS = 128

#: No parameter less, and none that would bound the candidates: what takes most memory.
_COSTLY = SamplingParams(
    min_length=2,
    max_length=2**31,
    temperature=1.0,
    top_k=0,
    top_p=0.9,
    repetition_penalty=1.1,
    seed=0,
    min_p=0.01,
    typical_p=0.9,
    presence_penalty=0.1,
    frequency_penalty=0.1,
    logprobs=1,
    prompt_logprobs=1,
)
_GREEDY = SamplingParams(
    min_length=0,
    max_length=2**31,
    temperature=0.0,
    top_k=0,
    top_p=1.0,
    repetition_penalty=1.0,
    seed=0,
)
#: Each marks other tokens than the last one's, which are then uploaded.
_epochs = count(1)


def largest_step(
    *, max_batch_size: int, max_prefill_tokens: int, page_size: int, max_context: int
) -> list[ScheduledChunk]:
    """The chunks of a step that takes as much memory as any.

    The batch is full and every sequence as long as can be. As many as possible of them prefill,
    behind a context, and the others decode; all ask for whatever costs memory.

    Args:
        max_batch_size: Sequences that run together.
        max_prefill_tokens: Prompt tokens of a step.
        page_size: Tokens per page.
        max_context: Tokens of the longest sequence.
    """
    longest = max_context - 1  # and one more token comes
    prompts = min(max_batch_size, -(-max_prefill_tokens // min_chunk_tokens(max_prefill_tokens)))
    chunks = [
        _chunk(index, longest, 1, _COSTLY, page_size, max_context)
        for index in range(max_batch_size - prompts)
    ]
    left = max_prefill_tokens
    for number in range(prompts):
        tokens = min(longest, left // (prompts - number))
        left -= tokens
        index = max_batch_size - prompts + number
        if tokens > 1:
            chunks.append(_chunk(index, longest, tokens, _COSTLY, page_size, max_context))
    return chunks


def prompt_step(num_tokens: int, page_size: int, max_context: int) -> list[ScheduledChunk]:
    """One prompt of so many tokens, or as many as the context has, and its greedy next token."""
    num_tokens = min(num_tokens, max_context - 1)
    return [_chunk(0, num_tokens, num_tokens, _GREEDY, page_size, max_context)]


def warm_up(
    runner: ModelRunner, *, max_prefill_tokens: int, page_size: int, max_context: int
) -> None:
    """Run a prompt of usual length, and the largest chunk, in the calling thread.

    Raises:
        RuntimeError: the device could not compute one.
    """
    for num_tokens in dict.fromkeys((WARM_UP_TOKENS, max_prefill_tokens)):
        runner.launch(prompt_step(num_tokens, page_size, max_context)).wait()


def _chunk(
    index: int, length: int, tokens: int, params: SamplingParams, page_size: int, context: int
) -> ScheduledChunk:
    """The last ``tokens`` of a sequence of ``length``."""
    table = PageTable(page_size, -(-context // page_size))
    for _ in range(-(-length // page_size)):
        table.append(NULL_PAGE)
    return ScheduledChunk(
        sequence=Sequence([0] * length, params, number=-1),
        batch_index=index,
        page_table=table,
        start=length - tokens,
        num_tokens=tokens,
        samples=True,
        epoch=next(_epochs),
    )

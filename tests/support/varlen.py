"""A stand-in for torch's variable-length attention kernels, which exist for GPUs alone."""

from __future__ import annotations

import torch
from torch.nn import functional


class PlainKernel:
    """A ``VarlenKernel`` in plain torch that refuses what torch's kernels refuse.

    The checks are those of ``mha_varlen_fwd`` in torch's ``flash_api.cpp`` and of
    ``_efficient_attention_forward`` in its ``attention.cu``, and that the lengths fit the tensors,
    which a GPU would not notice.

    Attributes:
        calls: Queries and keys of every call.
    """

    def __init__(self) -> None:
        self.calls: list[tuple[int, int]] = []

    def __call__(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        cum_seq_q: torch.Tensor,
        cum_seq_k: torch.Tensor,
        max_q: int,
        max_k: int,
    ) -> torch.Tensor:
        self._check(query, key, value, cum_seq_q, cum_seq_k)
        assert isinstance(max_q, int)
        assert isinstance(max_k, int)
        assert max_q == int(cum_seq_q.diff().max())
        assert max_k == int(cum_seq_k.diff().max())
        self.calls.append((len(query), len(key)))
        out = torch.empty_like(query)
        ends = zip(cum_seq_q.tolist(), cum_seq_k.tolist(), strict=True)
        q_start, k_start = next(ends)
        for q_end, k_end in ends:
            q, k, v = (
                part.transpose(0, 1)[None]
                for part in (query[q_start:q_end], key[k_start:k_end], value[k_start:k_end])
            )
            seen = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool)
            mask = seen.tril(k.shape[2] - q.shape[2])  # aligned to the bottom right
            mixed = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
            out[q_start:q_end] = mixed[0].transpose(0, 1)
            q_start, k_start = q_end, k_end
        return out

    def _check(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        cum_seq_q: torch.Tensor,
        cum_seq_k: torch.Tensor,
    ) -> None:
        heads, head_size = query.shape[1:]
        assert head_size % 8 == 0
        assert head_size <= 256
        assert key.shape == value.shape == (len(key), heads, head_size)
        assert query.dtype is key.dtype is value.dtype
        assert query.stride(-1) == key.stride(-1) == value.stride(-1) == 1
        for cumulated, rows in ((cum_seq_q, query), (cum_seq_k, key)):
            assert cumulated.dtype is torch.int32
            assert cumulated.dim() == 1
            assert cumulated.is_contiguous()
            assert cumulated[0] == 0
            assert cumulated[-1] == len(rows)
            assert cumulated.diff().min() > 0
        assert len(cum_seq_q) == len(cum_seq_k) > 1
        assert (cum_seq_k.diff() >= cum_seq_q.diff()).all()

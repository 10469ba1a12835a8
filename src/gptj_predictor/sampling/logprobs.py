"""Log-probabilities: of given tokens, and of the likeliest beside them."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Logprobs:
    """Of one token per row, and of the row's K likeliest tokens.

    Attributes:
        ids: ``[R, 1 + K]`` int64: the given token, then the likeliest, the likeliest first.
        values: ``[R, 1 + K]`` fp32, their natural logarithms of probability.
    """

    ids: torch.Tensor
    values: torch.Tensor

    @classmethod
    def of(cls, logits: torch.Tensor, token_ids: torch.Tensor, count: int) -> Logprobs:
        """From logits ``[R, vocabulary]`` in fp32 and R tokens; beside each up to ``count``."""
        likeliest = logits.topk(min(count, logits.shape[1]), dim=-1)
        given = token_ids[:, None]
        values = torch.cat([logits.gather(1, given), likeliest.values], dim=1)
        values -= logits.logsumexp(dim=-1, keepdim=True)
        return cls(torch.cat([given, likeliest.indices], dim=1), values)

    @classmethod
    def concatenate(cls, parts: list[Logprobs]) -> Logprobs:
        """All rows of parts that have the same K."""
        return cls(torch.cat([p.ids for p in parts]), torch.cat([p.values for p in parts]))

    def to_host(self) -> Logprobs:
        """The same on the host, once the device has come so far; it is not waited for."""
        return Logprobs(
            self.ids.to("cpu", non_blocking=True), self.values.to("cpu", non_blocking=True)
        )

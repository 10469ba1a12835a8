"""Before anything is timed: are the tokens right, and how far is 16 bit from fp32?"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch

from gptj_predictor.engine.core import EngineCore
from gptj_predictor.engine.sequence import Sequence
from gptj_predictor.model.network import GPTJNetwork
from gptj_predictor.sampling.params import SamplingParams
from one_card.engines import engine_config, free_all, make_core, pages_for
from one_card.plan import Plan
from one_card.record import Record
from one_card.weights import RandomWeights, int8_network
from peers.ours import Sampling, greedy
from peers.timing import Prompts

#: Two fp32 logits that are no further apart may change places with the order of a sum.
TIE = 1e-4
#: Our largest error in 16 bit may be so many times that of transformers in the same dtype.
ALLOWED_ERROR = 2.0


def sampled(length: int, place: int) -> SamplingParams:
    """Top-k and top-p, with a seed by the place."""
    return replace(greedy(length, place), temperature=1.0, top_k=50, top_p=0.9)


def _sampled_as(place: int) -> Sampling:
    return lambda length, _: sampled(length, place)


@dataclass
class Text:
    """What one sequence got: its tokens, theirs and its prompt's log-probabilities."""

    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    prompt_logprobs: list[float] = field(default_factory=list)


def generate(
    core: EngineCore, prompts: Prompts, new: int, sampling: Sampling, *, score: bool = False
) -> list[Text]:
    """Step until all have ended.

    Raises:
        RuntimeError: one did not get its tokens.
    """
    texts: dict[Sequence, Text] = {}
    for place, prompt in enumerate(prompts):
        params = sampling(len(prompt) + new, place)
        if score:
            params = replace(params, logprobs=0, prompt_logprobs=0)
        sequence = Sequence(list(prompt), params)
        texts[sequence] = Text()
        core.add(sequence)
    while core.has_work:
        for sequence, event in core.step():
            text = texts[sequence]
            if event.token_id is not None:
                text.tokens.append(event.token_id)
            if event.logprobs is not None:
                text.logprobs.append(event.logprobs.logprob)
            if event.prompt_logprobs is not None:
                text.prompt_logprobs = [one.logprob for one in event.prompt_logprobs]
            if event.finish_reason is not None and len(text.tokens) != new:
                raise RuntimeError(f"{len(text.tokens)} of {new} tokens: {event}")
    return list(texts.values())


@dataclass
class Comparison:
    """The small network, as it is compared.

    Attributes:
        record: Where it is said.
        plan: Of sizes.
        device: Where it lies.
        prompts: Random tokens.
    """

    record: Record
    plan: Plan
    device: torch.device
    prompts: Prompts

    @classmethod
    def of(cls, record: Record, plan: Plan, device: torch.device) -> Comparison:
        """With random prompts."""
        generator = torch.Generator().manual_seed(1)
        vocabulary = plan.small.vocab_size
        prompts = [
            torch.randint(vocabulary, (length,), generator=generator).tolist()
            for length in plan.compared[0]
        ]
        return cls(record, plan, device, prompts)

    @property
    def new(self) -> int:
        """Tokens that every sequence gets."""
        return self.plan.compared[1]

    def core(self, network: GPTJNetwork) -> EngineCore:
        """An engine for all prompts at once."""
        longest = max(map(len, self.prompts)) + self.new
        return make_core(
            network,
            engine_config(
                batch=len(self.prompts),
                pages=pages_for(len(self.prompts), longest),
                # So that some prompts take more than one step.
                prefill_tokens=max(64, len(self.prompts[-1]) // 2),
                caching=False,
            ),
        )

    def compare_fp32(self) -> None:
        """The same tokens as transformers' ``generate``, and sampled ones alone and in a crowd."""
        weights = RandomWeights(self.plan.small, torch.float32, self.device)
        model = weights.transformers_model()
        core = self.core(weights.network)
        ours = generate(core, self.prompts, self.new, greedy)
        different = []
        for prompt, text in zip(self.prompts, ours, strict=True):
            ids = torch.tensor([prompt], device=self.device)
            output = model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                min_new_tokens=self.new,
                max_new_tokens=self.new,
                do_sample=False,
                pad_token_id=model.config.eos_token_id,
            )
            theirs = output[0, len(prompt) :].tolist()
            if trouble := _difference(model, prompt, text.tokens, theirs):
                different.append(trouble)
        if different:
            self.record.fail(f"fp32: tokens are not generate's: {'; '.join(different)}")
        else:
            count = len(self.prompts) * self.new
            self.record.note(f"fp32: {count} greedy tokens are transformers' generate's")
        crowd = generate(core, self.prompts, self.new, sampled)
        for place, prompt in enumerate(self.prompts):
            [alone] = generate(core, [prompt], self.new, _sampled_as(place))
            if alone.tokens != crowd[place].tokens:
                self.record.fail(f"fp32: sampled tokens of prompt {place} depend on its neighbors")
                return
        self.record.note("fp32: sampled tokens are the same alone and in a crowd")

    def compare_16_bit(self, dtype: torch.dtype) -> None:
        """Errors of log-probabilities against fp32, of ours and of transformers' in the dtype."""
        weights = RandomWeights(self.plan.small, dtype, self.device)
        exact, rounded = (weights.transformers_model(d) for d in (torch.float32, dtype))
        name = str(dtype).removeprefix("torch.")
        self._compare_errors(name, weights.network, exact, rounded)

    def compare_int8(self, dtype: torch.dtype) -> None:
        """The same with int8 weights, beside models with the values that these stand for."""
        weights = RandomWeights(self.plan.small, dtype, self.device)
        exact, rounded = (weights.transformers_model(d, "int8") for d in (torch.float32, dtype))
        network = int8_network(self.plan.small, dtype, self.device)
        self._compare_errors("int8 weights", network, exact, rounded)

    def _compare_errors(self, name: str, network: GPTJNetwork, exact: Any, rounded: Any) -> None:
        """Compare a network and ``rounded``, transformers' in its dtype, with ``exact``."""
        texts = generate(self.core(network), self.prompts, self.new, greedy, score=True)
        errors: dict[str, list[float]] = {
            "ours, prompt": [],
            "ours, decode": [],
            "transformers": [],
        }
        for prompt, text in zip(self.prompts, texts, strict=True):
            ids = prompt + text.tokens
            truth, theirs = (_logprobs(model, ids, self.device) for model in (exact, rounded))
            ours = text.prompt_logprobs + text.logprobs
            gaps = [abs(a - b) for a, b in zip(ours, truth, strict=True)]
            errors["ours, prompt"] += gaps[: len(prompt) - 1]
            errors["ours, decode"] += gaps[len(prompt) - 1 :]
            errors["transformers"] += [abs(a - b) for a, b in zip(theirs, truth, strict=True)]
        worst = {who: max(values, default=0.0) for who, values in errors.items()}
        for who, value in worst.items():
            self.record.figure(f"{name}, largest error of a log-probability, {who}", value, "")
        allowed = ALLOWED_ERROR * worst["transformers"]
        for who in ("ours, prompt", "ours, decode"):
            if not worst[who] <= allowed:
                self.record.fail(f"{name}: {who}: an error of {worst[who]}, above {allowed}")


def compare(record: Record, plan: Plan, device: torch.device, dtype: torch.dtype) -> None:
    """Both, the second for the dtype of the measurements."""
    comparison = Comparison.of(record, plan, device)
    comparison.compare_fp32()
    free_all()
    comparison.compare_16_bit(dtype)
    free_all()


def compare_int8(record: Record, plan: Plan, device: torch.device, dtype: torch.dtype) -> None:
    """Int8 weights, with activations in the dtype of the measurements."""
    Comparison.of(record, plan, device).compare_int8(dtype)
    free_all()


def _difference(model: Any, prompt: list[int], ours: list[int], theirs: list[int]) -> str | None:
    """Where tokens part, unless it is at a tie; one clause."""
    for place, (own, other) in enumerate(zip(ours, theirs, strict=True)):
        if own == other:
            continue
        ids = torch.tensor([prompt + theirs[:place]], device=model.device)
        with torch.inference_mode():
            logits = model(ids).logits[0, -1].float()
        gap = abs(float(logits[own] - logits[other]))
        if gap <= TIE:
            return None
        return f"prompt of {len(prompt)}, token {place}: {own}, not {other}, logits {gap:.2g} apart"
    return None


@torch.inference_mode()
def _logprobs(model: Any, ids: list[int], device: torch.device) -> list[float]:
    """Of every token but the first, in one pass of the model."""
    tensor = torch.tensor(ids, device=device)
    scores = torch.log_softmax(model(tensor[None]).logits[0].float(), dim=-1)
    own: list[float] = scores[:-1].gather(1, tensor[1:, None])[:, 0].tolist()
    return own

"""What a layer is made of: its norm, its two products and its activation, with their weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from gptj_predictor.model.config import NetworkConfig
from gptj_predictor.model.layer_norm import LayerNorm
from gptj_predictor.model.linear import Projection
from gptj_predictor.model.projections import MakeProjection, make_projection

#: By name, each filled and on its device.
Weights = Mapping[str, torch.Tensor]

#: GPT-J's own activation: the tanh approximation of GELU.
GELU = "gelu_new"


@dataclass(frozen=True)
class GPTJLayer:
    """One layer, its six projections fused into two.

    With hidden size H and MLP size I:

    * ``project_in`` H to 3 H + I: rows for q, k, v and fc_in, in this order.
    * ``project_out`` H + I to H: columns for out_proj and fc_out.

    Attributes:
        heads: Attention heads.
        norm: Read by attention and MLP.
        project_in: On the way in.
        project_out: On the way out.
        activation: The MLP's, by transformers' name.
        activate: It, in place.
    """

    heads: int
    norm: LayerNorm
    project_in: Projection
    project_out: Projection
    activation: str
    activate: Callable[[torch.Tensor], object]

    @classmethod
    def of(
        cls,
        config: NetworkConfig,
        weights: Weights,
        name: str,
        make: MakeProjection = make_projection,
    ) -> GPTJLayer:
        """By its name among the weights; ``make`` makes its projections.

        Raises:
            KeyError: transformers does not know the activation.
        """
        return cls(
            config.n_head,
            norm_of(config, weights, f"{name}.norm"),
            _projection(make, weights, f"{name}.project_in"),
            _projection(make, weights, f"{name}.project_out", (config.n_embd, config.inner_size)),
            config.activation_function,
            _activation(config.activation_function),
        )

    @property
    def inner(self) -> int:
        """The MLP's size I."""
        return self.project_in.bias.shape[0] - 3 * self.hidden

    @property
    def hidden(self) -> int:
        """The hidden size H."""
        return self.norm.weight.shape[0]


def norm_of(config: NetworkConfig, weights: Weights, name: str) -> LayerNorm:
    """The layer norm of a name among the weights."""
    return LayerNorm(weights[f"{name}.weight"], weights[f"{name}.bias"], config.layer_norm_epsilon)


def _projection(
    make: MakeProjection, weights: Weights, name: str, parts: tuple[int, int] | None = None
) -> Projection:
    weight, bias = weights[f"{name}.weight"], weights[f"{name}.bias"]
    return make(weight, bias, weights.get(f"{name}.scale"), parts)


def _activation(name: str) -> Callable[[torch.Tensor], object]:
    """The MLP's activation, in place, by transformers' name.

    Raises:
        KeyError: transformers does not know the name.
    """
    if name == GELU:
        return lambda x: torch.ops.aten.gelu_.default(x, approximate="tanh")
    # It imports torch._dynamo, which takes as long as torch itself.
    from transformers.activations import ACT2FN

    compute = ACT2FN[name]
    return lambda x: x.copy_(compute(x))

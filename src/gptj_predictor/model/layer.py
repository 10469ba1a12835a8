"""What a layer is made of: its norm, its two products and its activation, with their weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from gptj_predictor.model.config import NetworkConfig
from gptj_predictor.model.layer_norm import LayerNorm
from gptj_predictor.model.linear import Projection
from gptj_predictor.model.projections import MakeProjection, make_projection
from gptj_predictor.model.row_quantization import GELU_ZERO_POINT, SIGNED, Inputs

#: By name, each filled and on its device.
Weights = Mapping[str, torch.Tensor]

#: GPT-J's own activation: the tanh approximation of GELU.
GELU = "gelu_new"

#: ``2 u`` is the first times x and the second times the cube of x.
_GELU_LINEAR = torch.tensor(2 * math.sqrt(2 / math.pi))
_GELU_CUBIC = 0.044715 * 2 * math.sqrt(2 / math.pi)


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
        activation = config.activation_function
        attended = Inputs(config.n_embd)
        activated = Inputs(config.inner_size, GELU_ZERO_POINT if activation == GELU else SIGNED)
        project_in = _projection(make, weights, f"{name}.project_in")
        return cls(
            config.n_head,
            norm_of(config, weights, f"{name}.norm", project_in),
            project_in,
            _projection(make, weights, f"{name}.project_out", [attended, activated]),
            activation,
            _activation(activation),
        )

    @property
    def inner(self) -> int:
        """The MLP's size I."""
        return self.project_in.bias.shape[0] - 3 * self.hidden

    @property
    def hidden(self) -> int:
        """The hidden size H."""
        return self.norm.weight.shape[0]


def norm_of(
    config: NetworkConfig, weights: Weights, name: str, projection: Projection
) -> LayerNorm:
    """The layer norm of a name among the weights, in the dtype of the projection behind it."""
    weight, bias = weights[f"{name}.weight"], weights[f"{name}.bias"]
    dtype = projection.bias.dtype
    return LayerNorm(weight.to(dtype), bias.to(dtype), config.layer_norm_epsilon)


def _projection(
    make: MakeProjection, weights: Weights, name: str, parts: list[Inputs] | None = None
) -> Projection:
    weight, bias = weights[f"{name}.weight"], weights[f"{name}.bias"]
    return make(weight, bias, weights.get(f"{name}.scale"), parts)


def gelu_tanh(x: torch.Tensor) -> torch.Tensor:
    """The tanh approximation of GELU in place (Hendrycks and Gimpel, GELUs, 2016).

    ``(1 + tanh u) / 2`` is ``sigmoid(2 u)``, which takes a CPU half of torch's own time, five
    passes included: its tanh alone takes more.
    """
    if x.device.type != "cpu":
        return torch.ops.aten.gelu_.default(x, approximate="tanh")
    exact = x.float()
    twice = exact * exact
    torch.add(_GELU_LINEAR, twice, alpha=_GELU_CUBIC, out=twice)
    twice.mul_(exact).sigmoid_()
    return x.mul_(twice) if exact is x else x.copy_(twice.mul_(exact))


def _activation(name: str) -> Callable[[torch.Tensor], object]:
    """The MLP's activation, in place, by transformers' name.

    Raises:
        KeyError: transformers does not know the name.
    """
    if name == GELU:
        return gelu_tanh
    # It imports torch._dynamo, which takes as long as torch itself.
    from transformers.activations import ACT2FN

    compute = ACT2FN[name]
    return lambda x: x.copy_(compute(x))

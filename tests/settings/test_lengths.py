"""The rule about minimum and maximum lengths, case by case."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from gptj_predictor.settings import (
    GenerationParameters,
    LengthError,
    Lengths,
    OrderError,
    TotalLengths,
)

CONTEXT = 2048

DEFAULTS = Lengths(min_length=1, max_length=1024)


def given(**lengths: Any) -> Lengths:
    """What a request says, over the built-in defaults."""
    return replace(DEFAULTS, **lengths, given=frozenset(lengths)).over(DEFAULTS)


@pytest.mark.parametrize(
    ("lengths", "text"),
    [
        (given(min_length=60, max_length=50), "60 is above max_length 50"),
        (given(min_length=1025), "1025 is above max_length 1024 (the server's default)"),
        (given(min_new_tokens=9, max_new_tokens=8), "9 is above max_new_tokens 8"),
        (given(min_new_tokens=1, max_new_tokens=1), None),
        (given(min_length=50, max_length=50), None),
        (given(min_length=1024), None),
        (given(min_length=0, max_length=1), None),
        (given(min_new_tokens=2000), None),  # whether the prompt leaves room is not known yet
        (given(max_new_tokens=1), None),
        (given(), None),
        (given(min_new_tokens=None, max_new_tokens=None), None),
    ],
)
def test_order(lengths: Lengths, text: str | None) -> None:
    if text is None:
        lengths.check_order()
        return
    with pytest.raises(OrderError) as caught:
        lengths.check_order()
    assert str(caught.value) == text
    error = caught.value
    assert error.parameter in lengths.given
    assert getattr(lengths, str(error.parameter)) == error.minimum
    assert getattr(lengths, error.maximum_name) == error.maximum < error.minimum


@pytest.mark.parametrize(
    ("lengths", "prompt_tokens", "minimum", "maximum"),
    [
        (given(), 10, 1, 1024),
        (given(max_length=30), 29, 1, 30),
        (given(min_length=20, max_length=30), 10, 20, 30),
        (given(max_new_tokens=5), 10, 1, 15),
        (given(max_new_tokens=5, max_length=11), 10, 1, 15),  # new tokens win
        (given(max_new_tokens=2038), 10, 1, 2048),  # and reach to the end of the context
        (given(min_new_tokens=5), 10, 15, 1024),
        (given(min_new_tokens=5, max_new_tokens=5), 10, 15, 15),
        (given(min_new_tokens=0, min_length=900), 10, 10, 1024),
    ],
)
def test_totals(lengths: Lengths, prompt_tokens: int, minimum: int, maximum: int) -> None:
    assert lengths.totals(prompt_tokens, CONTEXT, "x") == TotalLengths(minimum, maximum)


@pytest.mark.parametrize(
    ("lengths", "prompt_tokens", "parameter", "text"),
    [
        (
            given(max_length=30),
            30,
            None,
            (
                "instances[4] has 30 tokens and max_length is 30, prompt included; shorten the "
                "prompt or raise max_length (at most 2048)"
            ),
        ),
        (
            given(max_new_tokens=49),
            2000,
            None,
            (
                "instances[4] has 2000 tokens; with max_new_tokens 49 that is 2049, and the "
                "context is 2048"
            ),
        ),
        (
            given(min_length=500, max_new_tokens=8),
            10,
            "min_length",
            (
                "instances[4] would need at least 500 tokens and max_new_tokens allows 18, prompt "
                "included"
            ),
        ),
        (
            given(min_new_tokens=60, max_length=50),
            10,
            "min_new_tokens",
            "instances[4] would need at least 70 tokens and max_length allows 50, prompt included",
        ),
    ],
)
def test_totals_that_contradict(
    lengths: Lengths, prompt_tokens: int, parameter: str | None, text: str
) -> None:
    with pytest.raises(LengthError) as caught:
        lengths.totals(prompt_tokens, CONTEXT, "instances[4]")
    assert str(caught.value) == text
    assert caught.value.parameter == parameter


@pytest.mark.parametrize(
    ("defaults", "said", "expected"),
    [
        ({"min_length": 30, "max_length": 40}, {"max_length": 12}, (12, 12)),
        ({"min_new_tokens": 30}, {"max_new_tokens": 5}, (15, 15)),
        ({"min_new_tokens": 30}, {"max_length": 20}, (20, 20)),
        ({"max_new_tokens": 5}, {"max_length": 500}, (1, 500)),
        ({"max_new_tokens": 5}, {"max_length": 500, "max_new_tokens": 7}, (1, 17)),
        ({"min_new_tokens": 5}, {"min_length": 200}, (200, 1024)),
        ({"max_new_tokens": 5}, {"min_length": 3}, (3, 15)),
        ({"max_new_tokens": 5}, {}, (1, 15)),
    ],
)
def test_a_default_gives_way(
    defaults: dict[str, int], said: dict[str, int], expected: tuple[int, int]
) -> None:
    """What the server's defaults are never makes a request fail that would pass without them."""
    server = replace(DEFAULTS, **defaults, given=frozenset(defaults))
    request = replace(DEFAULTS, **said, given=frozenset(said)).over(server)
    request.check_order()
    assert request.totals(10, CONTEXT, "x") == TotalLengths(*expected)


def test_parameters_over_defaults() -> None:
    """The lengths of a request's parameters follow the same rule, and what was given is kept."""
    defaults = GenerationParameters(max_new_tokens=5, temperature=0.5, stop="#")
    merged = GenerationParameters(max_length=30, top_k=7).over(defaults)
    assert merged.lengths == Lengths(1, 30, None, None, frozenset({"max_length", "top_k"}))
    assert (merged.top_k, merged.temperature, merged.stop) == (7, 0.5, "#")
    assert merged.model_fields_set == {"max_length", "top_k"}

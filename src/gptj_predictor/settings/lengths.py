"""The one rule about lengths: which minimum and which maximum hold, and when they contradict.

A text is bounded in total tokens (``min_length``, ``max_length``: prompt included) or in new tokens
(``min_new_tokens``, ``max_new_tokens``), which win where they are set. The command line checks the
server's defaults with this rule, every protocol its requests, and the generator each prompt.

* A minimum that was given may not be above its maximum.
* A default gives way to what was given: it never makes a request fail.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

#: Each minimum and the maximum that counts the same tokens.
PAIRS = (("min_length", "max_length"), ("min_new_tokens", "max_new_tokens"))

#: Each bound in total tokens and the bound in new tokens that wins over it.
WINNERS = {"min_length": "min_new_tokens", "max_length": "max_new_tokens"}


class LengthError(ValueError):
    """Lengths that contradict each other, the prompt or the context.

    Attributes:
        parameter: The parameter at fault; ``None`` if it is the prompt.
    """

    def __init__(self, text: str, parameter: str | None = None) -> None:
        super().__init__(text)
        self.parameter = parameter


class OrderError(LengthError):
    """A minimum above its maximum.

    Attributes:
        minimum: The value of ``parameter``.
        maximum_name: The parameter that it is above.
        maximum: The value of that.
    """

    def __init__(
        self, name: str, minimum: int, maximum_name: str, maximum: int, *, by_default: bool
    ) -> None:
        origin = " (the server's default)" if by_default else ""
        super().__init__(f"{minimum} is above {maximum_name} {maximum}{origin}", name)
        self.minimum, self.maximum_name, self.maximum = minimum, maximum_name, maximum


@dataclass(frozen=True)
class TotalLengths:
    """The bounds of one text in tokens, prompt included."""

    minimum: int
    maximum: int


@dataclass(frozen=True)
class Lengths:
    """The four parameters in tokens, and the names of those that were given.

    The others are defaults. ``None`` is no bound.
    """

    min_length: int
    max_length: int
    min_new_tokens: int | None = None
    max_new_tokens: int | None = None
    given: frozenset[str] = frozenset()

    def over(self, defaults: Lengths) -> Lengths:
        """These lengths where they were given, and the defaults elsewhere.

        A default in new tokens would win over a given total length; it is dropped.
        """
        chosen = {
            name: getattr(self if name in self.given else defaults, name)
            for pair in PAIRS
            for name in pair
        }
        for total, new in WINNERS.items():
            if total in self.given and new not in self.given:
                chosen[new] = None
        return replace(self, **chosen)

    def check_order(self, called: Callable[[str], str] = str) -> None:
        """Find what contradicts whatever the prompt is.

        Args:
            called: What errors call a parameter.

        Raises:
            OrderError: a given minimum is above its maximum.
        """
        for low, high in PAIRS:
            minimum, maximum = getattr(self, low), getattr(self, high)
            if low in self.given and None not in (minimum, maximum) and minimum > maximum:
                by_default = high not in self.given
                raise OrderError(low, minimum, called(high), maximum, by_default=by_default)

    def totals(
        self,
        prompt_tokens: int,
        context: int,
        prompt_name: str,
        called: Callable[[str], str] = str,
    ) -> TotalLengths:
        """The bounds for one prompt.

        Args:
            prompt_tokens: Its length.
            context: Tokens of the longest text that the model can make.
            prompt_name: What errors call it: ``instances[0]``.
            called: What they call a parameter.

        Raises:
            LengthError: the prompt leaves no room, or a given minimum is above the maximum.
        """
        maximum_name, maximum = self._maximum(prompt_tokens, context, prompt_name, called)
        if self.min_new_tokens is not None:
            minimum_name, minimum = "min_new_tokens", prompt_tokens + self.min_new_tokens
        else:
            minimum_name, minimum = "min_length", self.min_length
        if minimum <= maximum:
            return TotalLengths(minimum, maximum)
        if minimum_name not in self.given:
            return TotalLengths(maximum, maximum)
        raise LengthError(
            f"{prompt_name} would need at least {minimum} tokens and {called(maximum_name)} allows "
            f"{maximum}, prompt included",
            minimum_name,
        )

    def _maximum(
        self, prompt_tokens: int, context: int, prompt_name: str, called: Callable[[str], str]
    ) -> tuple[str, int]:
        if self.max_new_tokens is not None:
            maximum = prompt_tokens + self.max_new_tokens
            if maximum > context:
                raise LengthError(
                    f"{prompt_name} has {prompt_tokens} tokens; with {called('max_new_tokens')} "
                    f"{self.max_new_tokens} that is {maximum}, and the context is {context}"
                )
            return "max_new_tokens", maximum
        if prompt_tokens >= self.max_length:
            raise LengthError(
                f"{prompt_name} has {prompt_tokens} tokens and max_length is {self.max_length}, "
                "prompt included; shorten the prompt or raise max_length (at most "
                f"{context})"
            )
        return "max_length", self.max_length

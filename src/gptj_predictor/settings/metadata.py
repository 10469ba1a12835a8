"""What a settings field says about itself beside its type: markers, and its bounds in words.

The bounds of a field are written once, in its declaration. Error texts, ``--help``, the OpenAPI
document and the tables in ``docs/`` take them from there, through :func:`allowed_values`.
"""

from __future__ import annotations

import enum
import types
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

import annotated_types as at
from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic.fields import FieldInfo
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, core_schema

_UNIONS = (Union, types.UnionType)
_NUMBERS: dict[Any, str] = {int: "an integer", float: "a number"}
_OTHER_KINDS: dict[Any, str] = {bool: "true or false", str: "a string", Path: "a path"}


@dataclass(frozen=True)
class ModelLimit:
    """Marks a number that the loaded model bounds above.

    Attributes:
        name: ``"context"``, ``"vocabulary"`` or ``"last_token_id"``, see :class:`Limits`.
    """

    name: str


@dataclass(frozen=True)
class ZeroOrFrom:
    """Allows 0, and then nothing below ``minimum``."""

    minimum: float

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        return core_schema.no_info_after_validator_function(self._check, handler(source))

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        found = handler(schema)
        low, high = found.pop("minimum"), found.pop("maximum")
        ranges = ({"minimum": low, "maximum": 0}, {"minimum": self.minimum, "maximum": high})
        return found | {"anyOf": list(ranges)}

    def _check(self, value: float) -> float:
        if 0 < value < self.minimum:
            raise ValueError(f"use 0, or a number from {self.minimum} on")
        return value


@dataclass(frozen=True)
class ZeroMeans:
    """Says in a word what 0 means."""

    word: str


@dataclass(frozen=True)
class UnsetMeans:
    """Says in words what is used where the field is not set: its default is ``None`` or empty."""

    words: str


@dataclass(frozen=True)
class RequestOnly:
    """Marks a parameter of requests that has no flag and no default of the server's own."""


@dataclass(frozen=True)
class Positional:
    """Marks an argument that has no flag.

    Attributes:
        metavar: Its name in ``--help``.
    """

    metavar: str


@dataclass(frozen=True)
class Switch:
    """Marks a flag without a value.

    Attributes:
        name: The flag's name where it is not the field's.
    """

    name: str | None = None


Marker = TypeVar("Marker")


def marker(field: FieldInfo, kind: type[Marker]) -> Marker | None:
    """The field's marker of a kind, if it has one."""
    return next((item for item in field.metadata if isinstance(item, kind)), None)


def default_in_words(field: FieldInfo) -> str | None:
    """The field's default, or what an unset field means; ``None`` if it has to be given."""
    if field.is_required():
        return None
    if field.default is None or field.default == "":
        unset = marker(field, UnsetMeans)
        return "unset" if unset is None else unset.words
    if isinstance(field.default, bool):
        return str(field.default).lower()
    return str(field.default)


def allowed_values(field: FieldInfo, limits: Mapping[str, object] | None = None) -> str:
    """What the field may be set to, in words: ``an integer from 1 to 8``.

    Args:
        field: Of a settings class.
        limits: For each :class:`ModelLimit` name the bound that the model sets; may be words.
            Without them only the field's own bounds are given.
    """
    kinds = [kind for kind in _alternatives(field.annotation) if kind is not types.NoneType]
    described: list[str] = []
    for kind in kinds:
        described.append(_describe(kind, field.metadata, limits or {}, described))
    return ", or ".join(described)


def _alternatives(annotation: Any) -> tuple[Any, ...]:
    return get_args(annotation) if get_origin(annotation) in _UNIONS else (annotation,)


def _describe(
    kind: Any, metadata: Iterable[Any], limits: Mapping[str, object], before: list[str]
) -> str:
    if get_origin(kind) is Annotated:
        kind, *more = get_args(kind)
        metadata = [*metadata, *more]
    bounds = _Bounds.of(metadata)
    if get_origin(kind) is list:
        inner = _describe(get_args(kind)[0], (), limits, [])
        return f"a list of {bounds.lengths()} {'of them' if inner in before else f'({inner})'}"
    if get_origin(kind) is dict:
        key, value = (_describe(inner, (), limits, []) for inner in get_args(kind))
        return f"an object of {bounds.lengths()} names ({key}, as a string), each with {value}"
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        *others, last = (str(member.value) for member in kind)
        return f"{', '.join(others)} or {last}"
    if kind in _NUMBERS:
        return bounds.numbers(_NUMBERS[kind], limits)
    if kind is str and bounds.max_length is not None:
        return f"a string of {bounds.lengths()} characters"
    return _OTHER_KINDS[kind]


@dataclass(frozen=True)
class _Bounds:
    """What the markers and constraints of a field add up to."""

    low: float | None = None
    above_low: bool = False  # low itself is not allowed
    high: float | None = None
    below_high: bool = False
    min_length: int | None = None
    max_length: int | None = None
    zero: str | None = None
    zero_or_from: float | None = None
    limit: str | None = None

    @classmethod
    def of(cls, metadata: Iterable[Any]) -> _Bounds:
        found: dict[str, Any] = {}
        for item in _flat(metadata):
            match item:
                case at.Ge(ge=low):
                    found |= {"low": low}
                case at.Gt(gt=low):
                    found |= {"low": low, "above_low": True}
                case at.Le(le=high):
                    found |= {"high": high}
                case at.Lt(lt=high):
                    found |= {"high": high, "below_high": True}
                case at.MinLen(min_length=length):
                    found |= {"min_length": length}
                case at.MaxLen(max_length=length):
                    found |= {"max_length": length}
                case ZeroMeans(word=word):
                    found |= {"zero": word}
                case ZeroOrFrom(minimum=minimum):
                    found |= {"zero_or_from": minimum}
                case ModelLimit(name=name):
                    found |= {"limit": name}
        return cls(**found)

    def lengths(self) -> str:
        """``1 to 64``."""
        return f"{self.min_length or 0} to {self.max_length}"

    def numbers(self, kind: str, limits: Mapping[str, object]) -> str:
        """``an integer from 0 (off) to 2048``."""
        high: object = self.high
        below = self.below_high
        if kind == _NUMBERS[int] and below and self.high is not None:
            high, below = int(self.high) - 1, False
        if self.limit is not None:
            high = limits.get(self.limit, high)
        low = self.low
        if self.zero_or_from is not None:
            kind, low = f"0, or {kind}", self.zero_or_from
        start = "" if low is None else f" above {low}" if self.above_low else f" from {low}"
        if self.zero is not None:
            start += f" ({self.zero})"
        if high is None:
            end = " on" if start and not self.above_low else ""
        elif below:
            end = f" and below {high}" if start else f" below {high}"
        elif not start:
            end = f" up to {high}"
        else:
            end = f" and up to {high}" if self.above_low else f" to {high}"
        return f"{kind}{start}{end}"


def _flat(metadata: Iterable[Any]) -> Iterable[Any]:
    """The constraints one by one: some come in groups, some as a nested field."""
    for item in metadata:
        if isinstance(item, FieldInfo):
            yield from _flat(item.metadata)
        elif isinstance(item, at.GroupedMetadata):
            yield from item
        else:
            yield item

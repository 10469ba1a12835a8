"""From the values of a ``config.json`` to the network's shape, as transformers reads them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast, get_args, get_type_hints

from gptj_predictor.model.config import NetworkConfig

#: Other names that transformers accepts; they win over the first ones.
ALIASES = {
    "max_position_embeddings": "n_positions",
    "hidden_size": "n_embd",
    "num_attention_heads": "n_head",
    "num_hidden_layers": "n_layer",
}


def parse_config(raw: Mapping[str, object]) -> NetworkConfig:
    """The network's shape; what is missing has its default, what is unknown is passed over.

    Raises:
        ValueError: a value is of another type. The text names it.
    """
    types = get_type_hints(NetworkConfig)
    del types["eos_token_ids"]
    values = {name: raw[name] for name in types if name in raw}
    values |= {name: raw[alias] for alias, name in ALIASES.items() if alias in raw}
    for name, value in values.items():
        _check_type(name, value, get_args(types[name]) or (types[name],))
    if "eos_token_id" in raw:
        values["eos_token_ids"] = _token_ids("eos_token_id", raw["eos_token_id"])
    return NetworkConfig(**values)  # type: ignore[arg-type]


def _token_ids(name: str, value: object) -> tuple[int, ...]:
    """One, several or none."""
    if isinstance(value, list):
        for one in value:
            _check_type(name, one, (int,))
        return tuple(value)
    _check_type(name, value, (int, type(None)))
    return () if value is None else (cast("int", value),)


def _check_type(name: str, value: object, allowed: tuple[type, ...]) -> None:
    if type(value) not in allowed:  # not isinstance: a bool is no size
        wanted = " or ".join("null" if kind is type(None) else kind.__name__ for kind in allowed)
        raise ValueError(f"{name} is {value!r}; it must be {wanted}")

"""Reading a Hugging Face snapshot folder without reading its weights.

:meth:`SnapshotFolder.open` looks at the configuration and at the safetensors headers only, so that
a folder that cannot be served is refused before a port is bound or a byte of weights is read.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from transformers import AutoConfig, GPTJConfig

INDEX_FILE = "model.safetensors.index.json"
SINGLE_FILE = "model.safetensors"

#: safetensors dtype names that a network can be built from.
FLOAT_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}

#: Constants that transformers once stored beside the weights; every loader recomputes them.
CONSTANT_BUFFERS = (".attn.bias", ".attn.masked_bias", ".attn.embed_positions")


class SnapshotError(ValueError):
    """The folder cannot be served; the text names the file and what is wrong with it."""


@dataclass(frozen=True)
class StoredTensor:
    """Where one tensor of the checkpoint lies.

    Attributes:
        file: The safetensors file.
        offset: Byte of the file where its values begin.
        dtype: Of its values.
        shape: Of the tensor, whose values follow each other row by row.
    """

    file: Path
    offset: int
    dtype: torch.dtype
    shape: tuple[int, ...]


@dataclass(frozen=True)
class SnapshotFolder:
    """A snapshot whose configuration and tensor headers have been read.

    Attributes:
        path: The folder.
        config: The network's configuration, as transformers reads it.
        tensors: Every weight by its checkpoint name, without constant buffers.
    """

    path: Path
    config: GPTJConfig
    tensors: Mapping[str, StoredTensor]

    @classmethod
    def open(cls, path: Path) -> SnapshotFolder:
        """Read configuration and headers.

        Raises:
            SnapshotError: the folder or one of its files is missing, damaged, not safetensors or
                not a GPT-J.
        """
        if not path.is_dir():
            raise SnapshotError(f"model folder {path} does not exist or is not a folder")
        config = _read_config(path)
        return cls(path=path, config=config, tensors=_read_headers(path))

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of most of the weights, in elements: what ``--precision native`` means."""
        elements: Counter[torch.dtype] = Counter()
        for tensor in self.tensors.values():
            elements[tensor.dtype] += int(torch.Size(tensor.shape).numel())
        return elements.most_common(1)[0][0]


def _read_config(path: Path) -> GPTJConfig:
    file = path / "config.json"
    raw = _read_json_object(file)
    if raw.get("model_type") != "gptj":
        raise SnapshotError(
            f"{file} says model_type {raw.get('model_type')!r}; only 'gptj' can be served"
        )
    try:
        config = AutoConfig.from_pretrained(path, local_files_only=True)
    except Exception as error:  # transformers raises many types for one bad value
        reason = " ".join(str(error).split())
        raise SnapshotError(f"{file} is not a valid GPT-J configuration: {reason}") from error
    _check_shape_arithmetic(file, config)
    return config


def _check_shape_arithmetic(file: Path, config: GPTJConfig) -> None:
    sizes = ("vocab_size", "n_positions", "n_embd", "n_layer", "n_head")
    for name in sizes:
        if getattr(config, name) < 1:
            raise SnapshotError(f"{file}: {name} is {getattr(config, name)}; it must be positive")
    if config.n_embd % config.n_head:
        raise SnapshotError(
            f"{file}: n_embd {config.n_embd} is not a multiple of n_head {config.n_head}"
        )
    head_size = config.n_embd // config.n_head
    rotary_dim = config.rotary_dim
    if rotary_dim is None or rotary_dim % 2 or not 0 < rotary_dim <= head_size:
        raise SnapshotError(
            f"{file}: rotary_dim {rotary_dim} must be even, above 0 and at most the head size "
            f"{head_size}"
        )


def _read_headers(path: Path) -> dict[str, StoredTensor]:
    tensors: dict[str, StoredTensor] = {}
    for file in _weight_files(path):
        try:
            offsets = _value_offsets(file)
            with safe_open(file, framework="pt") as opened:  # checks all of the header
                for name in opened.keys():  # noqa: SIM118 - not a dict
                    header = opened.get_slice(name)
                    if name.endswith(CONSTANT_BUFFERS):
                        continue
                    tensors[name] = StoredTensor(
                        file=file,
                        offset=offsets[name],
                        dtype=_float_dtype(file, name, header.get_dtype()),
                        shape=tuple(header.get_shape()),
                    )
        except SnapshotError:
            raise
        except (SafetensorError, OSError, ValueError, LookupError) as error:
            raise SnapshotError(
                f"{file} is not a whole safetensors file ({error}); fetch it again"
            ) from error
    return tensors


def _value_offsets(file: Path) -> dict[str, int]:
    """Where each tensor's values begin.

    A safetensors file is the header's length in 8 bytes, little endian, the header as JSON, and the
    values, whose offsets count from the header's end (safetensors' README, "Format").
    """
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        if length > file.stat().st_size:
            raise ValueError("its header is longer than the file")
        header = json.loads(opened.read(length))
    return {
        name: 8 + length + entry["data_offsets"][0]
        for name, entry in header.items()
        if name != "__metadata__"
    }


def _float_dtype(file: Path, name: str, dtype: str) -> torch.dtype:
    if dtype not in FLOAT_DTYPES:
        allowed = ", ".join(sorted(FLOAT_DTYPES))
        raise SnapshotError(f"{file}: tensor {name} is stored as {dtype}; allowed are {allowed}")
    return FLOAT_DTYPES[dtype]


def _weight_files(path: Path) -> list[Path]:
    """The safetensors files to read: one, or those that the index names."""
    index = path / INDEX_FILE
    if index.is_file():
        weight_map = _read_json_object(index).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise SnapshotError(f"{index} has no weight_map")
        names = sorted({str(name) for name in weight_map.values()})
        for name in names:
            if Path(name).name != name:
                raise SnapshotError(f"{index} names {name!r}, which is not a plain file name")
            if not (path / name).is_file():
                raise SnapshotError(f"{path / name} is missing; {INDEX_FILE} names it")
        return [path / name for name in names]
    if (path / SINGLE_FILE).is_file():
        return [path / SINGLE_FILE]
    pickles = sorted(file.name for file in path.glob("*.bin"))
    if pickles:
        raise SnapshotError(
            f"{path} has its weights as a pickle only ({pickles[0]}), which is never loaded "
            f"because a pickle can run code; convert it to {SINGLE_FILE} with "
            "transformers' save_pretrained"
        )
    raise SnapshotError(f"{path} has neither {SINGLE_FILE} nor {INDEX_FILE}")


def _read_json_object(file: Path) -> dict[str, object]:
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SnapshotError(f"{file} is missing") from None
    except (OSError, ValueError, RecursionError) as error:
        raise SnapshotError(f"{file} cannot be read as JSON: {error}") from error
    if not isinstance(value, dict):
        raise SnapshotError(f"{file} is not a JSON object")
    return value

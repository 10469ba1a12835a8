"""Reading a Hugging Face snapshot folder without reading its weights.

:meth:`SnapshotFolder.open` looks at the configuration and at the safetensors headers only, so that
a folder that cannot be served is refused before a port is bound or a byte of weights is read. If
the folder has a manifest, the small files and the sizes of the large ones are compared with it.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from gptj_predictor.common.dtypes import FLOAT_DTYPES
from gptj_predictor.common.files import explain_unreadable
from gptj_predictor.model.config import NetworkConfig
from gptj_predictor.model.quantization import WeightQuantization
from gptj_predictor.snapshot import tensorizer
from gptj_predictor.snapshot.blocks import read_layout
from gptj_predictor.snapshot.cache import ModelRoot, repair_command
from gptj_predictor.snapshot.config import parse_config
from gptj_predictor.snapshot.damage import remember_damage
from gptj_predictor.snapshot.errors import SnapshotDamagedError, SnapshotError
from gptj_predictor.snapshot.layout import SCALE_SUFFIX
from gptj_predictor.snapshot.manifest import Manifest

INDEX_FILE = "model.safetensors.index.json"
SINGLE_FILE = "model.safetensors"

#: What CoreWeave's tensorizer writes, beside a snapshot's other files.
TENSORIZER_FILE = "model.tensors"

#: Constants that transformers once stored beside the weights; every loader recomputes them.
CONSTANT_BUFFERS = (".attn.bias", ".attn.masked_bias", ".attn.embed_positions")


@dataclass(frozen=True)
class StoredTensor:
    """Where one tensor of the checkpoint lies.

    Attributes:
        file: That holds it.
        offset: Byte of a safetensors file where its values begin.
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
        tensors: Every weight by its checkpoint name, and the scales of int8 weights; without
            constant buffers.
        manifest: What the pull that made it says of it, if one did.
    """

    path: Path
    config: NetworkConfig
    tensors: Mapping[str, StoredTensor]
    manifest: Manifest | None = None

    @classmethod
    def open(cls, path: Path) -> SnapshotFolder:
        """Read configuration and headers.

        Raises:
            SnapshotError: the folder or one of its files is missing, damaged, not safetensors or
                not a GPT-J.
        """
        if not path.is_dir():
            raise SnapshotError(f"model folder {path} does not exist or is not a folder")
        try:
            manifest = Manifest.read(path)
            if manifest is not None:
                _check_files(path, manifest)
            config = read_config(path)
            return cls(path, config, _read_headers(path), manifest)
        except SnapshotError as error:
            raise with_repair(error, path) from error

    @property
    def parameters(self) -> int:
        """Number of values in all weights."""
        return sum(
            math.prod(tensor.shape)
            for name, tensor in self.tensors.items()
            if not name.endswith(SCALE_SUFFIX)
        )

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of most of the weights, in elements: what ``--precision native`` means.

        Of int8 weights it is that of the others, which they were made in.
        """
        elements: Counter[torch.dtype] = Counter()
        for name, tensor in self.tensors.items():
            if tensor.dtype is not torch.int8 and not name.endswith(SCALE_SUFFIX):
                elements[tensor.dtype] += math.prod(tensor.shape)
        return elements.most_common(1)[0][0]

    @property
    def quantization(self) -> WeightQuantization:
        """How the weights of products are stored."""
        is_int8 = any(tensor.dtype is torch.int8 for tensor in self.tensors.values())
        return "int8" if is_int8 else "none"


def with_repair(error: SnapshotError, path: Path) -> SnapshotError:
    """The error with the command that mends it, if the folder is a version of a model cache.

    Damage is remembered, see :mod:`gptj_predictor.snapshot.damage`.
    """
    if ModelRoot.of(path) is None or "; run: " in str(error):
        return error
    if isinstance(error, SnapshotDamagedError):
        remember_damage(path, str(error))
    return type(error)(f"{error}; {repair_command(path)}")


def _check_files(path: Path, manifest: Manifest) -> None:
    """Compare what is cheap to compare: small files by digest, weights by size."""
    for name, record in manifest.files.items():
        if not record.blocks:
            manifest.check_file(path, name)
            continue
        try:
            size = (path / name).stat().st_size
        except FileNotFoundError:
            raise SnapshotDamagedError(f"{path / name} is missing; the manifest names it") from None
        if size != record.size:
            raise SnapshotDamagedError(
                f"{path / name} has {size} bytes; the manifest says {record.size}: it is damaged"
            )


def read_config(path: Path) -> NetworkConfig:
    """A folder's ``config.json``, as transformers reads it.

    Raises:
        SnapshotError: it is missing, damaged, or not a GPT-J's.
    """
    file = path / "config.json"
    raw = read_json_object(file)
    if raw.get("model_type") != "gptj":
        raise SnapshotError(
            f"{file} says model_type {raw.get('model_type')!r}; only 'gptj' can be served"
        )
    try:
        config = parse_config(raw)
    except ValueError as error:
        raise SnapshotError(f"{file} is not a valid GPT-J configuration: {error}") from error
    _check_shape_arithmetic(file, config)
    return config


def _check_shape_arithmetic(file: Path, config: NetworkConfig) -> None:
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
    if rotary_dim % 2 or not 0 < rotary_dim <= head_size:
        raise SnapshotError(
            f"{file}: rotary_dim {rotary_dim} must be even, above 0 and at most the head size "
            f"{head_size}"
        )


def _read_headers(path: Path) -> dict[str, StoredTensor]:
    tensors: dict[str, StoredTensor] = {}
    if is_tensorizer(path):
        file = path / TENSORIZER_FILE
        for name, (dtype, shape) in tensorizer.read_headers(file).items():
            if not name.endswith(CONSTANT_BUFFERS):
                _check_float(file, name, str(dtype), dtype in FLOAT_DTYPES.values())
                tensors[name] = StoredTensor(file, 0, dtype, shape)
        return tensors
    for file in _weight_files(path):
        tensors |= read_header(file)
    return tensors


def is_tensorizer(path: Path) -> bool:
    """Whether a folder's weights are in tensorizer's format; safetensors win over it."""
    others = (INDEX_FILE, SINGLE_FILE)
    return (path / TENSORIZER_FILE).is_file() and not any((path / name).exists() for name in others)


def _check_float(file: Path, name: str, stored: str, is_float: bool) -> None:
    if not is_float:
        allowed = ", ".join(sorted(FLOAT_DTYPES))
        raise SnapshotError(f"{file}: tensor {name} is stored as {stored}; allowed are {allowed}")


def read_header(file: Path, *, constants: bool = False) -> dict[str, StoredTensor]:
    """The tensors of a safetensors file, with the old constant buffers or without.

    Raises:
        SnapshotError: it is missing, cut off or damaged, or holds other than floats and weights in
            int8.
    """
    try:
        _, layout = read_layout(file)
        offsets = {tensor.name: tensor.offset for tensor in layout}
        tensors = {}
        with safe_open(file, framework="pt") as opened:  # checks all of the header
            for name in opened.keys():  # noqa: SIM118 - not a dict
                constant = name.endswith(CONSTANT_BUFFERS)
                if constant and not constants:
                    continue
                header = opened.get_slice(name)
                dtype = header.get_dtype()
                known = FLOAT_DTYPES | ({"I8": torch.int8} if name.endswith(".weight") else {})
                _check_float(file, name, dtype, constant or dtype in known)
                tensors[name] = StoredTensor(
                    file=file,
                    offset=offsets[name],
                    dtype=known.get(dtype, torch.bool),
                    shape=tuple(header.get_shape()),
                )
        return tensors
    except SnapshotError:
        raise
    except PermissionError as error:
        raise SnapshotError(explain_unreadable(file, error)) from error
    except (SafetensorError, OSError, ValueError, LookupError, TypeError) as error:
        raise SnapshotError(
            f"{file} is not a whole safetensors file ({error}); fetch it again"
        ) from error


def _weight_files(path: Path) -> list[Path]:
    """The safetensors files to read: one, or those that the index names."""
    index = path / INDEX_FILE
    if index.is_file():
        weight_map = read_json_object(index).get("weight_map")
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
            "because a pickle can run code; gptj-predictor snapshot pull MODEL_ID fetches and "
            f"converts a model of the hub, transformers' save_pretrained a folder's"
        )
    raise SnapshotError(f"{path} has neither {SINGLE_FILE} nor {INDEX_FILE}")


def read_json_object(file: Path) -> dict[str, object]:
    """A small JSON file's content.

    Raises:
        SnapshotError: it is missing, damaged, or not an object.
    """
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SnapshotError(f"{file} is missing") from None
    except PermissionError as error:
        raise SnapshotError(explain_unreadable(file, error)) from error
    except (OSError, ValueError, RecursionError) as error:
        raise SnapshotError(f"{file} cannot be read as JSON: {error}") from error
    if not isinstance(value, dict):
        raise SnapshotError(f"{file} is not a JSON object")
    return value

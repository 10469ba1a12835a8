"""From a snapshot folder to a network whose weights are in place."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

import torch

from gptj_predictor.common.dtypes import dtype_name
from gptj_predictor.common.files import explain_unreadable
from gptj_predictor.common.phases import Phase, Phases
from gptj_predictor.model.attention import Attention
from gptj_predictor.model.config import NetworkConfig
from gptj_predictor.model.network import GPTJNetwork, Placement
from gptj_predictor.model.quantization import WeightQuantization
from gptj_predictor.snapshot import tensorizer
from gptj_predictor.snapshot.blocks import read_into, read_layout
from gptj_predictor.snapshot.builder import NetworkBuilder
from gptj_predictor.snapshot.cache import in_use
from gptj_predictor.snapshot.errors import SnapshotError
from gptj_predictor.snapshot.folder import (
    TENSORIZER_FILE,
    SnapshotFolder,
    StoredTensor,
    is_tensorizer,
    with_repair,
)
from gptj_predictor.snapshot.layout import SCALE_SUFFIX, NetworkLayout, Place
from gptj_predictor.snapshot.load_blocks import BlockLoader
from gptj_predictor.snapshot.load_plan import WeightFile, plan_load
from gptj_predictor.snapshot.manifest import Manifest


def expected_shapes(config: NetworkConfig) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor that a checkpoint of this configuration must have."""
    return {name: place.shape for name, place in NetworkLayout(config).places.items()}


def check_tensors(folder: SnapshotFolder) -> None:
    """Compare the stored names, shapes and dtypes with those that the configuration asks for.

    Of a snapshot that no pull made, the scales that weights share are compared too.

    Raises:
        SnapshotError: a tensor is missing, has another shape, or belongs to something else; or some
            weights that are multiplied with are int8 and others not; or weights whose scales are
            the same by their place have other ones.
    """
    quantization = folder.quantization
    layout = NetworkLayout(folder.config, quantization, stored=quantization)
    for name, place in layout.places.items():
        if name not in folder.tensors:
            raise SnapshotError(f"{folder.path}: tensor {name} is missing")
        stored = folder.tensors[name]
        if stored.shape != place.shape:
            raise SnapshotError(
                f"{stored.file}: tensor {name} has shape {list(stored.shape)}; "
                f"config.json asks for {list(place.shape)}"
            )
        wanted = layout.parameters[place.parameter].dtype
        if wanted is not None and stored.dtype is not wanted:
            raise SnapshotError(
                f"{stored.file}: tensor {name} is stored as {dtype_name(stored.dtype)}; beside "
                f"other int8 weights it must be {dtype_name(wanted)}"
            )
        if wanted is None and stored.dtype is torch.int8:
            raise SnapshotError(
                f"{stored.file}: tensor {name} is stored as int8, which only weights of products "
                "can be"
            )
    # A tied checkpoint may or may not repeat the embedding under the head's name.
    foreign = sorted(set(folder.tensors) - set(layout.places) - {"lm_head.weight"})
    if foreign:
        more = f" and {len(foreign) - 1} more" if len(foreign) > 1 else ""
        raise SnapshotError(f"{folder.path}: tensor {foreign[0]}{more} is not part of a GPT-J")
    if folder.manifest is None:  # a pull gives them the same
        _check_shared_scales(folder, layout)


def _check_shared_scales(folder: SnapshotFolder, layout: NetworkLayout) -> None:
    """Compare the scales of weights that lie side by side in the same rows of a parameter.

    A row has one scale, so that of the weight that is read last would silently be the others' too.

    Raises:
        SnapshotError: two differ; it names the first.
    """
    owners: dict[Place, str] = {}
    for name, place in layout.places.items():
        if not name.endswith(SCALE_SUFFIX):
            continue
        owner = owners.setdefault(place, name)
        if owner == name:
            continue
        ours, theirs = (_read_vector(folder.tensors[one]) for one in (owner, name))
        differing = (ours != theirs).nonzero()
        if len(differing):
            row = int(differing[0])
            raise SnapshotError(
                f"{folder.path}: tensors {owner} and {name} differ from row {row} on "
                f"({ours[row]:g} and {theirs[row]:g}); both weights are multiplied with in one "
                "product, whose rows have one scale each"
            )


def _read_vector(stored: StoredTensor) -> torch.Tensor:
    """A small tensor of a safetensors file.

    Raises:
        SnapshotError: it cannot be read.
    """
    values = torch.empty(stored.shape, dtype=stored.dtype)
    try:
        with stored.file.open("rb", buffering=0) as file:
            read_into(values.view(torch.uint8).numpy().data, file.fileno(), stored.offset)
    except OSError as error:
        raise SnapshotError(explain_unreadable(stored.file, error)) from error
    return values


def load_network(
    folder: SnapshotFolder,
    dtype: torch.dtype,
    placement: Placement,
    *,
    attentions: Mapping[torch.device, Attention] | None = None,
    quantization: WeightQuantization = "none",
    check_digests: bool = True,
    phases: Phases | None = None,
) -> GPTJNetwork:
    """Build the network and read every stored tensor into its place, casting on the way.

    Files are read, not mapped: a mapped file that is cut off, or a volume that goes away, would
    kill the process without a word.

    Args:
        folder: What to load.
        dtype: Of the network.
        placement: Which device gets which part.
        attentions: See :meth:`NetworkBuilder.finish`.
        quantization: How the network holds its weights.
        check_digests: Compare every block with the manifest, if there is one.
        phases: Gets what reading took, and what bringing the values to their places took.

    Raises:
        SnapshotError: :func:`check_tensors`'s, or a file that changed or broke since.
        ValueError: ``placement`` is not for this configuration, or the folder stores int8 weights
            and the network is not to have them: see :class:`NetworkBuilder`.
    """
    check_tensors(folder)
    started = time.perf_counter()
    builder = NetworkBuilder(
        folder.config, dtype, placement, quantization, stored=folder.quantization
    )
    builder.prepare()
    try:
        with in_use(folder.path):
            if is_tensorizer(folder.path):
                file = folder.path / TENSORIZER_FILE
                placing = _load_tensorizer(file, builder, check=check_digests)
            else:
                manifest = folder.manifest if check_digests else None
                placing = _load_safetensors(folder, builder, manifest)
    except SnapshotError as error:
        raise with_repair(error, folder.path) from error
    network = builder.finish(attentions)
    if phases is not None:
        phases.add(Phase.WEIGHTS_TO_DEVICE, placing)
        phases.add(Phase.WEIGHTS_READ, time.perf_counter() - started - placing)
    return network


def _load_tensorizer(file: Path, builder: NetworkBuilder, *, check: bool) -> float:
    """Returns the seconds that were not for reading."""
    placing = 0.0

    def take(name: str, tensor: torch.Tensor) -> None:
        nonlocal placing
        if name in builder.layout.places:  # and not a constant buffer
            started = time.perf_counter()
            builder.fill(name, tensor)
            placing += time.perf_counter() - started

    tensorizer.read_tensors(file, take, check=check)
    return placing


def _load_safetensors(
    folder: SnapshotFolder, builder: NetworkBuilder, manifest: Manifest | None
) -> float:
    """Returns the seconds that were not for reading."""
    with ExitStack() as stack:
        descriptors: dict[Path, int] = {}
        files = []
        for path in dict.fromkeys(stored.file for stored in folder.tensors.values()):
            try:
                descriptors[path] = os.open(path, os.O_RDONLY)
                stack.callback(os.close, descriptors[path])
                size = os.fstat(descriptors[path]).st_size
                files.append(WeightFile(path, size, *read_layout(path)))
            except OSError as error:
                raise SnapshotError(explain_unreadable(path, error)) from error
            except (ValueError, LookupError, TypeError) as error:
                raise SnapshotError(f"{path} cannot be read: {error}") from error
        plan = plan_load(files, folder.tensors, builder.layout.places, manifest)
        return BlockLoader(builder, descriptors).run(plan)

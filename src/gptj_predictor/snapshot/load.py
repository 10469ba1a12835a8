"""From a snapshot folder to a network whose weights are in place."""

from __future__ import annotations

import torch
from accelerate import init_empty_weights

from gptj_predictor.model.network import GPTJNetwork, Placement
from gptj_predictor.snapshot.folder import SnapshotError, SnapshotFolder, StoredTensor


def check_tensors(folder: SnapshotFolder) -> None:
    """Compare the stored names and shapes with those that the configuration asks for.

    Raises:
        SnapshotError: a tensor is missing, has another shape, or belongs to something else.
    """
    wanted = empty_network(folder, torch.float32).checkpoint_views()
    for name, view in wanted.items():
        if name not in folder.tensors:
            raise SnapshotError(f"{folder.path}: tensor {name} is missing")
        stored = folder.tensors[name]
        if stored.shape != tuple(view.shape):
            raise SnapshotError(
                f"{stored.file}: tensor {name} has shape {list(stored.shape)}; "
                f"config.json asks for {list(view.shape)}"
            )
    # A tied checkpoint may or may not repeat the embedding under the head's name.
    foreign = sorted(set(folder.tensors) - set(wanted) - {"lm_head.weight"})
    if foreign:
        more = f" and {len(foreign) - 1} more" if len(foreign) > 1 else ""
        raise SnapshotError(f"{folder.path}: tensor {foreign[0]}{more} is not part of a GPT-J")


def empty_network(folder: SnapshotFolder, dtype: torch.dtype) -> GPTJNetwork:
    """The network laid out without memory."""
    with init_empty_weights(include_buffers=True):
        return GPTJNetwork(folder.config, dtype)


def load_network(folder: SnapshotFolder, dtype: torch.dtype, placement: Placement) -> GPTJNetwork:
    """Build the network and copy every stored tensor into its place, casting on the way.

    The network is first laid out without memory, then allocated once in ``dtype``, then filled
    tensor by tensor: straight into place where that is possible, else by way of one tensor's copy.
    At the end weights on a CPU are packed one by one. Files are read, not mapped: a mapped file
    that is cut off, or a volume that goes away, would kill the process without a word.

    Raises:
        SnapshotError: :func:`check_tensors`'s, or a file that changed or broke since.
    """
    check_tensors(folder)
    network = empty_network(folder, dtype)
    network.allocate(placement)
    for name, place in network.checkpoint_views().items():
        stored = folder.tensors[name]
        try:
            if place.device.type == "cpu" and place.dtype is stored.dtype and place.is_contiguous():
                _read_into(place, stored)
            else:
                copy = torch.empty(stored.shape, dtype=stored.dtype)
                _read_into(copy, stored)
                place.copy_(copy)
        except OSError as error:
            raise SnapshotError(f"{stored.file}: tensor {name} cannot be read: {error}") from error
    network.pack()
    return network.eval()


def _read_into(tensor: torch.Tensor, stored: StoredTensor) -> None:
    """Fill a contiguous CPU tensor of the stored dtype and shape from its file.

    Raises:
        OSError: the file cannot be read, or ends too early.
    """
    left = tensor.view(torch.uint8).numpy().data.cast("B")
    with stored.file.open("rb", buffering=0) as file:
        file.seek(stored.offset)
        while left:
            count = file.readinto(left)
            if not count:
                raise OSError("the file ends too early")
            left = left[count:]

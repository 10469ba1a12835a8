"""From a snapshot folder to a network whose weights are in place."""

from __future__ import annotations

import torch
from accelerate import init_empty_weights
from safetensors import SafetensorError, safe_open

from gptj_predictor.model.network import GPTJNetwork
from gptj_predictor.snapshot.folder import SnapshotError, SnapshotFolder


def check_tensors(folder: SnapshotFolder) -> None:
    """Compare the stored names and shapes with those that the configuration asks for.

    Raises:
        SnapshotError: a tensor is missing, has another shape, or belongs to something else.
    """
    wanted = _empty_network(folder, torch.float32).checkpoint_views()
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


def load_network(folder: SnapshotFolder, dtype: torch.dtype, device: torch.device) -> GPTJNetwork:
    """Build the network and copy every stored tensor into its place, casting on the way.

    The network is first laid out without memory, then allocated once in ``dtype`` on ``device``,
    then filled tensor by tensor. Each tensor's file is mapped only while it is copied, so that the
    process never holds more than the network and one tensor.

    Raises:
        SnapshotError: :func:`check_tensors`'s, or a file that changed or broke since.
    """
    check_tensors(folder)
    network = _empty_network(folder, dtype)
    network.allocate(device)
    for name, destination in network.checkpoint_views().items():
        stored = folder.tensors[name]
        try:
            with safe_open(stored.file, framework="pt") as opened:
                destination.copy_(opened.get_tensor(name))
        except (SafetensorError, OSError, RuntimeError) as error:
            raise SnapshotError(f"{stored.file}: tensor {name} cannot be read: {error}") from error
    return network.eval()


def _empty_network(folder: SnapshotFolder, dtype: torch.dtype) -> GPTJNetwork:
    with init_empty_weights(include_buffers=True):
        return GPTJNetwork(folder.config, dtype)

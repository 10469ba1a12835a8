"""What a load reads, decided without a file."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gptj_predictor.model.config import NetworkConfig
from gptj_predictor.snapshot import blocks
from gptj_predictor.snapshot.blocks import TensorRange, block_ranges
from gptj_predictor.snapshot.errors import SnapshotError
from gptj_predictor.snapshot.folder import StoredTensor
from gptj_predictor.snapshot.layout import NetworkLayout, Parameter, Place
from gptj_predictor.snapshot.load_blocks import put_values
from gptj_predictor.snapshot.load_plan import Block, BlockGroup, WeightFile, plan_load
from gptj_predictor.snapshot.manifest import FileRecord, Manifest

H, INNER, VOCABULARY, HEADER = 8, 12, 10, 100


def layout_of(**more: object) -> NetworkLayout:
    sizes: dict[str, Any] = {"n_embd": H, "n_inner": INNER, "n_layer": 2, "vocab_size": VOCABULARY}
    return NetworkLayout(NetworkConfig(**(sizes | more)))


class Folder:
    """The headers of a made-up snapshot, a file for each collection of names."""

    def __init__(self, layout: NetworkLayout, *files: Iterable[str], constants: int = 0) -> None:
        self.layout = layout
        self.files: list[WeightFile] = []
        self.stored: dict[str, StoredTensor] = {}
        for number, names in enumerate(files or [list(layout.places)]):
            path = Path(f"model-{number}.safetensors")
            end, tensors = HEADER, []
            for name in names:
                place = layout.places.get(name)
                shape = place.shape if place else (VOCABULARY, H)
                self.stored[name] = StoredTensor(path, end, torch.float16, shape)
                tensors.append(TensorRange(name, end, 2 * math.prod(shape)))
                end += tensors[-1].size
            for index in range(constants):
                tensors.append(TensorRange(f"transformer.h.{index}.attn.bias", end, 64))
                end += 64
            self.files.append(WeightFile(path, end, HEADER, tensors))

    def manifest(self) -> Manifest:
        """Every block's digest is its begin."""
        records = {}
        for file in self.files:
            ranges = block_ranges(file.size, file.header, file.tensors)
            digests = tuple(str(begin) for begin, _ in ranges)
            records[file.path.name] = FileRecord(file.size, "", digests)
        return Manifest("id", "main", "0" * 40, "fp16", (), records)

    def plan(self, manifest: Manifest | None = None) -> dict[str | None, tuple[Block, ...]]:
        groups = plan_load(self.files, self.stored, self.layout.places, manifest)
        found = {group.parameter: group.blocks for group in groups}
        assert len(found) == len(groups)
        return found


def test_every_value_is_read_once_to_its_place() -> None:
    folder = Folder(layout_of())
    planned = [block for group in folder.plan().values() for block in group]
    assert {block.place for block in planned} == set(folder.layout.places.values())
    assert [block.first for block in planned] == [0] * len(planned)
    extents = sorted((block.begin, block.begin + block.size) for block in planned)
    assert extents == list(block_ranges(folder.files[0].size, HEADER, folder.files[0].tensors))[1:]
    covered = sum(math.prod(parameter.shape) for parameter in folder.layout.parameters.values())
    no_bias = 2 * 3 * H  # of q, k and v in two layers
    assert sum(block.size for block in planned) == 2 * (covered - no_bias)


def test_groups_are_in_the_order_of_the_file() -> None:
    first = ["lm_head.bias", "transformer.h.1.mlp.fc_out.weight"]
    names = [*first, *(name for name in layout_of().places if name not in first)]
    order = list(Folder(layout_of(), names).plan())
    assert order[:3] == ["head.bias", "layers.1.project_out.weight", "embedding.weight"]


def test_rows_of_a_fused_weight() -> None:
    blocks = Folder(layout_of()).plan()["layers.1.project_in.weight"]
    name = "layers.1.project_in.weight"
    assert [block.place for block in blocks] == [
        Place(name, 0, 0, (H, H)),
        Place(name, 0, H, (H, H)),
        Place(name, 0, 2 * H, (H, H)),
        Place(name, 0, 3 * H, (INNER, H)),
    ]
    assert layout_of().parameters[name] == Parameter((3 * H + INNER, H), 1)


def test_columns_of_a_fused_weight() -> None:
    blocks = Folder(layout_of()).plan()["layers.0.project_out.weight"]
    name = "layers.0.project_out.weight"
    assert [block.place for block in blocks] == [
        Place(name, 1, 0, (H, H)),
        Place(name, 1, H, (H, INNER)),
    ]
    memory = torch.zeros(H, H + INNER)
    for number, block in enumerate(blocks):
        assert block.place is not None
        block.place.of(memory).fill_(number + 1)
    assert torch.equal(memory[0], torch.tensor([1.0] * H + [2.0] * INNER))


def test_the_bias_that_q_k_and_v_do_not_have() -> None:
    (block,) = Folder(layout_of()).plan()["layers.0.project_in.bias"]
    assert block.place == Place("layers.0.project_in.bias", 0, 3 * H, (INNER,))


def test_a_parameter_in_two_files() -> None:
    layout = layout_of()
    apart = ["transformer.h.0.attn.v_proj.weight", "transformer.h.1.mlp.fc_in.weight"]
    folder = Folder(layout, [name for name in layout.places if name not in apart], apart)
    blocks = folder.plan()["layers.0.project_in.weight"]
    assert [block.file.name for block in blocks] == ["model-0.safetensors"] * 3 + [
        "model-1.safetensors"
    ]


def test_a_tensor_in_two_files_is_read_from_the_one_that_was_opened_for_it() -> None:
    layout = layout_of()
    folder = Folder(layout, list(layout.places), ["lm_head.bias"])
    (block,) = folder.plan()["head.bias"]
    assert block.file == folder.stored["lm_head.bias"].file == Path("model-1.safetensors")


def test_blocks_that_begin_within_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 2 * (2 * INNER + 1))
    planned = Folder(layout_of()).plan()["layers.0.project_out.weight"]
    of_fc_out = [block for block in planned if block.place and block.place.start == H]
    assert [block.first for block in of_fc_out] == [0, 25, 50, 75]
    assert [block.size for block in of_fc_out] == [50, 50, 50, 2 * (H * INNER - 75)]


@given(
    rows=st.integers(1, 5),
    columns=st.integers(1, 5),
    left=st.integers(0, 2),
    step=st.integers(1, 26),
)
def test_any_blocks_put_a_tensor_together(rows: int, columns: int, left: int, step: int) -> None:
    """Whole, or the columns of a wider matrix, of which the rest stays."""
    values = torch.arange(rows * columns, dtype=torch.float64)
    wide = torch.full((rows, left + columns + left), -1.0)
    for first in range(0, len(values), step):
        put_values(wide[:, left : left + columns], first, values[first : first + step])
    assert torch.equal(wide[:, left : left + columns], values.view(rows, columns).float())
    assert wide[:, :left].eq(-1).all()
    assert wide[:, left + columns :].eq(-1).all()


def test_constant_buffers() -> None:
    """They are not read; with a manifest their digests are compared."""
    folder = Folder(layout_of(), constants=2)
    assert None not in folder.plan()
    manifest = folder.manifest()
    unused = folder.plan(manifest)[None]
    sizes = [HEADER, 64, 64]
    assert [(block.size, block.place) for block in unused] == [(size, None) for size in sizes]


@pytest.mark.parametrize("repeated", [False, True])
def test_tied_head(repeated: bool) -> None:
    layout = layout_of(tie_word_embeddings=True)
    assert "lm_head.weight" not in layout.places
    assert "head.weight" not in layout.parameters
    folder = Folder(layout, [*layout.places, *(["lm_head.weight"] if repeated else [])])
    assert None not in folder.plan()
    assert len(folder.plan(folder.manifest())[None]) == 1 + repeated


def test_each_block_has_its_own_digest() -> None:
    folder = Folder(layout_of(), constants=1)
    planned = folder.plan(folder.manifest())
    assert all(block.digest == str(block.begin) for group in planned.values() for block in group)
    assert all(block.digest is None for group in folder.plan().values() for block in group)


@pytest.mark.parametrize("change", [-1, 1])
def test_wrong_number_of_blocks(change: int) -> None:
    folder = Folder(layout_of())
    manifest = folder.manifest()
    (record,) = manifest.files.values()
    digests = (*record.blocks, "more")[: len(record.blocks) + change]
    manifest.files["model-0.safetensors"] = replace(record, blocks=digests)
    with pytest.raises(SnapshotError, match=r"model-0.* its blocks are not the manifest's"):
        folder.plan(manifest)


def test_file_that_the_manifest_does_not_have() -> None:
    folder = Folder(layout_of())
    with pytest.raises(SnapshotError, match=r"model-0.* its blocks are not the manifest's"):
        folder.plan(replace(folder.manifest(), files={}))


@pytest.mark.parametrize("change", ["moved", "resized", "gone"])
def test_file_that_changed_since_it_was_opened(change: str) -> None:
    folder = Folder(layout_of())
    *others, last = folder.files[0].tensors
    if change == "moved":
        others.append(replace(last, offset=last.offset - 2))
    elif change == "resized":
        others.append(replace(last, size=last.size - 2))
    folder.files[0] = replace(folder.files[0], tensors=others)
    with pytest.raises(SnapshotError, match=r"model-0.* has changed since"):
        folder.plan()


def test_group_without_a_parameter_comes_from_digests_alone() -> None:
    folder = Folder(layout_of())
    groups = plan_load(folder.files, folder.stored, folder.layout.places, folder.manifest())
    header = Block(Path("model-0.safetensors"), 0, HEADER, "0")
    assert groups[0] == BlockGroup(None, (header,))

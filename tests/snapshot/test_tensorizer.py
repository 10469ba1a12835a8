"""Files that CoreWeave's tensorizer makes of transformers' own GPT-J."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tensorizer import EncryptionParams, TensorSerializer

from gptj_predictor.snapshot import tensorizer
from gptj_predictor.snapshot.builder import NetworkBuilder
from gptj_predictor.snapshot.errors import SnapshotError
from gptj_predictor.snapshot.folder import SnapshotFolder
from gptj_predictor.snapshot.tensorizer import read_headers, read_tensors
from tests.support.engines import checkpoint_tensors, load
from tests.support.reference import ReferenceModel, make_reference

SHAPE = {"n_embd": 32, "n_layer": 2, "n_head": 2, "rotary_dim": 8, "vocab_size": 50}

MEASURE = """
import sys, torch
from pathlib import Path
from tensorizer import TensorSerializer
from gptj_predictor.snapshot import tensorizer

def peak():  # the kernel's own high-water mark of resident memory
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))

file = Path(sys.argv[1])
tensorizer.BATCH_BYTES = 80 << 20
before = peak()
tensorizer.read_tensors(file, lambda name, tensor: None, check=True)
print(peak() - before)
"""


@pytest.fixture
def model(tmp_path: Path) -> ReferenceModel:
    return make_reference(tmp_path / "snapshot", seed=1, **SHAPE)


@pytest.fixture
def file(model: ReferenceModel, tmp_path: Path) -> Path:
    return written(model, tmp_path / "model.tensors")


def written(model: ReferenceModel, file: Path) -> Path:
    serializer = TensorSerializer(file)
    serializer.write_module(model.model)
    serializer.close()
    return file


def stored(model: ReferenceModel) -> dict[str, torch.Tensor]:
    """What ``write_module`` writes: not only what persists, and both names if tied."""
    return {
        name: tensor.detach()
        for named in (model.model.named_parameters, model.model.named_buffers)
        for name, tensor in named(remove_duplicate=False)
    }


def read(file: Path, *, check: bool) -> dict[str, torch.Tensor]:
    tensors: dict[str, torch.Tensor] = {}
    read_tensors(file, tensors.__setitem__, check=check)
    return tensors


def refusal(file: Path, *, check: bool = False) -> str:
    with pytest.raises(SnapshotError) as caught:
        read(file, check=check)
    text = str(caught.value)
    assert "\n" not in text
    assert str(file) in text
    return text


def flip(file: Path, offset: int) -> None:
    with file.open("r+b") as opened:
        opened.seek(offset)
        byte = opened.read(1)[0]
        opened.seek(offset)
        opened.write(bytes([byte ^ 1]))


def values_offset(file: Path, tensor: torch.Tensor) -> int:
    """Where the file has the tensor's values."""
    return file.read_bytes().index(tensor.numpy().tobytes())


@pytest.mark.parametrize("batch", [1, 4096, 1 << 20])
@pytest.mark.parametrize("check", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_every_tensor(
    model: ReferenceModel,
    tmp_path: Path,
    dtype: torch.dtype,
    check: bool,
    batch: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tensorizer, "BATCH_BYTES", batch)
    model.to(dtype)
    file = written(model, tmp_path / "model.tensors")
    expected = stored(model)
    tensors = read(file, check=check)
    headers = read_headers(file)
    assert set(model.model.state_dict()) <= set(tensors)
    assert set(headers) == set(tensors) == set(expected)
    assert list(headers) == list(tensors)
    for name, tensor in expected.items():
        assert headers[name] == (tensor.dtype, tuple(tensor.shape))
        assert type(tensors[name]) is torch.Tensor
        assert torch.equal(tensors[name], tensor)


def test_tied_weights_have_both_names(tmp_path: Path) -> None:
    model = make_reference(tmp_path / "snapshot", seed=1, **SHAPE, tie_word_embeddings=True)
    tensors = read(written(model, tmp_path / "model.tensors"), check=True)
    assert torch.equal(tensors["lm_head.weight"], tensors["transformer.wte.weight"])


def test_flipped_value(model: ReferenceModel, file: Path) -> None:
    name = "transformer.h.1.mlp.fc_in.weight"
    flip(file, values_offset(file, stored(model)[name]) + 5)
    assert f"Tensor '{name}' failed" in refusal(file, check=True)
    read(file, check=False)


def test_every_length_that_is_too_short(file: Path) -> None:
    whole = file.read_bytes()
    read_headers(file)
    last = values_offset(file, read(file, check=True)["lm_head.bias"])
    for length in [0, 4, 5, 8, 40, 70, 1000, len(whole) // 2, last, last + 1]:
        file.write_bytes(whole[:length])
        assert refusal(file) == refusal(file, check=True)
        with pytest.raises(SnapshotError):
            read_headers(file)
    assert "too early for tensor lm_head.bias" in refusal(file)


def test_file_cut_off_while_it_is_read(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """tensorizer itself would hand out memory that was never written."""
    monkeypatch.setattr(tensorizer, "BATCH_BYTES", 1)
    last = values_offset(file, read(file, check=True)["lm_head.bias"])

    def cut(name: str, tensor: torch.Tensor) -> None:
        with file.open("r+b") as opened:
            opened.truncate(last + 1)

    with pytest.raises(SnapshotError, match=r"too early for tensor lm_head\.bias"):
        read_tensors(file, cut, check=False)


@pytest.mark.parametrize("content", [b"", b"|TZR|", b"\x80\x02}q\x00.", bytes(1 << 20)])
def test_not_such_a_file(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "model.tensors"
    file.write_bytes(content)
    refusal(file)
    with pytest.raises(SnapshotError):
        read_headers(file)


def test_safetensors_file(model: ReferenceModel) -> None:
    assert "Not a tensorizer file" in refusal(model.folder / "model.safetensors")


def test_no_file(tmp_path: Path) -> None:
    assert "No such file" in refusal(tmp_path / "model.tensors")


def test_name_that_looks_like_a_url(
    model: ReferenceModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A relative path is a path."""
    (tmp_path / "s3:" / "bucket").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    file = Path("s3://bucket/model.tensors")
    assert set(read(written(model, file), check=True)) == set(stored(model))


def test_encrypted(model: ReferenceModel, tmp_path: Path) -> None:
    file = tmp_path / "model.tensors"
    try:
        encryption = EncryptionParams.random()
    except RuntimeError:
        pytest.skip("libsodium is not installed")
    serializer = TensorSerializer(file, encryption=encryption)
    serializer.write_module(model.model)
    serializer.close()
    assert "encrypted" in refusal(file)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ({"a": [torch.zeros(2)]}, "nested"),
        ({"a": torch.zeros(2, device="meta")}, "tensor a of [2] has 0 bytes of values"),
    ],
)
def test_not_plain_tensors(tmp_path: Path, content: dict[str, object], reason: str) -> None:
    file = tmp_path / "model.tensors"
    serializer = TensorSerializer(file)
    serializer.write_state_dict(content)
    serializer.close()
    assert reason in refusal(file)


def test_header_that_differs_from_the_index(tmp_path: Path) -> None:
    """tensorizer would make an array of objects, whose addresses are what the file says."""
    file = tmp_path / "model.tensors"
    serializer = TensorSerializer(file)
    serializer.write_state_dict({"a": torch.ones(4, dtype=torch.float64)})
    serializer.close()
    before, dtype, after = file.read_bytes().rpartition(b"<f8")
    file.write_bytes(before + b"|O8" + after)
    assert dtype
    assert "header of tensor a is damaged" in refusal(file)


def test_what_take_raises_is_passed_on(file: Path) -> None:
    def take(name: str, tensor: torch.Tensor) -> None:
        raise KeyError(name)

    with pytest.raises(KeyError):
        read_tensors(file, take, check=True)


def test_package_missing(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorizer", None)
    assert refusal(file).endswith("needs the extra: pip install 'gptj-predictor[tensorizer]'")


@pytest.fixture(scope="module")
def pristine(
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Path, dict[str, torch.Tensor], list[int]]:
    """A file, its tensors, and its bytes without the index's empty space."""
    folder = tmp_path_factory.mktemp("pristine")
    shape = {"n_embd": 8, "n_layer": 1, "n_head": 1, "rotary_dim": 4, "vocab_size": 5}
    file = written(make_reference(folder, seed=1, **shape, n_positions=8), folder / "model.tensors")
    whole = file.read_bytes()
    used = [at for at in range(len(whole)) if any(whole[max(0, at - 8) : at + 9])]
    return file, read(file, check=True), used


@settings(deadline=None)
@given(data=st.data())
@pytest.mark.slow
def test_no_flipped_byte_goes_unseen(
    pristine: tuple[Path, dict[str, torch.Tensor], list[int]], data: st.DataObject
) -> None:
    """Anywhere in the file: it is refused, or it does not matter."""
    file, expected, used = pristine
    whole = bytearray(file.read_bytes())
    whole[data.draw(st.sampled_from(used))] ^= 1 << data.draw(st.integers(0, 7))
    changed = file.with_name("changed.tensors")
    changed.write_bytes(whole)
    try:
        tensors = read(changed, check=True)
    except SnapshotError:
        return
    assert all(torch.equal(tensors[name], tensor) for name, tensor in expected.items())


@pytest.mark.process
def test_peak_memory_is_two_batches(tmp_path: Path) -> None:
    """Although all tensors are in one file, and its reader would keep what it has read.

    They are so large that the C library gives each back when it is freed. tensorizer's threads may
    still hold one batch's last tensors while the next batch is being read.
    """
    file = tmp_path / "model.tensors"
    serializer = TensorSerializer(file)
    serializer.write_state_dict({str(number): torch.ones(40 << 18) for number in range(8)})
    serializer.close()
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(file)], capture_output=True, check=True, text=True
    )
    assert 40 << 20 < int(done.stdout) < (2 * 80 + 30) << 20


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["fp32", "fp16"])
def test_a_folder_with_it_is_served(
    tmp_path: Path, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same network as of the safetensors beside which it was made."""
    monkeypatch.setattr(NetworkBuilder, "packs", lambda *_: False)
    model = make_reference(tmp_path / "snapshot", seed=1, **SHAPE)
    model.to(dtype).save_pretrained(model.folder)
    wanted = checkpoint_tensors(load(model.folder, dtype))
    written(model, model.folder / "model.tensors")
    (model.folder / "model.safetensors").unlink()
    folder = SnapshotFolder.open(model.folder)
    assert folder.dtype is dtype
    assert not any(name.endswith("attn.bias") for name in folder.tensors)
    found = checkpoint_tensors(load(model.folder, dtype))
    for name, tensor in wanted.items():
        assert torch.equal(tensor, found[name]), name
    values = found["transformer.h.1.mlp.fc_in.weight"].contiguous()
    content = bytearray((model.folder / "model.tensors").read_bytes())
    content[content.index(values.view(torch.uint8).numpy().tobytes()) + 5] ^= 1
    (model.folder / "model.tensors").write_bytes(content)
    with pytest.raises(SnapshotError, match=r"model\.tensors"):
        load(model.folder, dtype)

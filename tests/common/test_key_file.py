"""What a file of API keys may hold."""

from __future__ import annotations

from pathlib import Path

import pytest

from gptj_predictor.common.key_file import KeyFileError, parse_keys, read_keys


@pytest.mark.parametrize(
    ("content", "keys"),
    [
        (b"a", ("a",)),
        (b"a\nb\n", ("a", "b")),
        (b"# who this is for\n\n  a \r\n\t#b\nc=/+!\n", ("a", "c=/+!")),
        (b"a#b\n", ("a#b",)),
    ],
)
def test_keys(tmp_path: Path, content: bytes, keys: tuple[str, ...]) -> None:
    assert parse_keys(content) == keys
    (tmp_path / "keys").write_bytes(content)
    assert read_keys(tmp_path / "keys") == keys


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (b"", "no key"),
        (b"\n# only this\n", "no key"),
        (b"a\n\nalice: hidden\n", "line 3"),
        ("a\nschlüssel\n".encode(), "line 2"),
        (b"a\nb\0hidden\n", "line 2"),
        (b"\xff\xfeh\0i\0d\0d\0e\0n\0", "line 1"),  # UTF-16
    ],
)
def test_no_keys(tmp_path: Path, content: bytes, named: str) -> None:
    (tmp_path / "keys").write_bytes(content)
    with pytest.raises(KeyFileError) as refused:
        read_keys(tmp_path / "keys")
    assert named in str(refused.value)
    assert "hidden" not in str(refused.value)


def test_unreadable(tmp_path: Path) -> None:
    with pytest.raises(KeyFileError, match="cannot be read: No such file"):
        read_keys(tmp_path / "missing")
    with pytest.raises(KeyFileError, match="cannot be read: Is a directory"):
        read_keys(tmp_path)

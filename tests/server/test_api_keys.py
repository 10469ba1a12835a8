"""The keys of a file while it changes."""

from __future__ import annotations

import hmac
from hashlib import sha256
from pathlib import Path

import pytest

from gptj_predictor.common.key_file import KeyFileError
from gptj_predictor.server.api_keys import LOOK_SECONDS, ApiKeys
from tests.support.secrets import MountedSecret, key_lines


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now

    def pass_by(self) -> None:
        self.now += LOOK_SECONDS


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def secret(tmp_path: Path) -> MountedSecret:
    return MountedSecret(tmp_path / "secret", keys=key_lines("one", "two", "three"))


@pytest.fixture
def keys(secret: MountedSecret, clock: Clock) -> ApiKeys:
    return ApiKeys(Path(secret["keys"]), clock)


def name(key: str) -> str:
    return f"key:{sha256(key.encode()).hexdigest()[:8]}"


def test_known_keys(keys: ApiKeys) -> None:
    for key in ("one", "two", "three"):
        for header in (f"Bearer {key}", f"bearer {key}", f" BEARER   {key} "):
            assert keys.caller(header) == name(key)


@pytest.mark.parametrize(
    "header",
    [
        "",
        "one",
        "Bearer",
        "Bearer ",
        "Bearer on",
        "Bearer onee",
        "Bearer ONE",
        "Basic one",
        "Bearer one two",
        "Bearer one,two",
        "Bearerone",
        "Bearer \xff",
        "Bearer " + "x" * 100_000,
    ],
)
def test_no_known_key(keys: ApiKeys, header: str) -> None:
    assert keys.caller(header) is None


@pytest.mark.parametrize("key", ["one", "three", "four", ""])
def test_every_digest_is_compared(keys: ApiKeys, key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever key is given, so that time tells nothing."""
    lengths = []
    compare = hmac.compare_digest

    def counted(known: bytes, given: bytes) -> bool:
        lengths.append((len(known), len(given)))
        return compare(known, given)

    monkeypatch.setattr(hmac, "compare_digest", counted)
    keys.caller(f"Bearer {key}")
    assert lengths == [(32, 32)] * 3


def test_a_swapped_secret_is_read_again(secret: MountedSecret, keys: ApiKeys, clock: Clock) -> None:
    for number in range(3):
        secret.update(keys=key_lines(f"new-{number}"))
        assert keys.caller(f"Bearer new-{number}") is None  # not looked at yet
        clock.pass_by()
        assert keys.caller(f"Bearer new-{number}") == name(f"new-{number}")
        assert keys.caller("Bearer one") is None


def test_a_file_written_anew_is_read_again(tmp_path: Path, clock: Clock) -> None:
    file = tmp_path / "keys"
    file.write_bytes(key_lines("one"))
    keys = ApiKeys(file, clock)
    with file.open("ab") as more:
        more.write(key_lines("two"))
    clock.pass_by()
    assert keys.caller("Bearer one") == name("one")
    assert keys.caller("Bearer two") == name("two")


def test_an_unchanged_file_is_not_read_again(
    keys: ApiKeys, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ApiKeys, "_load", lambda _: pytest.fail("read again"))
    for _ in range(3):
        clock.pass_by()
        assert keys.caller("Bearer one") == name("one")


@pytest.mark.parametrize("content", [b"", b"# nothing\n", b"two words\n", None])
def test_the_last_keys_stay_valid(
    tmp_path: Path, clock: Clock, content: bytes | None, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "keys"
    file.write_bytes(key_lines("one"))
    keys = ApiKeys(file, clock)
    for _ in range(2):
        caplog.clear()
        file.unlink() if content is None else file.write_bytes(content)
        for _ in range(3):
            clock.pass_by()
            assert keys.caller("Bearer one") == name("one")
        [line] = caplog.messages
        assert f"--api_key_file {file}" in line
        file.write_bytes(key_lines("one", "two"))
        clock.pass_by()
        assert keys.caller("Bearer two") == name("two")


@pytest.mark.parametrize("content", [b"", b"two words\n", None])
def test_no_start_without_keys(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "keys").write_bytes(content)
    with pytest.raises(KeyFileError):
        ApiKeys(tmp_path / "keys")

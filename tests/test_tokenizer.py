from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer as RawTokenizer
from tokenizers.models import WordLevel
from transformers import AutoTokenizer
from transformers.convert_slow_tokenizer import bytes_to_unicode

from gptj_predictor import tokenizer as module
from gptj_predictor.demo import DEMO_SNAPSHOT
from gptj_predictor.tokenizer import Detokenizer, Tokenizer, TokenizerError, byte_characters

TOKENIZER = Tokenizer(DEMO_SNAPSHOT)
REFERENCE = AutoTokenizer.from_pretrained(DEMO_SNAPSHOT)


def detokenize(ids: list[int], *stop: str) -> tuple[list[str], str]:
    """Each token's text, and the text that the end brings."""
    detokenizer = Detokenizer(TOKENIZER, stop)
    return [detokenizer.add(token) for token in ids], detokenizer.finish()


@pytest.mark.slow
@given(st.text())
def test_round_trip(text: str) -> None:
    parts, rest = detokenize(TOKENIZER.encode(text))
    if "<|endoftext|>" not in text:
        assert "".join(parts) + rest == text


@given(st.lists(st.integers(0, len(TOKENIZER) - 1), max_size=60))
def test_any_tokens_decode_as_the_reference_does(ids: list[int]) -> None:
    parts, rest = detokenize(ids)
    expected = REFERENCE.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    assert "".join(parts) + rest == expected


@given(st.text(min_size=1))
def test_no_half_character_comes_out(text: str) -> None:
    if "<|endoftext|>" in text or "\ufffd" in text:
        return
    parts, rest = detokenize(TOKENIZER.encode(text))
    assert "\ufffd" not in "".join(parts)
    assert rest == ""


@given(st.text(alphabet="ab,.", max_size=30), st.lists(st.text("ab,.", min_size=1), max_size=4))
def test_stop_strings(text: str, stops: list[str]) -> None:
    """Whatever the token boundaries, the text ends before the first stop string."""
    detokenizer = Detokenizer(TOKENIZER, tuple(stops))
    out = ""
    for token in TOKENIZER.encode(text):
        out += detokenizer.add(token)
        assert text.startswith(out)
        if detokenizer.stopped:
            break
    out += detokenizer.finish()
    # Text comes token by token, so what counts is the first end of a stop string.
    places = [text.find(stop) for stop in stops if stop in text]
    assert detokenizer.stopped == bool(places)
    if not places:
        assert out == text
    else:
        assert out == text[: len(out)]
        assert not any(stop in out for stop in stops)
        assert any(text.startswith(stop, len(out)) for stop in stops)


def test_nothing_after_a_stop() -> None:
    detokenizer = Detokenizer(TOKENIZER, (",",))
    assert detokenizer.add(TOKENIZER.encode(",")[0]) == ""
    assert detokenizer.stopped
    assert detokenizer.add(TOKENIZER.encode("a")[0]) == ""
    assert detokenizer.finish() == ""


def test_special_tokens_have_no_text() -> None:
    assert TOKENIZER.bos_token_id is not None
    assert TOKENIZER.token_bytes(TOKENIZER.bos_token_id) == b""
    assert TOKENIZER.token_bytes(10**6) == b""


ADDED = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": True}
TEXTS = (
    "",
    " ",
    "a",
    " leading and trailing ",
    "The secret to: SELECT *;\n\n\tx = y1234",
    "é日本 \U0001f600\u200d\ufffd\x00",
    "it's they'll I'VE",
    "a<|endoftext|>b <|endoftext|>",
    "<|extratoken_1|> and <|extratoken_2|><|extratoken_3|>",
    "<|pad|>x",
)


def write_files(
    folder: Path,
    *,
    file: dict[str, Any] | None = None,
    model: dict[str, Any] | None = None,
    extra: int = 0,
    **more: Any,
) -> Path:
    """The demo's files with other values, and ``more`` in tokenizer_config.json.

    ``extra`` tokens are added as GPT-J-6B has them: in tokenizer.json and in added_tokens.json.
    """
    raw = json.loads((DEMO_SNAPSHOT / "tokenizer.json").read_text()) | (file or {})
    raw["model"] |= model or {}
    ids = {f"<|extratoken_{n + 1}|>": len(raw["model"]["vocab"]) + n for n in range(extra)}
    raw["added_tokens"] += [
        {"id": index, "content": token, "special": False} | ADDED for token, index in ids.items()
    ]
    (folder / "tokenizer.json").write_text(json.dumps(raw))
    if extra:
        (folder / "added_tokens.json").write_text(json.dumps(ids))
    settings = json.loads((DEMO_SNAPSHOT / "tokenizer_config.json").read_text()) | more
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    shutil.copy(DEMO_SNAPSHOT / "config.json", folder)
    return folder


def special(content: str) -> dict[str, Any]:
    return {"__type": "AddedToken", "content": content} | ADDED


SPLITTER = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
PREFIXED = SPLITTER | {"add_prefix_space": True}
#: Read without transformers.
PLAIN: dict[str, dict[str, Any]] = {
    "the demo": {},
    "GPT-J-6B": {
        "extra": 143,
        "from_slow": True,
        "name_or_path": "gpt2",
        "special_tokens_map_file": None,
        "model": {"unk_token": "", "continuing_subword_prefix": "", "end_of_word_suffix": ""},
        **{f"{name}_token": special("<|endoftext|>") for name in ("bos", "eos", "unk")},
    },
    "another beginning": {"extra": 3, "bos_token": "<|extratoken_2|>"},
    "no beginning": {"bos_token": None},
    "a prefix space": {"file": {"pre_tokenizer": PREFIXED}, "add_prefix_space": True},
    "truncation and padding": {
        "file": {
            "truncation": {
                "direction": "Right",
                "max_length": 4,
                "strategy": "LongestFirst",
                "stride": 0,
            },
        }
    },
}
#: Left to transformers.
OTHERS: dict[str, dict[str, Any]] = {
    "a prefix space in one file": {"add_prefix_space": True},
    "a normalizer": {"file": {"normalizer": {"type": "NFC"}}},
    "a special token that has to be added": {"pad_token": "<|pad|>"},
    "more special tokens": {"extra": 2, "extra_special_tokens": ["<|extratoken_2|>"]},
    "a class of its own": {"tokenizer_class": "PreTrainedTokenizerFast"},
    "ids in the file alone": {"extra": 2, "added_tokens_decoder": {"0": special("<|endoftext|>")}},
}


@pytest.mark.parametrize("changes", [*PLAIN.values(), *OTHERS.values()], ids=[*PLAIN, *OTHERS])
def test_other_files_are_read_as_transformers_reads_them(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    write_files(tmp_path, **changes)
    reference = AutoTokenizer.from_pretrained(tmp_path)
    ours = Tokenizer(tmp_path)
    for text in TEXTS:
        expected = reference(text, add_special_tokens=False)["input_ids"]
        assert ours.encode(text) == expected, text
    vocabulary = reference.get_vocab()
    assert len(ours) == max(vocabulary.values()) + 1
    assert ours.bos_token_id == reference.bos_token_id
    for index in vocabulary.values():
        expected = "" if index in reference.all_special_ids else reference.decode([index])
        assert ours.token_bytes(index).decode(errors="replace") == expected


@pytest.mark.parametrize("changes", PLAIN.values(), ids=PLAIN)
def test_files_like_gptj_s_are_read_without_transformers(
    tmp_path: Path, changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(folder: Path) -> None:
        raise AssertionError(f"{folder} is read by transformers")

    monkeypatch.setattr(module, "_load_with_transformers", refuse)
    Tokenizer(write_files(tmp_path, **changes))


def test_special_tokens_map_wins(tmp_path: Path) -> None:
    write_files(tmp_path, extra=2)
    names = {"bos_token": "<|extratoken_1|>", "eos_token": {"content": "<|extratoken_2|>"} | ADDED}
    (tmp_path / "special_tokens_map.json").write_text(json.dumps(names))
    reference, ours = AutoTokenizer.from_pretrained(tmp_path), Tokenizer(tmp_path)
    assert ours.bos_token_id == reference.bos_token_id == len(TOKENIZER)
    assert ours.token_bytes(len(TOKENIZER) + 1) == b""


def test_bytes_are_spelled_as_in_transformers() -> None:
    assert dict(enumerate(byte_characters())) == bytes_to_unicode()


def test_missing_files(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match="cannot be loaded"):
        Tokenizer(tmp_path)


def test_another_kind_of_tokenizer(tmp_path: Path) -> None:
    vocabulary = {"hello": 0, "wörld": 1, "日本": 2}
    RawTokenizer(WordLevel(vocabulary, unk_token="hello")).save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"})
    )
    with pytest.raises(TokenizerError, match="byte-level"):
        Tokenizer(tmp_path)


def test_classic_files(tmp_path: Path) -> None:
    """vocab.json and merges.txt, as GPT-J's repository has them, give the same tokens."""
    raw = json.loads((DEMO_SNAPSHOT / "tokenizer.json").read_text())
    (tmp_path / "vocab.json").write_text(json.dumps(raw["model"]["vocab"]))
    merges = [m if isinstance(m, str) else " ".join(m) for m in raw["model"]["merges"]]
    (tmp_path / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
    shutil.copy(DEMO_SNAPSHOT / "config.json", tmp_path)
    classic = Tokenizer(tmp_path)
    draw = random.Random(3)
    for _ in range(50):
        text = "".join(draw.choice("The secret to: SELECT *;é日 \n") for _ in range(40))
        assert classic.encode(text) == TOKENIZER.encode(text)

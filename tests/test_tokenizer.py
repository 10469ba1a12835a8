from __future__ import annotations

import json
import random
import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer as RawTokenizer
from tokenizers.models import WordLevel
from transformers import AutoTokenizer

from gptj_predictor.demo import DEMO_SNAPSHOT
from gptj_predictor.tokenizer import Detokenizer, Tokenizer, TokenizerError

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

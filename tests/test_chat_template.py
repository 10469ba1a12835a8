"""Chats become prompts as transformers makes them, and what is wrong with a template is said."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import AutoTokenizer

from gptj_predictor.chat_template import ChatTemplate, ChatTemplateError
from gptj_predictor.demo import DEMO_SNAPSHOT
from gptj_predictor.tokenizer import Tokenizer
from tests.support.chats import CHAT, TEMPLATE

pytestmark = pytest.mark.slow

NAMES = Tokenizer(DEMO_SNAPSHOT).special_tokens


def test_as_transformers() -> None:
    tokenizer = AutoTokenizer.from_pretrained(DEMO_SNAPSHOT)
    expected = tokenizer.apply_chat_template(
        CHAT, chat_template=TEMPLATE, tokenize=False, add_generation_prompt=True
    )
    assert ChatTemplate(TEMPLATE, NAMES).prompt(CHAT) == expected
    assert "<|endoftext|>" in expected


def test_special_tokens_by_name() -> None:
    assert NAMES["eos_token"] == NAMES["bos_token"] == "<|endoftext|>"


def test_what_a_template_refuses() -> None:
    template = ChatTemplate(TEMPLATE, NAMES)
    with pytest.raises(ChatTemplateError, match=r"refuses them: The user speaks first$"):
        template.prompt([{"role": "assistant", "content": "a"}])


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.append(1) }}",
        "{{ nothing.there }}",
        "{{ 1 / 0 }}",
    ],
)
def test_the_sandbox(source: str) -> None:
    """What would reach for more than messages, or goes wrong, is an error without its insides."""
    template = ChatTemplate(source, NAMES)
    with pytest.raises(ChatTemplateError, match=r"the chat template (refuses|cannot)") as caught:
        template.prompt(CHAT)
    assert "Traceback" not in str(caught.value)
    assert "site-packages" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"{% for m in messages %}", "line 1: "),
        (b"\n{{ messages | nothing }}", "line 2: "),
        (b" \n", "empty"),
        (b"\xff", "not UTF-8"),
        (None, "No such file"),
    ],
)
def test_what_is_no_template(tmp_path: Path, content: bytes | None, said: str) -> None:
    file = tmp_path / "template.jinja"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ChatTemplateError, match=said):
        ChatTemplate.read(file, NAMES)

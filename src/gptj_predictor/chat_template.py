"""A chat as one prompt, by a template in Jinja as transformers renders it, in its sandbox."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

#: How much of what a template says a client is told.
SHOWN_CHARACTERS = 200


class ChatTemplateError(ValueError):
    """The template cannot be used, or refuses a chat."""


class ChatTemplate:
    """Renders chats. transformers is imported only where there is one."""

    def __init__(self, source: str, special_tokens: Mapping[str, str]) -> None:
        """Compile it.

        Args:
            source: Jinja, as in ``chat_template.jinja`` of a model on the hub.
            special_tokens: Their texts by name, as ``eos_token``; a template may use them.

        Raises:
            ChatTemplateError: it is no template.
        """
        from jinja2 import TemplateError, TemplateSyntaxError
        from transformers.utils.chat_template_utils import render_jinja_template

        self._render: Any = render_jinja_template
        self._error = TemplateError
        self._source = source
        self._special_tokens = dict(special_tokens)
        try:
            self._render_one([{"role": "user", "content": "Hello"}])
        except TemplateSyntaxError as error:
            raise ChatTemplateError(f"line {error.lineno}: {error.message}") from error
        except Exception:  # noqa: S110 - it may want other messages than this one
            pass

    @classmethod
    def read(cls, file: Path, special_tokens: Mapping[str, str]) -> ChatTemplate:
        """Read it from a file.

        Raises:
            ChatTemplateError: the file cannot be read, or has no template.
        """
        try:
            source = file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
            raise ChatTemplateError(str(reason)) from error
        if not source.strip():
            raise ChatTemplateError("the file is empty")
        return cls(source, special_tokens)

    def prompt(self, messages: Sequence[Mapping[str, str]]) -> str:
        """The prompt of a chat, up to where the assistant's answer begins.

        Args:
            messages: Each with ``role`` and ``content``.

        Raises:
            ChatTemplateError: the template refuses them; the text is for the client.
        """
        try:
            return self._render_one(messages)
        except self._error as error:
            said = str(error)[:SHOWN_CHARACTERS]
            raise ChatTemplateError(f"the chat template refuses them: {said}") from error
        except Exception as error:
            raise ChatTemplateError("the chat template cannot render them") from error

    def _render_one(self, messages: Sequence[Mapping[str, str]]) -> str:
        rendered, _ = self._render(
            [list(map(dict, messages))],
            chat_template=self._source,
            add_generation_prompt=True,
            **self._special_tokens,
        )
        return str(rendered[0])

"""A chat template and a chat."""

from __future__ import annotations

TEMPLATE = """\
{%- for message in messages %}
{%- if loop.first and message.role == 'assistant' %}
{{- raise_exception('The user speaks first') }}
{%- endif %}
{{- message.role | capitalize }}: {{ message.content }}
{%- if message.role == 'assistant' %}{{ eos_token }}{% endif %}
{{- '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}Assistant:{% endif %}"""

CHAT = [
    {"role": "system", "content": "Be kind."},
    {"role": "user", "content": "The secret to a happy life is to"},
    {"role": "assistant", "content": "learn."},
    {"role": "user", "content": "Right now is the perfect time to"},
]

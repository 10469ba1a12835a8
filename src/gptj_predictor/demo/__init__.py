"""The bundled tiny snapshot: a real GPT-J with a few million parameters; see its MODEL_CARD.md."""

from __future__ import annotations

from pathlib import Path

#: The folder to serve.
DEMO_SNAPSHOT = Path(__file__).parent / "snapshot"

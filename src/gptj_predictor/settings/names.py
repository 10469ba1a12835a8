"""Names and places that several commands share."""

from __future__ import annotations

import re
from pathlib import Path

#: Where KServe mounts the volume that ``storageUri`` names.
MOUNTED_MODEL = Path("/mnt/models")

#: The model that is pulled and served where none is named.
DEFAULT_MODEL_ID = "EleutherAI/gpt-j-6B"

#: Tags of snapshots. Each is the name of a file in the model cache.
TAG_PATTERN = r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}"


def wire_name(model_id: str) -> str:
    """The model id as it stands in a URL: lower case, only letters, digits, ``_`` and ``-``."""
    return re.sub(r"[^a-z0-9_-]", "-", model_id.lower())

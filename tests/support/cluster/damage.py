"""Change one bit in the middle of a model's weights: ``python damage.py MODEL_FOLDER``.

The cluster suite runs this file in a pod of the predictor's image, so it imports the standard
library alone. It prints the files that it changed.
"""

from __future__ import annotations

import sys
from pathlib import Path


def damage(folder: Path) -> list[Path]:
    """Spoil the weights of every version of a model; return the files."""
    files = sorted(folder.glob("versions/*/*.safetensors"))
    for file in files:
        mode = file.stat().st_mode
        file.chmod(mode | 0o200)
        with file.open("r+b") as content:
            content.seek(file.stat().st_size // 2)
            [byte] = content.read(1)
            content.seek(-1, 1)
            content.write(bytes([byte ^ 0x10]))
        file.chmod(mode)
    return files


if __name__ == "__main__":
    changed = damage(Path(sys.argv[1]))
    print(*changed, sep="\n")
    sys.exit(not changed)

"""The manifest of a snapshot: what it was made from, and digests that vouch for every byte.

It has two kinds of digest. SHA-256 of every file is for people and for ``verify``. Its speed, 1 to
2 GB/s per core, would be the slowest part of a load. So the server checks XXH3-128 of every block
of a weight file instead, right after it has read the block into place. XXH3 does not protect
against someone who forges files. Neither would SHA-256: the manifest lies beside the files, and
whoever can write those can write the manifest.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gptj_predictor.common.files import explain_unreadable, write_whole
from gptj_predictor.settings import Quantization
from gptj_predictor.snapshot.blocks import BLOCK_BYTES
from gptj_predictor.snapshot.errors import SnapshotDamagedError, SnapshotError

if TYPE_CHECKING:  # it imports torch, for which reading a manifest need not wait
    from gptj_predictor.model.quantization import WeightQuantization

MANIFEST_FILE = "manifest.json"

#: Version of the manifest's own layout. A program that cannot read int8 weights refuses the second
#: one by its number; the first one does not name the quantization, because there is none.
FORMAT = 1
QUANTIZED_FORMAT = 2


@dataclass(frozen=True)
class FileRecord:
    """What a file of the snapshot must be.

    Attributes:
        size: In bytes.
        sha256: Of the whole file, in hexadecimal.
        blocks: Of a weight file: XXH3-128 of each of its :func:`block_ranges`, in hexadecimal.
    """

    size: int
    sha256: str
    blocks: tuple[str, ...] = ()


@dataclass(frozen=True)
class Manifest:
    """What a published snapshot says of itself.

    It holds no times, so that the same source always gives the same manifest.

    Attributes:
        model_id: As the hub names it.
        revision: The branch, tag or commit that was asked for.
        commit: What the revision resolved to.
        precision: That was asked for: native, fp16 or bfloat16.
        sources: For each downloaded weight file its name, size and the hub's own digest.
        files: Every file of the snapshot but the manifest, by name.
        tools: Versions of what made it.
        quantization: How the weights of products are stored, ``none`` or ``int8``.
    """

    model_id: str
    revision: str
    commit: str
    precision: str
    sources: tuple[dict[str, Any], ...]
    files: dict[str, FileRecord]
    tools: dict[str, str] = field(default_factory=dict)
    quantization: WeightQuantization = "none"

    def write(self, folder: Path) -> None:
        """Write it into the snapshot's folder."""
        write_whole(folder / MANIFEST_FILE, self._render())

    def _render(self) -> bytes:
        content: dict[str, Any] = {"format": FORMAT, "block_bytes": BLOCK_BYTES, **asdict(self)}
        if self.quantization == "none":
            del content["quantization"]
        else:
            content["format"] = QUANTIZED_FORMAT
        text = json.dumps(content, sort_keys=True)
        content["manifest_sha256"] = hashlib.sha256(text.encode()).hexdigest()
        return json.dumps(content, indent=1, sort_keys=True).encode() + b"\n"

    @classmethod
    def read(cls, folder: Path) -> Manifest | None:
        """Read it; ``None`` if the folder has none.

        Raises:
            SnapshotDamagedError: it is not what was written.
            SnapshotError: it cannot be read, or another version of the program wrote it.
        """
        file = folder / MANIFEST_FILE
        try:
            raw = file.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise SnapshotError(explain_unreadable(file, error)) from error
        try:
            content = json.loads(raw)
            if content["format"] not in (FORMAT, QUANTIZED_FORMAT):
                raise SnapshotError(
                    f"{file} has format {content['format']!r}; this version reads {FORMAT} and "
                    f"{QUANTIZED_FORMAT}"
                )
            quantization = content.get("quantization", "none")
            if quantization not in (Quantization.NONE, Quantization.INT8):
                raise SnapshotError(
                    f"{file} has quantization {quantization!r}; this version reads none and int8"
                )
            manifest = cls(
                model_id=content["model_id"],
                revision=content["revision"],
                commit=content["commit"],
                precision=content["precision"],
                sources=tuple(content["sources"]),
                files={
                    name: FileRecord(entry["size"], entry["sha256"], tuple(entry["blocks"]))
                    for name, entry in content["files"].items()
                },
                tools=content["tools"],
                quantization=quantization,
            )
            whole = manifest._render() == raw
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            if isinstance(error, SnapshotError):
                raise
            whole = False
        if not whole:
            raise SnapshotDamagedError(f"{file} is damaged")
        return manifest

    def check_file(self, folder: Path, name: str) -> bytes:
        """The content of a small file, if it is what the manifest says.

        Raises:
            SnapshotDamagedError: it is not.
            SnapshotError: it cannot be read.
        """
        file, record = folder / name, self.files[name]
        try:
            content = file.read_bytes()
        except FileNotFoundError:
            raise SnapshotDamagedError(f"{file} is missing; the manifest names it") from None
        except OSError as error:
            raise SnapshotError(explain_unreadable(file, error)) from error
        if hashlib.sha256(content).hexdigest() != record.sha256:
            raise SnapshotDamagedError(f"{file} is damaged: its SHA-256 is not the manifest's")
        return content

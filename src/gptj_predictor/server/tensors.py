"""The model as the Open Inference Protocol sees it: tensors in, tensors out.

Binary data is as in the protocol's binary tensor data extension, and in gRPC's raw contents: a
string is its length, as 4 bytes little-endian, and its bytes.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

#: There is one, and it never changes: another model is another server.
MODEL_VERSION = "1"

#: Extensions of the protocol, by the names that Triton gives them.
EXTENSIONS = ("binary_tensor_data", "generate")

_LENGTH = struct.Struct("<I")


@dataclass(frozen=True)
class TensorType:
    """A tensor's name and datatype; its shape is ``[n]``."""

    name: str
    datatype: str

    def metadata(self) -> dict[str, Any]:
        """As metadata describes it; -1 is any length."""
        return {"name": self.name, "datatype": self.datatype, "shape": [-1]}


#: The prompts.
PROMPT = TensorType("prompt", "BYTES")

#: One element for each text: the first prompt's, then the second's.
OUTPUTS = (
    TensorType("generated_text", "BYTES"),
    TensorType("finish_reason", "BYTES"),
    TensorType("prompt_tokens", "INT64"),
    TensorType("generated_tokens", "INT64"),
)

#: Another output, for whoever asks for it: each text's details, in JSON.
DETAILS = TensorType("details", "BYTES")


@dataclass(frozen=True)
class Tensor:
    """An output."""

    type: TensorType
    data: Sequence[str | int]

    @property
    def raw(self) -> bytes:
        """Its data in binary."""
        if self.type.datatype == "INT64":
            return struct.pack(f"<{len(self.data)}q", *self.data)
        encoded = [str(text).encode() for text in self.data]
        return b"".join(_LENGTH.pack(len(one)) + one for one in encoded)


def read_strings(raw: bytes, count: int) -> list[bytes]:
    """The strings of a binary tensor.

    Args:
        raw: Its data.
        count: How many its shape says they are. No more are read.

    Raises:
        ValueError: it is not so many strings, which the text says.
    """
    strings: list[bytes] = []
    offset = 0
    while offset < len(raw):
        start = offset + _LENGTH.size
        if len(strings) == count:
            raise ValueError(f"{len(raw) - offset} bytes are left after {count} strings")
        if start > len(raw):
            raise ValueError(f"string {len(strings)} has no length")
        (length,) = _LENGTH.unpack_from(raw, offset)
        offset = start + length
        if offset > len(raw):
            have = len(raw) - start
            raise ValueError(f"string {len(strings)} has {length} bytes, and {have} are left")
        strings.append(raw[start:offset])
    if len(strings) != count:
        raise ValueError(f"there are {len(strings)} strings, and the shape says {count}")
    return strings

"""What can be wrong with a snapshot."""

from __future__ import annotations


class SnapshotError(ValueError):
    """It cannot be used or made; one line that names the file and says what to do."""


class SnapshotMissingError(SnapshotError):
    """There is none yet; a pull may bring it."""


class SnapshotDamagedError(SnapshotError):
    """What is on disk is not what the manifest says."""

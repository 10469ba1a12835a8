"""Having the kernel read the weights while Python still imports."""

from __future__ import annotations

import logging
import os
from pathlib import Path

from gptj_predictor.common.threads import in_daemon_thread

logger = logging.getLogger(__name__)

#: What the kernel is asked for at a time, in bytes.
PIECE_BYTES = 8 << 20


def read_ahead(folder: Path, max_bytes: int) -> None:
    """Have weights read into the page cache, from now on and in the order of the load.

    Returns at once. It only advises the kernel: nothing is copied, the pages are the first to go
    when memory is short, and what is there already is not read again. A volume that does not know
    the advice is read when the weights are loaded.

    Args:
        folder: The snapshot's, whole or not.
        max_bytes: No more than that. Pages that go before they are used would be read twice.
    """
    in_daemon_thread(lambda: _advise(folder, max_bytes), "read-ahead")


def _advise(folder: Path, max_bytes: int) -> None:
    """Ask for one piece after the other; the call waits where the volume's queue is full."""
    left = max_bytes
    try:
        for file in sorted((*folder.glob("*.safetensors"), *folder.glob("*.tensors"))):
            descriptor = os.open(file, os.O_RDONLY)
            try:
                end = min(os.fstat(descriptor).st_size, left)
                for begin in range(0, end, PIECE_BYTES):
                    size = min(PIECE_BYTES, end - begin)
                    os.posix_fadvise(descriptor, begin, size, os.POSIX_FADV_WILLNEED)
            finally:
                os.close(descriptor)
            left -= end
    except OSError as error:  # the load says what is wrong
        logger.debug("no reading ahead of %s: %s", folder, error)

"""What can be wrong before a command has done its work, and the exit code of each."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path

logger = logging.getLogger("gptj_predictor")


class SettingsError(ValueError):
    """The settings make no sense: exit code 2. The text is one line for the user."""


class StartError(RuntimeError):
    """The settings are fine and the work failed all the same: exit code 1, one line."""


@contextlib.contextmanager
def one_line_errors() -> Iterator[None]:
    """Turn what settings, devices and snapshots may raise into the two errors above.

    Raises:
        SettingsError: a plan, a device, a precision or a quantization that does not exist here.
        StartError: a snapshot or the machine is at fault.
    """
    from gptj_predictor.bench.errors import PlanError
    from gptj_predictor.snapshot.errors import SnapshotError

    try:
        yield
    except (SettingsError, StartError):
        raise
    except PermissionError as error:
        logger.debug("the start failed", exc_info=True)
        raise StartError(_explain(error)) from error
    except (SnapshotError, OSError, MemoryError, RuntimeError) as error:
        logger.debug("the start failed", exc_info=True)
        raise StartError(str(error) or type(error).__name__) from error
    except PlanError as error:
        raise SettingsError(str(error)) from error
    except ValueError as error:
        # These take seconds to import, where that has not happened yet.
        from gptj_predictor.devices.placement import DeviceError
        from gptj_predictor.devices.precision import PrecisionError
        from gptj_predictor.devices.quantization import QuantizationError
        from gptj_predictor.tokenizer import TokenizerError

        if isinstance(error, DeviceError | PrecisionError | QuantizationError):
            raise SettingsError(str(error)) from error
        if isinstance(error, TokenizerError):
            raise StartError(str(error)) from error
        raise


def _explain(error: PermissionError) -> str:
    """Who may not read what, if that is it; else what the system says, such as of a port."""
    from gptj_predictor.common.files import explain_unreadable, is_unreadable

    path = error.filename
    if isinstance(path, str) and is_unreadable(Path(path)):
        return explain_unreadable(Path(path), error)
    return str(error)

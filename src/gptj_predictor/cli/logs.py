"""The log of ``serve`` as JSON: one object a line, whoever writes it."""

from __future__ import annotations

import logging
import sys
import threading
from datetime import UTC, datetime
from types import TracebackType

from pythonjsonlogger.core import RESERVED_ATTRS
from pythonjsonlogger.json import JsonFormatter

#: Name of the handler, by which others know that the log is JSON.
JSON_HANDLER = "gptj_predictor.json"

logger = logging.getLogger("gptj_predictor")


class JsonLines(JsonFormatter):
    """``time``, ``level``, ``logger``, ``message``, what a line has of its own, ``traceback``."""

    def __init__(self) -> None:
        super().__init__(
            ["asctime", "levelname", "name", "message"],
            rename_fields={
                "asctime": "time",
                "levelname": "level",
                "name": "logger",
                "exc_info": "traceback",
            },
            reserved_attrs=[*RESERVED_ATTRS, "color_message"],  # uvicorn's, for terminals
        )

    def formatTime(  # noqa: N802 - logging's name
        self, record: logging.LogRecord, datefmt: str | None = None
    ) -> str:
        """Time of a record in UTC: ``2026-01-31T23:59:59.123+00:00``."""
        return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")


def use_json_lines() -> None:
    """Make every line of the log JSON, warnings and uncaught exceptions too.

    Libraries bring handlers of their own when they are imported. Call it again after that.
    """
    root = logging.getLogger()
    if not writes_json():
        handler = logging.StreamHandler()
        handler.set_name(JSON_HANDLER)
        handler.setFormatter(JsonLines())
        root.handlers = [handler]
        logging.captureWarnings(True)
        sys.excepthook = _log_exception
        threading.excepthook = _log_thread_exception
    for name in list(root.manager.loggerDict):
        other = logging.getLogger(name)
        if other.handlers:
            other.handlers = []
        other.propagate = True


def writes_json() -> bool:
    """Whether :func:`use_json_lines` has been called."""
    return any(handler.name == JSON_HANDLER for handler in logging.getLogger().handlers)


def _log_exception(
    kind: type[BaseException], error: BaseException, traceback: TracebackType | None
) -> None:
    logger.critical("uncaught exception", exc_info=(kind, error, traceback))


def _log_thread_exception(failed: threading.ExceptHookArgs) -> None:
    if failed.exc_value is not None:
        name = None if failed.thread is None else failed.thread.name
        logger.critical(
            "uncaught exception in thread %s",
            name,
            exc_info=(failed.exc_type, failed.exc_value, failed.exc_traceback),
        )

"""Which functions of the package a running server calls, thread by thread."""

from __future__ import annotations

import json
import os
import re
import sys
import threading
import time
from pathlib import Path
from types import CodeType, FrameType
from typing import NamedTuple

import gptj_predictor
from gptj_predictor.cli import main

PACKAGE = Path(gptj_predictor.__file__).parent

#: A server that writes its calls, when it ends, to the file that the environment names.
RECORDED_SERVER = "from tests.support.calls import serve_recorded; serve_recorded()"


#: What the event loop returns to several times a second.
BACKGROUND = {"PredictorServer._watch_engine", "PredictorRESTServer.start"}


class Call(NamedTuple):
    """A function that was entered."""

    at: float  # by time.monotonic, which all processes share
    thread: str
    function: str


def serve_recorded() -> None:
    calls: list[Call] = []

    def note(frame: FrameType, event: str, _: object) -> None:
        if event == "call" and is_of_a_request(frame):
            thread = threading.current_thread().name
            calls.append(Call(time.monotonic(), thread, name_of(frame.f_code)))

    threading.setprofile(note)
    sys.setprofile(note)
    code = main()
    sys.setprofile(None)
    Path(os.environ["CALLS"]).write_text(json.dumps(calls))
    os._exit(code)


def is_of_a_request(frame: FrameType) -> bool:
    """Whether a function is ours, and not called by what runs whether there is a request or not."""
    ours = frame.f_code.co_filename.startswith(str(PACKAGE))
    caller: FrameType | None = frame if ours else None
    while caller is not None and caller.f_code.co_filename.startswith(str(PACKAGE)):
        if caller.f_code.co_qualname in BACKGROUND:
            return False
        caller = caller.f_back
    return ours


def name_of(code: CodeType) -> str:
    """The function as ``server.generation.TextGenerator.generate``."""
    module = Path(code.co_filename).relative_to(PACKAGE).with_suffix("")
    return ".".join([*module.parts, code.co_qualname.replace("<locals>.", "")])


def read_calls(file: Path) -> list[Call]:
    return [Call(*call) for call in json.loads(file.read_text())]


def first_calls(calls: list[Call], thread: str) -> list[str]:
    """Each function that a thread entered, once, in order; without lambdas and comprehensions.

    ``thread`` is a pattern that its name matches.
    """
    named = (call.function for call in calls if re.fullmatch(thread, call.thread))
    return list(dict.fromkeys(name for name in named if "<" not in name))

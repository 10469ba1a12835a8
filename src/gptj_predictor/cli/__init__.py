"""The ``gptj-predictor`` command: flags become settings, settings become one call.

Every command is one function in its module. It imports what it needs when it runs: torch and kserve
take seconds, and ``--help`` need not wait for them.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from gptj_predictor import __version__
from gptj_predictor.cli.benchmark import add_benchmark
from gptj_predictor.cli.errors import SettingsError, StartError, logger
from gptj_predictor.cli.flags import OneLineParser, UsageError
from gptj_predictor.cli.read_ahead import read_weights_ahead
from gptj_predictor.cli.serve import add_serve
from gptj_predictor.cli.snapshot import add_snapshot
from gptj_predictor.cli.termination import write_reason

__all__ = ["SettingsError", "StartError", "build_parser", "main"]


def main(arguments: list[str] | None = None) -> int:
    """Run the command and return its exit code: 0, 1 (could not start) or 2 (wrong settings)."""
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        if arguments[:1] == ["serve"]:
            read_weights_ahead(arguments[1:], os.environ)
        flags = build_parser(arguments).parse_args(arguments)
        flags.run(flags, os.environ)
    except SettingsError as error:
        return _complain(arguments, error, 2)
    except StartError as error:
        return _complain(arguments, error, 1)
    except KeyboardInterrupt:
        return 130
    except UsageError as error:
        write_reason(arguments, error.line, os.environ)
        raise
    except SystemExit:
        raise
    except BaseException as error:  # a mistake of the program's own, which Python prints
        write_reason(arguments, _one_line(f"{type(error).__name__}: {error}"), os.environ)
        raise
    return 0


def build_parser(arguments: Sequence[str] = ("serve",)) -> argparse.ArgumentParser:
    """The command line, complete for the command that ``arguments`` begin with."""
    parser = OneLineParser(
        prog="gptj-predictor", description="Serve GPT-J behind KServe's V1 protocol."
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    add_serve(commands, arguments)
    add_snapshot(commands)
    add_benchmark(commands, arguments)
    return parser


def _complain(arguments: Sequence[str], error: Exception, code: int) -> int:
    from gptj_predictor.cli.logs import writes_json

    text = _one_line(str(error))
    write_reason(arguments, text, os.environ)
    if writes_json():
        logger.critical("%s", text)
    else:
        sys.stderr.write(f"gptj-predictor: {text}\n")  # at once: threads may log beside it
    return code


def _one_line(text: str) -> str:
    return " ".join(text.split())

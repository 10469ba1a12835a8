"""``gptj-predictor benchmark``, ``benchmark compare`` and ``benchmark report``."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Mapping, Sequence

from gptj_predictor.cli.errors import logger, one_line_errors
from gptj_predictor.cli.flags import (
    ENVIRONMENT_PREFIX,
    Commands,
    OneLineParser,
    add_flags,
    read_given,
    validated,
)
from gptj_predictor.cli.model import find_model
from gptj_predictor.cli.serve import SERVE_SETTINGS
from gptj_predictor.settings import (
    BenchmarkSettings,
    CompareSettings,
    ReportSettings,
    ServerSettings,
)

#: Settings of the server that mean nothing to the engine alone.
ONLY_SERVED = (
    "model_id",
    "max_instances",
    "max_body_bytes",
    "receive_timeout_seconds",
    "api_key_file",  # a flag of the sweep
    "open_metrics",
    "trusted_proxies",
    "cors_origins",
    "log_format",
    "log_prompts",
)

#: Settings of the sweep that may also come from the variable of serve's flag of that name.
FROM_VARIABLES = ("api_key_file",)

DESCRIPTION = """\
Measure how long responses take, by batch and by length, and compare that with the times
published for the service that this one replaces.

Two more commands have a --help of their own:
  benchmark compare   two results, cell by cell; exit code 1 if the second is slower
  benchmark report    write report and picture anew from results.json
"""


def add_benchmark(commands: Commands[OneLineParser], arguments: Sequence[str]) -> None:
    """Add the command, or the one below it that ``arguments`` begin with.

    Only one of the three is there at a time: beside the names of other commands, argparse would
    take the value of an unknown flag for such a name.
    """
    if list(arguments[:2]) == ["benchmark", "compare"]:
        _add_compare(_below_benchmark(commands))
    elif list(arguments[:2]) == ["benchmark", "report"]:
        _add_report(_below_benchmark(commands))
    else:
        _add_sweep(commands)


def _below_benchmark(commands: Commands[OneLineParser]) -> Commands[OneLineParser]:
    parser = commands.add_parser("benchmark", allow_abbrev=False)
    return parser.add_subparsers(required=True, metavar="COMMAND")


def _add_sweep(commands: Commands[OneLineParser]) -> None:
    parser = commands.add_parser(
        "benchmark",
        help="measure responses by batch and length",
        description=DESCRIPTION,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    variables = ", ".join(f"{ENVIRONMENT_PREFIX}{name.upper()}" for name in FROM_VARIABLES)
    sweep = parser.add_argument_group(
        "sweep", f"These have no environment variables but {variables}."
    )
    add_flags(sweep, BenchmarkSettings)
    engine = parser.add_argument_group(
        "engine", f"As for serve, with the same {ENVIRONMENT_PREFIX}FLAG variables."
    )
    add_flags(engine, ServerSettings, without=ONLY_SERVED)
    parser.set_defaults(run=benchmark)


def _add_compare(commands: Commands[OneLineParser]) -> None:
    parser = commands.add_parser(
        "compare",
        help="two results, cell by cell; exit code 1 if the second is slower",
        description="Compare two results.json cell by cell. A cell is slower if its median is more "
        "than THRESHOLD times the other's and every round of it took longer than every round of "
        "the other. The exit code is 1 if a cell is, or the geometric mean of all ratios is above "
        "THRESHOLD.",
        allow_abbrev=False,
    )
    add_flags(parser, CompareSettings)
    parser.set_defaults(run=compare)


def _add_report(commands: Commands[OneLineParser]) -> None:
    parser = commands.add_parser(
        "report",
        help="write report and picture anew from results.json",
        description="Write report and picture anew, beside the results.",
        allow_abbrev=False,
    )
    add_flags(parser, ReportSettings)
    parser.set_defaults(run=report)


def benchmark(flags: argparse.Namespace, environment: Mapping[str, str]) -> None:
    """Measure the sweep and write its results.

    Raises:
        SettingsError: exit code 2.
        StartError: exit code 1.
        SystemExit: a signal ended it; what was measured is kept.
    """
    given = read_given(flags, environment, SERVE_SETTINGS)
    settings = validated(ServerSettings, given)
    shared = {name: given[name] for name in FROM_VARIABLES if name in given}
    plan = validated(BenchmarkSettings, vars(flags) | shared)
    logging.basicConfig(format="%(message)s")
    logger.setLevel(logging.INFO)
    from gptj_predictor.bench.commands import check_reference
    from gptj_predictor.bench.results import read_earlier

    with one_line_errors():
        check_reference(plan.reference)
        earlier = read_earlier(plan.output, resume=plan.resume)
        folder = find_model(settings)
    from gptj_predictor.bench.run import run_benchmark  # takes seconds

    with one_line_errors():
        run_benchmark(plan, settings, folder, earlier)


def compare(flags: argparse.Namespace, _: Mapping[str, str]) -> None:
    """Print the comparison of two results.

    Raises:
        SettingsError: they cannot be compared.
        StartError: the second is slower.
    """
    settings = validated(CompareSettings, vars(flags))
    from gptj_predictor.bench import commands

    with one_line_errors():
        commands.print_comparison(settings.before, settings.after, settings.threshold)


def report(flags: argparse.Namespace, _: Mapping[str, str]) -> None:
    """Write report and picture anew from results.

    Raises:
        SettingsError: the results cannot be read.
        StartError: the report cannot be written.
    """
    settings = validated(ReportSettings, vars(flags))
    from gptj_predictor.bench import commands

    with one_line_errors():
        commands.rewrite_report(settings.results, settings.reference)

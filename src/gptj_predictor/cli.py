"""The ``gptj-predictor`` command: flags become settings, settings become one call."""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import re
import sys
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import NoReturn, TypeVar, cast

from pydantic import BaseModel, ValidationError

from gptj_predictor import __version__
from gptj_predictor.demo import DEMO_SNAPSHOT
from gptj_predictor.devices.precision import Precision
from gptj_predictor.settings import (
    DEFAULT_MODEL_ID,
    MOUNTED_MODEL,
    TAG_PATTERN,
    BenchmarkSettings,
    GenerationParameters,
    Limits,
    ServerSettings,
    wire_name,
)

logger = logging.getLogger("gptj_predictor")

Model = TypeVar("Model", bound=BaseModel)

ENVIRONMENT_PREFIX = "GPTJ_"

#: Kubernetes puts such variables into a pod for every Service in its namespace, and a Service
#: named gptj-predictor would give names that begin as ours do.
SERVICE_LINK = re.compile(r"_SERVICE_(HOST|PORT)(_\w+)?$|_PORT(_\d+_(TCP|UDP|SCTP)(_\w+)?)?$")

#: Settings of the server that mean nothing to the engine alone.
ONLY_SERVED = ("model_id", "max_instances", "max_body_bytes", "receive_timeout_seconds")


class SettingsError(ValueError):
    """Settings that cannot be served; one line for the user."""


class StartError(RuntimeError):
    """The settings are fine and the server cannot start all the same; one line for the user."""


def main(arguments: list[str] | None = None) -> int:
    """Run the command and return its exit code: 0, 1 (could not start) or 2 (wrong settings)."""
    arguments = sys.argv[1:] if arguments is None else arguments
    flags = build_parser(serving=arguments[:1] == ["serve"]).parse_args(arguments)
    try:
        flags.run(flags, os.environ)
    except SettingsError as error:
        return _complain(error, 2)
    except StartError as error:
        return _complain(error, 1)
    except KeyboardInterrupt:
        return 130
    return 0


def build_parser(*, serving: bool = True) -> argparse.ArgumentParser:
    """The whole command line; kserve's flags, which take their time to import, only for serving."""
    parser = _OneLineParser(
        prog="gptj-predictor", description="Serve GPT-J behind KServe's V1 protocol."
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    serve_parser = commands.add_parser(
        "serve",
        help="serve a snapshot over HTTP",
        description="Serve a GPT-J snapshot. A flag wins over its environment variable, which "
        f"wins over the default. The variable of --flag is {ENVIRONMENT_PREFIX}FLAG.",
        parents=[_kserve_parser()] if serving else [],
        allow_abbrev=False,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    _add_flags(serve_parser.add_argument_group("GPT-J predictor"), ServerSettings)
    _add_flags(
        serve_parser.add_argument_group(
            "generation defaults", "Used where a request says nothing; see the README."
        ),
        GenerationParameters,
    )
    # kserve names every model "model"; ours has a better name if none is given.
    serve_parser.set_defaults(run=serve, model_name=None)
    snapshot_parser = commands.add_parser(
        "snapshot", help="the model cache: pull, verify, info, prune", allow_abbrev=False
    )
    _add_snapshot_commands(snapshot_parser.add_subparsers(required=True, metavar="COMMAND"))
    _add_benchmark(commands)
    return parser


def _add_benchmark(commands: argparse._SubParsersAction[_OneLineParser]) -> None:
    parser = commands.add_parser(
        "benchmark",
        help="measure responses by batch and length",
        description="Measure how long responses take, by batch and by length, and compare that "
        "with the times published for the service that this one replaces.",
        allow_abbrev=False,
    )
    sweep = parser.add_argument_group("sweep", "These have no environment variables.")
    _add_flags(sweep, BenchmarkSettings)
    sweep.add_argument("--resume", action="store_true", help="go on with what --output holds")
    engine = parser.add_argument_group(
        "engine", f"As for serve, with the same {ENVIRONMENT_PREFIX}FLAG variables."
    )
    _add_flags(engine, ServerSettings, without=ONLY_SERVED)
    parser.set_defaults(run=benchmark)
    others = parser.add_subparsers(metavar="COMMAND")
    compare = others.add_parser(
        "compare",
        help="two results, cell by cell; exit code 1 if the second is slower",
        description="Compare two results.json cell by cell. A cell is slower if its median is more "
        "than THRESHOLD times the other's and every round of it took longer than every round of "
        "the other. The exit code is 1 if a cell is, or the geometric mean of all ratios is above "
        "THRESHOLD.",
        allow_abbrev=False,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    compare.add_argument("before", type=Path, metavar="A.json", help="results.json")
    compare.add_argument("after", type=Path, metavar="B.json", help="results.json")
    compare.add_argument("--threshold", type=_ratio, default=1.1, help="ratio that is too slow")
    compare.set_defaults(run=_benchmark_command, command="run_compare")
    report = others.add_parser(
        "report", help="write report and picture anew from results.json", allow_abbrev=False
    )
    report.add_argument("results", type=Path, metavar="RESULTS.json", help="results.json")
    report.add_argument(
        "--reference",
        default=BenchmarkSettings.model_fields["reference"].default,
        help="published column to compare with (default: %(default)s)",
    )
    report.set_defaults(run=_benchmark_command, command="run_report")


def _add_snapshot_commands(commands: argparse._SubParsersAction[_OneLineParser]) -> None:
    pull = commands.add_parser(
        "pull",
        help="bring a model of the Hugging Face hub into the cache",
        description="Download a model, convert it to safetensors in one precision, and publish it "
        "whole or not at all. Safe to repeat, to kill, and to run in several pods at once. "
        "HF_TOKEN and HF_ENDPOINT are honoured.",
        allow_abbrev=False,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    pull.add_argument(
        "model_id", nargs="?", default=DEFAULT_MODEL_ID, metavar="MODEL_ID", help="OWNER/NAME"
    )
    pull.add_argument("--revision", default="main", help="branch, tag or commit")
    pull.add_argument(
        "--precision",
        default="auto",
        choices=[str(precision) for precision in Precision],
        help="to store; auto: that of the GPU here, else bfloat16, or the checkpoint's own if "
        "that has 16 bits",
    )
    pull.add_argument("--dest", type=Path, default=MOUNTED_MODEL, help="the cache's folder")
    pull.add_argument(
        "--tag", type=_tag, help="a name for what is pulled; serve --tag waits for just that"
    )
    pull.add_argument("--retries", type=_count, default=6, help="of a file, pauses double from 1 s")
    for flag, text in (
        ("--offline", "use what is there and no network"),
        ("--verify", "read all of a version that is there, and make it anew if it is damaged"),
        ("--keep-source", "keep what was downloaded beside what was made of it"),
    ):
        pull.add_argument(flag, action="store_true", help=text)
    pull.set_defaults(run=_snapshot_command, command="run_pull")
    for name, text in (
        ("verify", "read every byte and compare it with the manifest"),
        ("info", "what is there, and whether it is whole"),
        ("prune", "remove old versions and what killed pulls left; never one in use"),
    ):
        command = commands.add_parser(
            name,
            help=text,
            description=f"{text[0].upper()}{text[1:]}.",
            allow_abbrev=False,
            formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        )
        command.add_argument(
            "folder",
            nargs="?",
            type=Path,
            default=MOUNTED_MODEL,
            metavar="DIR",
            help="a cache, a model's root in it, or one version",
        )
        if name == "info":
            command.add_argument("--json", action="store_true", help="print it as JSON")
        command.set_defaults(run=_snapshot_command, command=f"run_{name}")


def _tag(text: str) -> str:
    if not re.fullmatch(TAG_PATTERN, text):
        raise argparse.ArgumentTypeError(f"{text!r} does not match {TAG_PATTERN}")
    return text


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 0 on")
    return int(text)


def _ratio(text: str) -> float:
    with contextlib.suppress(ValueError):
        if 1 <= float(text) < float("inf"):
            return float(text)
    raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 on")


def _snapshot_command(flags: argparse.Namespace, _: Mapping[str, str]) -> None:
    # These take seconds to import; --help need not wait for them.
    from gptj_predictor.pull import commands
    from gptj_predictor.snapshot.errors import SnapshotError

    try:
        getattr(commands, flags.command)(flags)
    except SnapshotError as error:
        raise StartError(str(error)) from error


def _kserve_parser() -> _OneLineParser:
    """kserve's own flags. It parses the command line when it is imported, with worse errors."""
    arguments, sys.argv = sys.argv, sys.argv[:1]
    try:
        from kserve.model_server import parser
    finally:
        sys.argv = arguments
    return cast("_OneLineParser", parser)


class _OneLineParser(argparse.ArgumentParser):
    """Complains in one line instead of repeating the whole usage."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}; see {self.prog} --help\n")


def _add_flags(
    group: argparse._ArgumentGroup, model: type[BaseModel], without: Collection[str] = ()
) -> None:
    for name, field in model.model_fields.items():
        if name in without:
            continue
        default = "" if field.default is None else f" (default: {field.default})"
        group.add_argument(
            *dict.fromkeys((f"--{name}", f"--{name.replace('_', '-')}")),
            dest=name,
            metavar=name.upper(),
            default=argparse.SUPPRESS,
            help=f"{field.description}{default}".replace("%", "%%"),
            action="append" if name == "stop" else "store",
        )


def read_settings(
    flags: argparse.Namespace, environment: Mapping[str, str]
) -> tuple[ServerSettings, GenerationParameters, str | None]:
    """Settings from flags and environment.

    Returns:
        The server's settings, the generation defaults, and ``--model_name`` if it was given.

    Raises:
        SettingsError: a value is not allowed, contradicts another, or a variable is unknown.
    """
    given = _read_given(flags, environment)
    settings = _validated(ServerSettings, given)
    defaults = _validated(GenerationParameters, given)
    for least, greatest in (("min_length", "max_length"), ("min_new_tokens", "max_new_tokens")):
        low, high = getattr(defaults, least), getattr(defaults, greatest)
        if low is not None and high is not None and low > high:
            raise SettingsError(f"--{least} {low} is above --{greatest} {high}")
    if flags.workers != 1:
        raise SettingsError(
            f"--workers {flags.workers}: one process serves the model; use replicas for more"
        )
    model_name = given.get("model_name")
    return settings, defaults, None if model_name is None else str(model_name)


def _read_given(flags: argparse.Namespace, environment: Mapping[str, str]) -> dict[str, object]:
    """What was said of any setting of ``serve``, as it was said."""
    known = {*ServerSettings.model_fields, *GenerationParameters.model_fields, "model_name"}
    given: dict[str, object] = {}
    for variable, value in environment.items():
        if not variable.startswith(ENVIRONMENT_PREFIX) or SERVICE_LINK.search(variable):
            continue
        name = variable.removeprefix(ENVIRONMENT_PREFIX).lower()
        if name not in known:
            raise SettingsError(f"environment variable {variable} is unknown")
        given[name] = value
    said = {name: getattr(flags, name, None) for name in known}
    return given | {name: value for name, value in said.items() if value is not None}


def _validated(model: type[Model], given: Mapping[str, object]) -> Model:
    try:
        return model.model_validate(
            {name: value for name, value in given.items() if name in model.model_fields}
        )
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        raise SettingsError(f"--{problem['loc'][0]} {problem['input']}: {problem['msg']}") from None


def serve(flags: argparse.Namespace, environment: Mapping[str, str]) -> None:
    """Serve until a signal.

    What can be wrong with the settings or the snapshot's headers is found before a port is bound;
    the weights are loaded while the server already answers its probes.

    Raises:
        SettingsError: exit code 2.
        StartError: exit code 1.
    """
    settings, defaults, name = read_settings(flags, environment)
    from kserve import model_server

    model_server.args = flags  # what it would have parsed itself
    _configure_logging(flags)
    with _start_errors():
        folder = _model_folder(settings)
    # All these take seconds to import; whoever waits for a snapshot need not wait for them first.
    from gptj_predictor.launch import LaunchPlan
    from gptj_predictor.server.app import PredictorServer
    from gptj_predictor.server.generation import TextGenerator
    from gptj_predictor.server.predictor import GPTJPredictor

    with _start_errors():
        plan = LaunchPlan.prepare(folder, settings)
        limits = Limits(
            context=plan.folder.config.n_positions,
            vocabulary=plan.folder.config.vocab_size,
            max_instances=settings.max_instances,
            max_body_bytes=settings.max_body_bytes,
        )
        predictor = GPTJPredictor(
            name or wire_name(settings.model_id),
            defaults=_fit_defaults(defaults, limits),
            limits=limits,
            load=lambda: TextGenerator(plan.start_engine(), plan.tokenizer),
        )
        server = PredictorServer(
            predictor, flags, receive_timeout_seconds=settings.receive_timeout_seconds
        )
        server.run()


def benchmark(flags: argparse.Namespace, environment: Mapping[str, str]) -> None:
    """Measure the sweep and write its results.

    Raises:
        SettingsError: exit code 2.
        StartError: exit code 1.
        SystemExit: a signal ended it; what was measured is kept.
    """
    plan = _validated(BenchmarkSettings, vars(flags))
    settings = _validated(ServerSettings, _read_given(flags, environment))
    logging.basicConfig(format="%(message)s")
    logger.setLevel(logging.INFO)
    from gptj_predictor.bench.commands import check_reference
    from gptj_predictor.bench.results import read_earlier

    with _start_errors():
        check_reference(plan.reference)
        earlier = read_earlier(plan.output, resume=flags.resume)
        folder = _model_folder(settings)
    from gptj_predictor.bench.run import run_benchmark  # takes seconds

    with _start_errors():
        run_benchmark(plan, settings, folder, earlier)


def _benchmark_command(flags: argparse.Namespace, _: Mapping[str, str]) -> None:
    from gptj_predictor.bench import commands

    with _start_errors():
        getattr(commands, flags.command)(flags)


@contextlib.contextmanager
def _start_errors() -> Iterator[None]:
    """Give what can be wrong with settings, devices and snapshots its exit code."""
    from gptj_predictor.bench.errors import PlanError
    from gptj_predictor.snapshot.errors import SnapshotError

    try:
        yield
    except (SettingsError, StartError):
        raise
    except (SnapshotError, OSError, MemoryError, RuntimeError) as error:
        logger.debug("the start failed", exc_info=True)
        raise StartError(str(error) or type(error).__name__) from error
    except PlanError as error:
        raise SettingsError(str(error)) from error
    except ValueError as error:
        # These take seconds to import, where that has not happened yet.
        from gptj_predictor.devices.placement import DeviceError
        from gptj_predictor.devices.precision import PrecisionError
        from gptj_predictor.tokenizer import TokenizerError

        if isinstance(error, DeviceError | PrecisionError):
            raise SettingsError(str(error)) from error
        if isinstance(error, TokenizerError):
            raise StartError(str(error)) from error
        raise


def _model_folder(settings: ServerSettings) -> Path:
    from gptj_predictor.snapshot.wait import wait_for_snapshot

    if settings.model is None and settings.tag is None and not settings.cache.is_dir():
        logger.warning(
            "no --model given and nothing is mounted at %s: this is the bundled DEMO, a toy of a "
            "few million parameters that shows the interface and not GPT-J-6B's answers",
            settings.cache,
        )
        return DEMO_SNAPSHOT
    model = str(settings.cache) if settings.model is None else settings.model
    return wait_for_snapshot(model, settings.cache, settings.wait_for_snapshot, settings.tag)


def _fit_defaults(defaults: GenerationParameters, limits: Limits) -> GenerationParameters:
    """The generation defaults within the model's limits.

    Raises:
        SettingsError: a default that was set is beyond them.
    """
    # The built-in max_length and top_k are for GPT-J-6B; a smaller model has less of both.
    fitted = defaults.model_copy(
        update={
            name: min(getattr(defaults, name), greatest)
            for name, greatest in (("max_length", limits.context), ("top_k", limits.vocabulary))
            if name not in defaults.model_fields_set
        }
    )
    exceeded = limits.exceeded_by(fitted)
    if exceeded is not None:
        raise SettingsError(
            f"--{exceeded} {getattr(fitted, exceeded)} is not allowed with this model; "
            f"use {limits.allowed()[exceeded]}"
        )
    return fitted


def _configure_logging(flags: argparse.Namespace) -> None:
    if not flags.configure_logging:
        return
    from kserve import logging as kserve_logging

    kserve_logging.configure_logging(flags.log_config_file)
    if not logger.handlers:  # a log_config_file may have given us our own
        for handler in kserve_logging.logger.handlers:
            logger.addHandler(handler)
        logger.setLevel(kserve_logging.logger.level)
        logger.propagate = False


def _complain(error: Exception, code: int) -> int:
    text = " ".join(str(error).split())
    print(f"gptj-predictor: {text}", file=sys.stderr)
    return code

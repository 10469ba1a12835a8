"""``gptj-predictor snapshot``: the model cache."""

from __future__ import annotations

import argparse
import contextlib
import logging
import signal
from collections.abc import Callable, Iterator, Mapping
from typing import NoReturn

from pydantic import BaseModel

from gptj_predictor.cli.errors import StartError
from gptj_predictor.cli.flags import Commands, OneLineParser, add_flags, validated
from gptj_predictor.settings import InfoSettings, PullSettings, SnapshotSettings

Run = Callable[[argparse.Namespace, Mapping[str, str]], None]


def add_snapshot(commands: Commands[OneLineParser]) -> None:
    """Add the command and those below it."""
    parser = commands.add_parser(
        "snapshot", help="the model cache: pull, verify, info, prune", allow_abbrev=False
    )
    below = parser.add_subparsers(required=True, metavar="COMMAND")
    _add(
        below,
        "pull",
        PullSettings,
        pull,
        summary="bring a model of the Hugging Face hub into the model cache",
        description="Download a model, convert it to safetensors in one precision, and publish it "
        "whole or not at all. Safe to repeat, to kill, and to run in several pods at once. "
        "HF_TOKEN and HF_ENDPOINT are honored.",
    )
    _add(
        below,
        "verify",
        SnapshotSettings,
        verify,
        summary="read every byte and compare it with the manifest",
    )
    _add(below, "info", InfoSettings, info, summary="what is there, and whether it is whole")
    _add(
        below,
        "prune",
        SnapshotSettings,
        prune,
        summary="remove old versions and what killed pulls left; never one in use",
    )


def _add(
    commands: Commands[OneLineParser],
    name: str,
    settings: type[BaseModel],
    run: Run,
    *,
    summary: str,
    description: str | None = None,
) -> None:
    parser = commands.add_parser(
        name,
        help=summary,
        description=description or f"{summary[0].upper()}{summary[1:]}.",
        allow_abbrev=False,
    )
    add_flags(parser, settings)
    parser.set_defaults(run=run)


def pull(flags: argparse.Namespace, _: Mapping[str, str]) -> None:
    """Pull a model and print the folder of its version.

    Raises:
        SettingsError: exit code 2.
        StartError: exit code 1.
        SystemExit: SIGTERM ended it.
    """
    settings = validated(PullSettings, vars(flags))
    with _one_line_errors():
        from gptj_predictor.pull import pull as pulling

        # Kubernetes ends a Job's pod with SIGTERM: let the lease go, and do not look successful.
        signal.signal(signal.SIGTERM, _stop)
        # The client's own warnings repeat what the progress lines say, in several lines each.
        logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
        request = pulling.PullRequest(
            model_id=settings.model_id,
            revision=settings.revision,
            precision=settings.precision,
            quantization=settings.quantization,
            cache=settings.dest,
            offline=settings.offline,
            keep_source=settings.keep_source,
            verify=settings.verify,
            retries=settings.retries,
            tag=settings.tag,
        )
        print(pulling.pull(request))


def _stop(number: int, _: object) -> NoReturn:
    raise SystemExit(128 + number)


def verify(flags: argparse.Namespace, _: Mapping[str, str]) -> None:
    """Read everything and compare it with the manifests.

    Raises:
        StartError: something is damaged.
    """
    settings = validated(SnapshotSettings, vars(flags))
    with _one_line_errors():
        from gptj_predictor.cli.snapshot_output import print_verdicts

        print_verdicts(settings.folder)


def info(flags: argparse.Namespace, _: Mapping[str, str]) -> None:
    """Print what is there.

    Raises:
        StartError: nothing of it can be served.
    """
    settings = validated(InfoSettings, vars(flags))
    with _one_line_errors():
        from gptj_predictor.cli.snapshot_output import print_info

        print_info(settings.folder, as_json=settings.as_json)


def prune(flags: argparse.Namespace, _: Mapping[str, str]) -> None:
    """Remove old versions and unfinished work, and print what went.

    Raises:
        StartError: it may not be removed.
    """
    settings = validated(SnapshotSettings, vars(flags))
    with _one_line_errors():
        from gptj_predictor.cli.snapshot_output import prune_and_print

        prune_and_print(settings.folder)


@contextlib.contextmanager
def _one_line_errors() -> Iterator[None]:
    from gptj_predictor.snapshot.errors import SnapshotError

    try:
        yield
    except SnapshotError as error:
        raise StartError(str(error)) from error

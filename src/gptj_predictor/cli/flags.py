"""From a settings class to flags, and from flags and environment to settings."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Collection, Mapping
from typing import Any, NoReturn, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from gptj_predictor.cli.errors import SettingsError
from gptj_predictor.settings.metadata import (
    Positional,
    RequestOnly,
    Switch,
    allowed_values,
    default_in_words,
    marker,
)

Settings = TypeVar("Settings", bound=BaseModel)

ENVIRONMENT_PREFIX = "GPTJ_"

#: Kubernetes puts such variables into a pod for every Service in its namespace, and a Service
#: named gptj-predictor would give names that begin as ours do.
SERVICE_LINK = re.compile(r"_SERVICE_(HOST|PORT)(_\w+)?$|_PORT(_\d+_(TCP|UDP|SCTP)(_\w+)?)?$")


class UsageError(SystemExit):
    """The command line makes no sense; ``line`` says why, and has been printed."""

    def __init__(self, line: str) -> None:
        super().__init__(2)
        self.line = line


class OneLineParser(argparse.ArgumentParser):
    """Complains in one line instead of repeating the whole usage."""

    def error(self, message: str) -> NoReturn:
        """Print the line and end with exit code 2.

        Raises:
            UsageError: always.
        """
        line = f"{self.prog}: {message}; see {self.prog} --help"
        print(line, file=sys.stderr)
        raise UsageError(line)


#: Where a command is added; argparse has no public name for the type.
Commands = argparse._SubParsersAction


def spelling(name: str, field: FieldInfo) -> str:
    """How a field is given on the command line: ``--top_k``, or ``MODEL_ID`` without a flag."""
    positional, switch = marker(field, Positional), marker(field, Switch)
    if positional is not None:
        return positional.metavar
    return f"--{name if switch is None or switch.name is None else switch.name}"


def add_flags(
    group: argparse._ActionsContainer, settings: type[BaseModel], without: Collection[str] = ()
) -> None:
    """Add an argument for every field of a settings class; values stay text until they are read.

    A flag is accepted with underscores and with hyphens. What is not given is missing from the
    result of parsing, so that the environment and the default have their turn.
    """
    for name, field in flag_fields(settings).items():
        if name not in without:
            _add_flag(group, name, field)


def flag_fields(settings: type[BaseModel]) -> dict[str, FieldInfo]:
    """The fields of a settings class that have a flag."""
    fields = settings.model_fields.items()
    return {name: field for name, field in fields if marker(field, RequestOnly) is None}


def _add_flag(group: argparse._ActionsContainer, name: str, field: FieldInfo) -> None:
    spelled = spelling(name, field)
    options: dict[str, Any] = {"default": argparse.SUPPRESS, "help": _help(field)}
    if marker(field, Positional) is not None:
        nargs = None if field.is_required() else "?"
        group.add_argument(name, metavar=spelled, nargs=nargs, **options)
        return
    if marker(field, Switch) is not None:
        options["action"] = "store_true"
    else:
        options["metavar"] = name.upper()
        options["action"] = "append" if name == "stop" else "store"
    group.add_argument(
        *dict.fromkeys((spelled, f"--{spelled[2:].replace('_', '-')}")), dest=name, **options
    )


def _help(field: FieldInfo) -> str:
    notes = []
    if marker(field, Switch) is None:
        allowed, default = allowed_values(field), default_in_words(field)
        if allowed not in ("a string", "a path"):
            notes.append(f"allowed: {allowed}")
        if default is not None:
            notes.append(f"default: {default}")
    text = f"{field.description} ({'; '.join(notes)})" if notes else f"{field.description}"
    return text.replace("%", "%%")


def read_given(
    flags: argparse.Namespace, environment: Mapping[str, str], known: Collection[str]
) -> dict[str, object]:
    """What was said of any setting of ``serve``, as it was said; a flag wins over its variable.

    Args:
        flags: The parsed command line.
        environment: Variables; those with our prefix are settings.
        known: Names of all settings that may be in either.

    Raises:
        SettingsError: a variable with our prefix is no setting.
    """
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


def validated(settings: type[Settings], given: Mapping[str, object]) -> Settings:
    """Settings from what was given; names of other settings classes are passed over.

    Raises:
        SettingsError: a value is not allowed; the text has its flag and the value.
    """
    fields = settings.model_fields
    try:
        return settings.model_validate(
            {name: value for name, value in given.items() if name in fields}
        )
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        name = str(problem["loc"][0])
        raise SettingsError(
            f"{spelling(name, fields[name])} {problem['input']}: {problem['msg']}"
        ) from None

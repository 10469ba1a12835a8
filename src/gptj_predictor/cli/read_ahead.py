"""The very first thing that ``serve`` does: have its weights read while Python imports."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence

from gptj_predictor.cli.errors import SettingsError, logger
from gptj_predictor.cli.flags import add_flags, read_given, validated
from gptj_predictor.cli.serve import SERVE_SETTINGS
from gptj_predictor.settings import ServerSettings

#: Of the memory that is free, how much may be read ahead: the rest is for the weights themselves.
READ_AHEAD_SHARE = 0.5

#: The settings that say which snapshot it is.
_WHICH = {"model", "cache", "tag"}


def read_weights_ahead(arguments: Sequence[str], environment: Mapping[str, str]) -> None:
    """Begin to read the snapshot that ``serve`` will find, if it is there already.

    It looks at a few flags before kserve's parser is imported, which takes a second. Whatever is
    wrong with them or the snapshot is not said here: ``serve`` says it.
    """
    from gptj_predictor.devices.host import free_memory
    from gptj_predictor.snapshot.cache import find_snapshot
    from gptj_predictor.snapshot.errors import SnapshotError
    from gptj_predictor.snapshot.read_ahead import read_ahead

    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    add_flags(parser, ServerSettings, without=ServerSettings.model_fields.keys() - _WHICH)
    try:
        flags, _ = parser.parse_known_args(arguments)
        given = read_given(flags, environment, SERVE_SETTINGS)
        settings = validated(ServerSettings, {name: given[name] for name in _WHICH & given.keys()})
        model = str(settings.cache) if settings.model is None else settings.model
        folder = find_snapshot(model, settings.cache, settings.tag)
        read_ahead(folder, int(free_memory() * READ_AHEAD_SHARE))
    except (argparse.ArgumentError, SettingsError, SnapshotError, OSError) as error:
        logger.debug("nothing is read ahead: %s", error)

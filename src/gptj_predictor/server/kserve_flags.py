"""kserve's own flags: it parses the command line when it is imported.

kserve's parser would end the process over our commands and flags, and its errors repeat the whole
usage. So it is imported here first, with no command line to see, and gets its flags afterwards.

With it comes fastapi, and with that ``opentelemetry.propagate``, which cannot be imported while
``OTEL_PROPAGATORS`` names a propagator that is not installed.
"""

from __future__ import annotations

import argparse
import importlib
import logging
import os
import sys

_bad_propagators: str | None = None
try:
    importlib.import_module("opentelemetry.propagate")
except Exception as error:
    if os.environ.pop("OTEL_PROPAGATORS", None) is None:
        raise
    _bad_propagators = str(error)

# gRPC's core would write into the log of every failed handshake, in lines of its own form.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")

_arguments, sys.argv = sys.argv, sys.argv[:1]
try:
    from kserve import logging as kserve_logging
    from kserve import model_server
finally:
    sys.argv = _arguments

logger = logging.getLogger("gptj_predictor")


def kserve_parser() -> argparse.ArgumentParser:
    """The parser of kserve's flags, as a parent for ours."""
    parser: argparse.ArgumentParser = model_server.parser
    return parser


def use_flags(flags: argparse.Namespace) -> None:
    """Give kserve its flags, and set up its log and ours as they say."""
    model_server.args = flags  # what it would have parsed itself
    if not flags.configure_logging:
        return
    kserve_logging.configure_logging(flags.log_config_file)
    if not logger.handlers:  # a log_config_file may have given us our own
        for handler in kserve_logging.logger.handlers:
            logger.addHandler(handler)
        logger.setLevel(kserve_logging.logger.level)
        logger.propagate = False
    if _bad_propagators is not None:
        logger.warning("OTEL_PROPAGATORS is left out: %s", _bad_propagators)

"""``gptj-predictor serve``."""

from __future__ import annotations

import argparse
import gc
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, cast

from gptj_predictor.cli.errors import SettingsError, logger, one_line_errors
from gptj_predictor.cli.flags import (
    ENVIRONMENT_PREFIX,
    Commands,
    OneLineParser,
    add_flags,
    flag_fields,
    read_given,
    validated,
)
from gptj_predictor.cli.model import find_model
from gptj_predictor.cli.traces import start_traces
from gptj_predictor.common.phases import Phase, Phases, process_seconds
from gptj_predictor.settings import (
    GenerationParameters,
    Limits,
    LogFormat,
    OrderError,
    ServerSettings,
    wire_name,
)

if TYPE_CHECKING:
    from gptj_predictor.chat_template import ChatTemplate
    from gptj_predictor.server.access import Access

#: Every setting that a flag or a variable of ``serve`` may have.
SERVE_SETTINGS = (
    *ServerSettings.model_fields,
    *flag_fields(GenerationParameters),
    "model_name",
)


def add_serve(commands: Commands[OneLineParser], arguments: Sequence[str]) -> None:
    """Add the command; with kserve's flags, which take a second to import, only if it is meant."""
    parents: list[OneLineParser] = []
    if "serve" in arguments[:1]:
        from gptj_predictor.server.kserve_flags import kserve_parser

        # argparse wants a parent of the same class; it only copies its flags.
        parents.append(cast("OneLineParser", kserve_parser()))
    parser = commands.add_parser(
        "serve",
        help="serve a snapshot over HTTP",
        description="Serve a GPT-J snapshot. A flag wins over its environment variable, which "
        f"wins over the default. The variable of --flag is {ENVIRONMENT_PREFIX}FLAG.",
        parents=parents,
        allow_abbrev=False,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add_flags(parser.add_argument_group("GPT-J predictor"), ServerSettings)
    add_flags(
        parser.add_argument_group("generation defaults", "Used where a request says nothing."),
        GenerationParameters,
    )
    # kserve names every model "model"; ours has a better name if none is given.
    parser.set_defaults(run=serve, model_name=None)


def read_settings(
    flags: argparse.Namespace, environment: Mapping[str, str]
) -> tuple[ServerSettings, GenerationParameters, str | None]:
    """Settings from flags and environment.

    Returns:
        The server's settings, the generation defaults, and ``--model_name`` if it was given.

    Raises:
        SettingsError: a value is not allowed, contradicts another, or a variable is unknown.
    """
    given = read_given(flags, environment, SERVE_SETTINGS)
    settings = validated(ServerSettings, given)
    if settings.drain_delay >= settings.grace_period:
        raise SettingsError(
            f"--drain_delay {settings.drain_delay:g} is not below --grace_period "
            f"{settings.grace_period:g}: running texts would have no time to end"
        )
    defaults = validated(GenerationParameters, given)
    try:
        defaults.lengths.check_order()
    except OrderError as error:
        raise SettingsError(
            f"--{error.parameter} {error.minimum} is above --{error.maximum_name} {error.maximum}"
        ) from error
    if flags.workers != 1:
        raise SettingsError(
            f"--workers {flags.workers}: one process serves the model; use replicas for more"
        )
    _check_log_flags(settings, flags)
    model_name = given.get("model_name")
    return settings, defaults, None if model_name is None else str(model_name)


def _check_log_flags(settings: ServerSettings, flags: argparse.Namespace) -> None:
    if settings.log_format is LogFormat.TEXT:
        return
    for flag, others in (("configure_logging", True), ("log_config_file", None)):
        value = getattr(flags, flag)
        if value != others:
            raise SettingsError(
                f"--log_format {settings.log_format} and --{flag} {value} both decide what the log "
                "looks like; give one of them"
            )


def serve(flags: argparse.Namespace, environment: Mapping[str, str]) -> None:
    """Serve until a signal.

    What can be wrong with the settings or the snapshot's headers is found before a port is bound;
    the weights are loaded while the server already answers its probes.

    Raises:
        SettingsError: exit code 2.
        StartError: exit code 1.
    """
    # Until the model is loaded almost nothing becomes garbage, and looking for it takes time.
    gc.disable()
    settings, defaults, name = read_settings(flags, environment)
    from gptj_predictor.cli.logs import use_json_lines
    from gptj_predictor.server.kserve_flags import use_flags
    from gptj_predictor.server.tls import CertificateFiles

    use_flags(flags)
    as_json = settings.log_format is LogFormat.JSON
    if as_json:
        use_json_lines()
    with one_line_errors():
        CertificateFiles.of(flags)
    access = open_access(settings)
    # Find the snapshot before the long imports: it may take a pull's time to appear.
    phases = Phases()
    phases.add(Phase.IMPORTS, process_seconds())
    with one_line_errors(), phases.measure(Phase.SNAPSHOT_WAIT):
        folder = find_model(settings)
    with phases.measure(Phase.IMPORTS):
        from gptj_predictor.launch import LaunchPlan
        from gptj_predictor.server.active_requests import ActiveRequests
        from gptj_predictor.server.admission import Admission
        from gptj_predictor.server.drain import Drain
        from gptj_predictor.server.generation import TextGenerator
        from gptj_predictor.server.predictor import GPTJPredictor
        from gptj_predictor.server.process import PredictorServer

    if as_json:
        use_json_lines()
    with one_line_errors():
        plan = LaunchPlan.prepare(folder, settings, phases)
        limits = Limits(
            context=plan.folder.config.n_positions,
            vocabulary=plan.folder.config.vocab_size,
            max_instances=settings.max_instances,
            max_body_bytes=settings.max_body_bytes,
        )
        admission = Admission(settings.max_queued_requests, settings.max_queued_tokens)
        requests = ActiveRequests(admission, settings.max_request_seconds)
        drain = Drain(
            requests, delay_seconds=settings.drain_delay, grace_seconds=settings.grace_period
        )

        def load() -> TextGenerator:
            generator = TextGenerator(plan.start_engine(), plan.tokenizer)
            gc.collect()
            gc.freeze()  # a look at all that is there now would stop everything for 0.2 s
            gc.enable()
            phases.finish()
            logger.info("ready %.2f s after the process began: %s", phases.total, phases)
            return generator

        predictor = GPTJPredictor(
            name or wire_name(settings.model_id),
            model_id=settings.model_id,
            defaults=fit_defaults(defaults, limits),
            limits=limits,
            requests=requests,
            drain=drain,
            load=load,
            chat_template=read_chat_template(settings, plan.tokenizer.special_tokens),
        )
        traces = start_traces(environment)
        server = PredictorServer(
            predictor, drain, flags, settings, phases, access=access, traces=traces
        )
        server.run()


def read_chat_template(
    settings: ServerSettings, special_tokens: Mapping[str, str]
) -> ChatTemplate | None:
    """Makes prompts of chats.

    Raises:
        SettingsError: the file cannot be read, or has no template.
    """
    from gptj_predictor.chat_template import ChatTemplate, ChatTemplateError

    file = settings.chat_template
    try:
        return None if file is None else ChatTemplate.read(file, special_tokens)
    except ChatTemplateError as error:
        raise SettingsError(f"--chat_template {file}: {error}") from error


def open_access(settings: ServerSettings) -> Access:
    """Who may ask.

    Raises:
        SettingsError: the file with the keys cannot be read, or has no usable key.
    """
    from gptj_predictor.common.key_file import KeyFileError
    from gptj_predictor.server.access import Access
    from gptj_predictor.server.api_keys import ApiKeys

    path = settings.api_key_file
    try:
        keys = None if path is None else ApiKeys(path)
    except KeyFileError as error:
        raise SettingsError(f"--api_key_file {path}: {error}") from error
    return Access(keys, open_metrics=settings.open_metrics, proxies=settings.proxies)


def fit_defaults(defaults: GenerationParameters, limits: Limits) -> GenerationParameters:
    """The generation defaults within the model's limits.

    Raises:
        SettingsError: a default that was set is beyond them.
    """
    fitted = limits.shrink_defaults(defaults)
    exceeded = limits.exceeded_by(fitted)
    if exceeded is not None:
        raise SettingsError(
            f"--{exceeded} {getattr(fitted, exceeded)} is not allowed with this model; "
            f"use {limits.allowed()[exceeded]}"
        )
    return fitted

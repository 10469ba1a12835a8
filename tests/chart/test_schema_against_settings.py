"""The chart's schema allows what the program's settings allow, value by value.

FLAGS is the one place that says which value becomes which flag, and which setting that is. Tests
compare it with what the chart renders and with the settings.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field

import helm_python
import pytest
import yaml
from pydantic import BaseModel
from transformers import GPTJConfig

from gptj_predictor import settings
from gptj_predictor.settings import (
    BenchmarkSettings,
    CompareSettings,
    GenerationParameters,
    InfoSettings,
    Limits,
    PullSettings,
    ReportSettings,
    ServerSettings,
    SnapshotSettings,
)
from tests.support.chart_values import MANY
from tests.support.charts import CHART, Release, Values, nested, render

CONTEXT, VOCABULARY = GPTJConfig().n_positions, GPTJConfig().vocab_size

#: The program's commands that the chart runs.
SERVE, PULL, BENCHMARK = "serve", "snapshot pull", "benchmark"

#: In :attr:`Flag.differs`: whatever the chart has.
ANY = object()


@dataclass(frozen=True)
class Flag:
    """A value of the chart that becomes a flag.

    Attributes:
        path: The value.
        name: The flag; empty for the positional model id.
        commands: The commands that get it.
        example: A value that is not the default.
        setting: Class and field of the setting; none if no class has it.
        differs: Keywords that are not the field's in the schema, and what they are there.
    """

    path: str
    name: str
    commands: tuple[str, ...]
    example: object
    setting: tuple[type[BaseModel], str] | None = None
    differs: Values = field(default_factory=dict)


def default_of_requests(name: str, example: object, **differs: object) -> Flag:
    """A value of ``model.defaults``, which has the name of its flag."""
    setting = (GenerationParameters, name)
    return Flag(f"model.defaults.{name}", f"--{name}", (SERVE,), example, setting, differs)


FLAGS = [
    # The chart's model is from the hub. The setting may also be a folder.
    Flag(
        "model.id",
        "--model",
        (SERVE, BENCHMARK),
        "a/b",
        (ServerSettings, "model"),
        {"pattern": ANY, "default": settings.DEFAULT_MODEL_ID},
    ),
    Flag("model.id", "", (PULL,), "a/b", (PullSettings, "model_id"), {"pattern": ANY}),
    Flag(
        "model.revision",
        "--revision",
        (PULL,),
        "v1",
        (PullSettings, "revision"),
        {"pattern": ANY},
    ),
    Flag("model.name", "--model_name", (SERVE,), "mine"),
    Flag(
        "model.precision",
        "--precision",
        (SERVE, PULL, BENCHMARK),
        "bfloat16",
        (ServerSettings, "precision"),
    ),
    Flag(
        "model.quantization",
        "--quantization",
        (SERVE, PULL, BENCHMARK),
        "int8",
        (ServerSettings, "quantization"),
    ),
    # The fields do not know the model's own limits.
    default_of_requests("min_length", 7, maximum=CONTEXT),
    default_of_requests("max_length", 700, maximum=CONTEXT),
    default_of_requests("top_k", 7, maximum=VOCABULARY),
    default_of_requests("temperature", 0.25),
    default_of_requests("top_p", 0.001),
    default_of_requests("repetition_penalty", 1.5),
    Flag(
        "queue.maxRequests",
        "--max_queued_requests",
        (SERVE,),
        7,
        (ServerSettings, "max_queued_requests"),
    ),
    Flag(
        "queue.maxTokens",
        "--max_queued_tokens",
        (SERVE,),
        1_000_000,
        (ServerSettings, "max_queued_tokens"),
    ),
    Flag("drainDelaySeconds", "--drain_delay", (SERVE,), 2.5, (ServerSettings, "drain_delay")),
    Flag(
        "metrics.compat", "--metrics_compat", (SERVE,), "vllm", (ServerSettings, "metrics_compat")
    ),
    Flag("logFormat", "--log_format", (SERVE,), "json", (ServerSettings, "log_format")),
    # 0 is for no benchmark.
    Flag(
        "benchmark.batchSize",
        "--batch-size",
        (BENCHMARK,),
        1_000_000,
        (BenchmarkSettings, "batch_size"),
        {"minimum": 0, "default": 0},
    ),
    Flag(
        "benchmark.warmupRounds",
        "--warmup-rounds",
        (BENCHMARK,),
        1_000_000,
        (BenchmarkSettings, "warmup_rounds"),
    ),
]

#: Flags that no single value decides.
DERIVED = {
    SERVE: {
        "--wait_for_snapshot",
        "--http_port",
        "--enable_grpc",
        "--grpc_port",
        "--tag",
        "--device",
        "--max_request_seconds",
        "--grace_period",
        "--trusted_proxies",
        "--api_key_file",
        "--open_metrics",
        "--ssl_certfile",
        "--ssl_keyfile",
    },
    PULL: {"--dest", "--tag", "--verify"},
    BENCHMARK: {"--wait_for_snapshot", "--tag", "--device", "--output", "--resume"},
}

#: Settings without a value of their own; extraArgs, extraEnv and benchmark.extraArgs can set them.
UNMAPPED: dict[type[BaseModel], set[str]] = {
    GenerationParameters: {
        "min_new_tokens",
        "max_new_tokens",
        "do_sample",
        "seed",
        "num_return_sequences",
        "stop",
        "return_full_text",
        "min_p",
        "typical_p",
        "presence_penalty",
        "frequency_penalty",
        "logit_bias",
        "stop_token_ids",
        "ignore_eos",
        "logprobs",
        "details",
    },
    ServerSettings: {
        "cache",  # where the volume is mounted
        "tag",  # made from revision, precision and quantization of model
        "chat_template",  # a file that whoever wants it has to mount
        "wait_for_snapshot",  # made from progressDeadline and probes.startup
        "model_id",  # only for --model_name, which the chart always gives
        "check_digests",
        "device",  # made from gpu.count
        "threads",
        "max_batch_size",
        "max_prefill_tokens",
        "page_size",
        "kv_cache_share",
        "kv_cache_gib",
        "enable_prefix_caching",
        "cuda_graphs",
        "max_instances",
        "max_body_bytes",
        "receive_timeout_seconds",
        "max_request_seconds",  # made from timeoutSeconds
        "grace_period",  # made from terminationGracePeriodSeconds or timeoutSeconds
        "trusted_proxies",  # made from the list trustedProxies
        "api_key_file",  # where apiKeys.existingSecret is mounted
        "open_metrics",  # apiKeys.openMetrics, which without keys means nothing
        "step_timeout_seconds",
        "cors_origins",
        "log_prompts",
    },
    BenchmarkSettings: {
        "output",  # a folder of the volume
        "min_tokens",
        "max_tokens",
        "step",
        "prompt_tokens",
        "rounds",
        "seed",
        "url",
        "stream",
        "api_key_file",  # for url alone
        "ca_file",
        "reference",
        "resume",  # always given: a Job may be started again
    },
    PullSettings: {
        "precision",  # model.precision too
        "quantization",  # model.quantization too
        "dest",  # where the volume is mounted
        "tag",  # made from revision, precision and quantization of model
        "retries",
        "offline",
        "verify",  # download.verify, which is any text
        "keep_source",
    },
}

#: Of commands that the chart does not run.
NOT_RUN = {CompareSettings, InfoSettings, ReportSettings, SnapshotSettings}

KEYWORDS = {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "enum", "pattern", "type"}

SCHEMA = json.loads((CHART / "values.schema.json").read_text())
DEFAULTS = yaml.safe_load((CHART / "values.yaml").read_text())


def arguments(release: Release, command: str) -> list[str]:
    """What the container of a command gets after the command; nothing if there is none."""
    words = command.split()
    if command == SERVE:
        pods = [release.predictor] if release.has("InferenceService") else []
    else:
        pods = [job["spec"]["template"]["spec"] for job in release.all("Job")]
    for pod in pods:
        [container] = pod["containers"]
        if container["args"][: len(words)] == words:
            return [str(one) for one in container["args"][len(words) :]]
    return []


def keywords(schema: Values, definitions: Values) -> Values:
    """The keywords that a value must meet unless it is null."""
    if "$ref" in schema:
        schema = definitions[schema["$ref"].rpartition("/")[2]]
    found = {key: value for key, value in schema.items() if key in KEYWORDS}
    if isinstance(found.get("type"), list):
        [found["type"]] = set(found["type"]) - {"null"}
    options = [one for one in schema.get("anyOf", []) if one.get("type") != "null"]
    if len(options) == 1:
        found |= keywords(options[0], definitions)
    elif options:  # ranges: from where the first begins to where the last ends
        found["minimum"] = min(one["minimum"] for one in options)
        found["maximum"] = max(one["maximum"] for one in options)
    return found


def of_value(path: str) -> Values:
    """Keywords and default of a value of the chart."""
    schema, default = SCHEMA, DEFAULTS
    for key in path.split("."):
        schema, default = schema["properties"][key], default[key]
    return {**keywords(schema, SCHEMA["definitions"]), "default": default}


def of_setting(model: type[BaseModel], name: str) -> Values:
    """Keywords and default of a setting."""
    schema = model.model_json_schema()
    one = schema["properties"][name]
    return {**keywords(one, schema.get("$defs", {})), "default": one["default"]}


def shown(flag: Flag) -> str:
    return f"{flag.path} {flag.name}".strip()


@pytest.mark.parametrize("flag", FLAGS, ids=shown)
def test_the_value_becomes_the_flag(flag: Flag) -> None:
    release = render(MANY, {"benchmark": {"batchSize": 1}}, nested(flag.path, flag.example))
    for command in (SERVE, PULL, BENCHMARK):
        given = arguments(release, command)
        assert given
        if command in flag.commands:
            value = given[given.index(flag.name) + 1] if flag.name else given[0]
            assert value == str(flag.example)
        else:
            assert flag.name not in given


@pytest.mark.parametrize("command", [SERVE, PULL, BENCHMARK])
@pytest.mark.slow
def test_every_flag_is_listed(releases: dict[str, Release], command: str) -> None:
    extra = {SERVE: "--max_batch_size", BENCHMARK: "--rounds", PULL: ""}[command]  # extraArgs
    given = {
        argument
        for release in releases.values()
        for argument in arguments(release, command)
        if argument.startswith("--")
    }
    listed = {flag.name for flag in FLAGS if command in flag.commands} | DERIVED[command]
    assert given - {extra} == listed - {""}


@pytest.mark.parametrize("flag", [flag for flag in FLAGS if flag.setting], ids=shown)
def test_the_schema_has_the_settings_limits(flag: Flag) -> None:
    assert flag.setting
    value, setting = of_value(flag.path), of_setting(*flag.setting)
    if value["default"] is None:  # the server's own
        del value["default"], setting["default"]
    for key, wanted in flag.differs.items():
        assert setting.get(key) != wanted, f"{key} does not differ"
        setting[key] = value[key] if wanted is ANY else wanted
    assert value == setting


@pytest.mark.parametrize("name", DEFAULTS["model"]["defaults"])
def test_the_readme_says_the_limits(name: str) -> None:
    path = f"model.defaults.{name}"
    [row] = re.findall(rf"^\| `{path}` .*$", (CHART / "README.md").read_text(), re.MULTILINE)
    limits = [value for key, value in of_value(path).items() if "imum" in key]
    assert len(limits) == 2
    for limit in limits:
        assert re.search(rf"(?<![\d.]){re.escape(str(limit))}(?![\d]|\.\d)", row), limit


def test_every_setting_has_a_value_or_is_listed() -> None:
    """If this fails for a new setting: give it a value of the chart, or add it to UNMAPPED."""
    classes = [one for one in vars(settings).values() if isinstance(one, type)]
    models = {one for one in classes if issubclass(one, BaseModel)} - NOT_RUN
    assert set(UNMAPPED) <= models
    for model in models:
        mapped = {flag.setting[1] for flag in FLAGS if flag.setting and flag.setting[0] is model}
        unmapped = UNMAPPED.get(model, set())
        assert not mapped & unmapped, model
        assert set(model.model_fields) == mapped | unmapped, model


def test_keywords_are_read_from_both() -> None:
    assert of_value("model.defaults.temperature") == (
        {"type": "number", "minimum": 0, "maximum": 5, "default": None}
    )
    assert of_value("model.precision")["enum"] == ["auto", "native", "fp16", "bfloat16"]
    assert of_setting(BenchmarkSettings, "url") == (
        {"type": "string", "pattern": "^https?://", "default": None}
    )
    assert of_setting(GenerationParameters, "top_p")["exclusiveMinimum"] == 0


def test_every_revision_makes_a_tag() -> None:
    longest = "refs/pr/" + "x" * 72
    release = render({"model": {"revision": longest, "precision": "bfloat16"}})
    for command in (SERVE, PULL):
        given = arguments(release, command)
        tag = given[given.index("--tag") + 1]
        assert tag == f"{longest.replace('/', '-')}-bfloat16"
        assert re.fullmatch(settings.TAG_PATTERN, tag)
    with pytest.raises(helm_python.HelmValuesError):
        render({"model": {"revision": f"{longest}x"}})


def test_schema_and_server_have_the_same_limits() -> None:
    """Ends of every generation default's range, and what is just beyond."""
    limits = Limits(context=CONTEXT, vocabulary=VOCABULARY, max_instances=1, max_body_bytes=1)
    steps = {
        "min_length": (0, 2048, 1),
        "max_length": (1, 2048, 1),
        "temperature": (0.01, 5, 0.005),
        "top_k": (0, 50400, 1),
        "top_p": (0.001, 1, 0.001),
        "repetition_penalty": (0.1, 10, 0.01),
    }
    assert set(steps) == set(DEFAULTS["model"]["defaults"])
    for name, (low, high, step) in steps.items():
        for value in (low - step, low, high, high + step):
            taken = True
            try:
                parameters = GenerationParameters.model_validate({name: value})
                taken = limits.exceeded_by(parameters) is None
            except ValueError:
                taken = False
            with helm_python.Chart.load(CHART) as chart:
                try:
                    chart.validate_schema(nested(f"model.defaults.{name}", value))
                    fits = True
                except helm_python.HelmValuesError:
                    fits = False
            assert fits == taken, (name, value)

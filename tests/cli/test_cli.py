from __future__ import annotations

import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from gptj_predictor import __version__
from gptj_predictor.cli import SettingsError, build_parser, main
from gptj_predictor.cli.flags import flag_fields, validated
from gptj_predictor.cli.serve import open_access, read_settings
from gptj_predictor.demo import DEMO_SNAPSHOT
from gptj_predictor.settings import (
    GenerationParameters,
    Precision,
    PullSettings,
    Quantization,
    ServerSettings,
    wire_name,
)
from tests.support.reference import make_reference
from tests.support.servers import NAME, RunningServer, command, environment, free_port


def run(*flags: str, **extra: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*flags),
        capture_output=True,
        text=True,
        timeout=60,
        env=environment(**extra),
        check=False,
    )


def settings(
    *flags: str, **variables: str
) -> tuple[ServerSettings, GenerationParameters, str | None]:
    return read_settings(build_parser().parse_args(["serve", *flags]), variables)


@pytest.mark.parametrize(
    ("model_id", "name"),
    [
        ("EleutherAI/gpt-j-6B", NAME),
        ("EleutherAI/gpt-j-6b", NAME),
        ("a.b c/ü_D-9", "a-b-c--_d-9"),
    ],
)
def test_wire_name(model_id: str, name: str) -> None:
    assert wire_name(model_id) == name


def test_defaults() -> None:
    server, defaults, name = settings()
    assert server == ServerSettings()
    assert defaults == GenerationParameters()
    assert name is None


def test_flag_wins_over_variable_wins_over_default() -> None:
    variables = {"GPTJ_TOP_K": "7", "GPTJ_PRECISION": "fp16", "GPTJ_MODEL_NAME": "v", "HOME": "/"}
    server, defaults, name = settings("--top_k", "9", **variables)
    assert (defaults.top_k, server.precision, name) == (9, Precision.FP16, "v")
    assert settings("--model_name", "f", **variables)[2] == "f"


def test_every_generation_parameter_has_a_flag_and_a_variable() -> None:
    values = {
        "min_length": "2",
        "max_length": "30",
        "min_new_tokens": "3",
        "max_new_tokens": "4",
        "temperature": "0.5",
        "top_k": "6",
        "top_p": "0.7",
        "repetition_penalty": "1.5",
        "do_sample": "false",
        "seed": "8",
        "num_return_sequences": "2",
        "stop": "###",
        "return_full_text": "false",
        "min_p": "0.1",
        "typical_p": "0.9",
        "presence_penalty": "0.5",
        "frequency_penalty": "-0.5",
        "ignore_eos": "true",
        "details": "true",
    }
    assert set(values) == set(flag_fields(GenerationParameters))
    by_flag = settings(*(part for name, value in values.items() for part in (f"--{name}", value)))
    by_variable = settings(**{f"GPTJ_{name.upper()}": value for name, value in values.items()})
    assert by_flag[1].model_copy(update={"stop": "###"}) == by_variable[1]
    assert by_flag[1].stop_strings == by_variable[1].stop_strings == ("###",)
    assert by_variable[1].do_sample is False
    assert settings("--stop", "a", "--stop", "b")[1].stop_strings == ("a", "b")


@pytest.mark.parametrize(
    ("flags", "variables", "named"),
    [
        (["--top_k", "many"], {}, "--top_k many"),
        (["--temperature", "9"], {}, "--temperature 9"),
        (["--temperature", "nan"], {}, "--temperature nan"),
        (["--precision", "int4"], {}, "--precision int4"),
        (["--quantization", "int4"], {}, "--quantization int4"),
        ([], {"GPTJ_QUANTIZATION": "8"}, "--quantization 8"),
        (["--device", "tpu"], {}, "--device tpu"),
        (["--device", "cuda:x"], {}, "--device cuda:x"),
        (["--min_length", "50", "--max_length", "40"], {}, "--min_length 50 is above"),
        (["--min_new_tokens", "5", "--max_new_tokens", "4"], {}, "--min_new_tokens 5"),
        (["--workers", "2"], {}, "--workers 2"),
        (["--drain_delay", "30"], {}, "--drain_delay 30 is not below --grace_period 30"),
        (["--kv_cache_gib", "0"], {}, "--kv_cache_gib 0"),
        ([], {"GPTJ_TOPK": "5"}, "GPTJ_TOPK is unknown"),
        ([], {"GPTJ_LOGIT_BIAS": "{}"}, "GPTJ_LOGIT_BIAS is unknown"),
        (["--presence_penalty", "-2.5"], {}, "--presence_penalty -2.5"),
        ([], {"GPTJ_SEED": "-1"}, "--seed -1"),
        (["--trusted_proxies", "10.0.0.1/8"], {}, "10.0.0.1/8 has host bits set; allowed are"),
        (["--trusted_proxies", "10.0.0.1,proxy"], {}, "'proxy' does not appear to be an IPv4"),
        (["--trusted_proxies", "*"], {}, "--trusted_proxies *"),
        (["--cors_origins", "example.com"], {}, "'example.com' is no origin; allowed are"),
        (["--cors_origins", "*, https://a.example/"], {}, "'https://a.example/' is no origin"),
        (["--log_format", "xml"], {}, "--log_format xml"),
        (["--log_format", "json", "--log_config_file", "a"], {}, "--log_config_file a both"),
        (["--configure_logging", "no"], {"GPTJ_LOG_FORMAT": "json"}, "--configure_logging False"),
        (["--log_prompts", "maybe"], {}, "--log_prompts maybe"),
    ],
)
def test_settings_that_are_refused(flags: list[str], variables: dict[str, str], named: str) -> None:
    with pytest.raises(SettingsError) as caught:
        settings(*flags, **variables)
    assert named in str(caught.value)


def test_proxies_one_by_one() -> None:
    given = "10.0.0.0/8, ::1 ,192.0.2.1,"
    assert ServerSettings(trusted_proxies=given).proxies == ("10.0.0.0/8", "::1", "192.0.2.1")
    assert ServerSettings().proxies == ()


def test_origins_one_by_one() -> None:
    given = "https://a.example, http://[::1]:3000 ,http://localhost:3000,"
    expected = ("https://a.example", "http://[::1]:3000", "http://localhost:3000")
    assert ServerSettings(cors_origins=given).origins == expected
    assert ServerSettings(cors_origins="*").origins == ("*",)
    assert ServerSettings().origins == ()


def test_keys_are_read_at_the_start(tmp_path: Path) -> None:
    assert open_access(ServerSettings()).keys is None
    file = tmp_path / "keys"
    for content in (None, b"", b"two words"):
        if content is not None:
            file.write_bytes(content)
        with pytest.raises(SettingsError, match=f"--api_key_file {file}: "):
            open_access(ServerSettings(api_key_file=file))
    file.write_bytes(b"one\n")
    assert open_access(ServerSettings(api_key_file=file)).keys is not None


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["benchmark", "--top-k", "5"], "unrecognized arguments: --top-k 5"),
        (["benchmark", "--no_such_flag"], "--no_such_flag"),
        (["benchmark", "compare", "a", "b", "--top-k", "5"], "--top-k 5"),
        (["benchmark", "compare", "a"], "B.json"),
        (["benchmark", "report"], "RESULTS.json"),
        (["snapshot"], "COMMAND"),
        (["snapshot", "pull", "a", "b"], "unrecognized arguments: b"),
        (["snapshot", "prune", "--json"], "--json"),
        (["nonsense"], "nonsense"),
    ],
)
def test_command_lines_that_are_refused(
    capsys: pytest.CaptureFixture[str], arguments: list[str], named: str
) -> None:
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("gptj-predictor")
    assert named in line


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["snapshot", "pull", "--retries", "-1"], "--retries -1"),
        (["snapshot", "pull", "--retries", "2.5"], "--retries 2.5"),
        (["snapshot", "pull", "--precision", "int4"], "--precision int4"),
        (["snapshot", "pull", "--quantization", "int4"], "--quantization int4"),
        (["snapshot", "pull", "--tag", "a/b"], "--tag a/b"),
        (["snapshot", "pull", ""], "MODEL_ID"),
        (["benchmark", "--rounds", "0"], "--rounds 0"),
        (["benchmark", "compare", "a", "b", "--threshold", "0.9"], "--threshold 0.9"),
        (["benchmark", "compare", "a", "b", "--threshold", "inf"], "--threshold inf"),
        (["benchmark", "report", "a", "--reference", "H100"], "H100"),
    ],
)
def test_settings_of_other_commands_that_are_refused(
    capsys: pytest.CaptureFixture[str], arguments: list[str], named: str
) -> None:
    assert main(arguments) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("gptj-predictor: ")
    assert named in line


def test_pull_settings() -> None:
    def read(*flags: str) -> PullSettings:
        return validated(PullSettings, vars(build_parser(()).parse_args(["snapshot", *flags])))

    assert read("pull") == PullSettings()
    assert read(
        *("pull", "a/b", "--revision", "r", "--precision", "fp16", "--dest", "/d", "--tag", "t"),
        *("--retries", "0", "--offline", "--verify", "--keep-source", "--quantization", "int8"),
    ) == PullSettings(
        model_id="a/b",
        revision="r",
        precision=Precision.FP16,
        quantization=Quantization.INT8,
        dest=Path("/d"),
        tag="t",
        retries=0,
        offline=True,
        verify=True,
        keep_source=True,
    )


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["--version"],
        ["snapshot", "pull", "--help"],
        ["snapshot", "pull", "--retries", "x"],
        ["snapshot", "info", "/none"],
        ["snapshot", "verify", "/none"],
        ["snapshot", "prune", "/none"],
        ["benchmark", "--help"],
        ["benchmark", "compare", "/none", "/none"],
        ["benchmark", "--rounds", "0"],
    ],
)
@pytest.mark.process
def test_what_needs_no_model_imports_no_torch_and_no_kserve(arguments: list[str]) -> None:
    program = (
        "import sys; from gptj_predictor.cli import main\n"
        "try: main(sys.argv[1:])\n"
        "except SystemExit: pass\n"
        "print(sorted({'torch', 'kserve', 'transformers'} & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        capture_output=True,
        text=True,
        env=environment(),
        check=True,
    )
    assert done.stderr.splitlines()[-1] == "[]"


def test_variables_that_kubernetes_makes_are_passed_over() -> None:
    settings(
        GPTJ_SERVICE_HOST="10.0.0.1",
        GPTJ_SERVICE_PORT="80",
        GPTJ_SERVICE_PORT_HTTP="80",
        GPTJ_PREDICTOR_PORT="tcp://10.0.0.1:80",
        GPTJ_PREDICTOR_PORT_80_TCP="tcp://10.0.0.1:80",
        GPTJ_PREDICTOR_PORT_80_TCP_ADDR="10.0.0.1",
    )


@pytest.mark.process
class TestProcess:
    """Exit codes and the one line, from the real command."""

    @pytest.mark.parametrize(
        ("flags", "named"),
        [
            (["--no_such_flag"], "--no_such_flag"),
            (["--top", "5"], "--top"),
            (["--top_k", "x"], "--top_k x"),
            (["--http_port", "x"], "--http_port"),
            (["--max_length", "4000"], "--max_length 4000"),
            (["--device", "cuda:7"], "cuda:7"),
        ],
    )
    def test_wrong_settings(self, flags: list[str], named: str) -> None:
        done = run(*flags)
        assert done.returncode == 2
        last = done.stderr.strip().splitlines()[-1]
        assert last.startswith("gptj-predictor")
        assert named in last
        assert "Traceback" not in done.stderr

    def test_a_snapshot_that_cannot_be_served(self, tmp_path: Path) -> None:
        done = run("--model", str(tmp_path))
        assert done.returncode == 1
        assert (
            "holds no snapshot; run: gptj-predictor snapshot pull" in done.stderr.splitlines()[-1]
        )
        assert "Traceback" not in done.stderr

    def test_a_tokenizer_of_another_model(self, tmp_path: Path) -> None:
        make_reference(tmp_path, seed=1, n_embd=8, n_layer=1, n_head=1, rotary_dim=4, vocab_size=9)
        for file in DEMO_SNAPSHOT.glob("tokenizer*"):
            (tmp_path / file.name).write_bytes(file.read_bytes())
        done = run("--model", str(tmp_path))
        assert done.returncode == 1
        assert "do not belong together" in done.stderr.splitlines()[-1]

    def test_a_port_in_use(self) -> None:
        with socket.socket() as taken:
            taken.bind(("0.0.0.0", 0))
            taken.listen()
            port = str(taken.getsockname()[1])
            done = run("--http_port", port, "--enable_grpc", "false")
            assert done.returncode == 1
            assert "address already in use" in done.stderr
            assert "Traceback" not in done.stderr
            done = run("--grpc_port", port, "--http_port", str(free_port()))
            assert done.returncode == 1
            # The model may be ready in this moment, and its thread's log line be the last one.
            [said] = [x for x in done.stderr.splitlines() if x.startswith("gptj-predictor: ")]
            assert port in said
            assert "Traceback" not in done.stderr

    def test_help_names_every_flag_and_kserve_s(self) -> None:
        text = run("--help").stdout
        for name in (*ServerSettings.model_fields, *flag_fields(GenerationParameters)):
            assert f"--{name} " in text
        for flag in ("--http_port", "--grpc_port", "--model_name", "--enable_docs_url"):
            assert flag in text
        assert "GPTJ_FLAG" in text

    def test_version(self) -> None:
        done = subprocess.run(
            [*command()[:-1], "--version"], capture_output=True, text=True, check=True
        )
        assert done.stdout.strip() == __version__

    def test_server_side_defaults_and_names(self, tmp_path: Path) -> None:
        """Defaults hold where a request is silent, and give way where it speaks."""
        with RunningServer(
            "--model", str(DEMO_SNAPSHOT), "--min_length", "30", "--temperature", "0",
            "--model_id", "My/Model.v2", "--max_length", "40", GPTJ_RETURN_FULL_TEXT="false",
        ) as server:  # fmt: skip
            path = "/v1/models/my-model-v2:predict"
            server.wait_until(path.removesuffix(":predict"), 200)
            assert server.client.get("/v1/models").json()["models"] == ["my-model-v2"]
            body = {"instances": ["The secret to a happy life is to"]}
            first, second = (server.client.post(path, json=body).json() for _ in range(2))
            assert first == second
            assert not first["predictions"][0]["generated_text"].startswith("The secret")
            short = json.dumps(body | {"parameters": {"max_length": 12, "return_full_text": True}})
            text = server.post(short, path).json()["predictions"][0]["generated_text"]
            assert text.startswith("The secret")
            assert len(text) < 100
            assert "DEMO" not in server.log

    def test_the_demo_says_that_it_is_one(self, server: RunningServer) -> None:
        assert sum("DEMO" in line for line in server.log.splitlines()) == 1

"""How long do clients wait at a running server when they arrive at rising rates?

    VENV/bin/python benchmarks/load/load_test.py --url http://127.0.0.1:8080 --output DIR

aiperf makes, sends and times the requests, one run for each rate; this gives it the rates and puts
what it recorded into one table. Arrivals are random and wait for no answer, so a server that is too
slow gets a queue. A rate with errors, or during which latency keeps growing, is the last. Without
``--rates`` the capacity is measured first, with a fixed number of requests in flight, and the rates
are shares of it.

Answers are streamed, by our V1 protocol or, with ``--protocol openai``, as OpenAI's completions,
and the first token is timed as it comes. ``--protocol v1-unstreamed`` is for V1 services that do
not stream: some requests beside the load ask for one token only, and what they take is what a user
waits for a first token under that load.

VENV is a virtual environment of aiperf's own, see README.md. Nothing else is needed or started.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from aiperf_records import HEAD, NOTES, Row, read

DEMO = Path(__file__).parents[2] / "src/gptj_predictor/demo/snapshot"
#: Of the capacity, when no rates are given.
SHARES = (0.25, 0.5, 0.75, 1.0, 1.25)
#: Prompts made to measure the capacity; there the number of requests is not known beforehand.
PROMPTS = 2000
#: Seconds that aiperf may take for itself.
PATIENCE = 300

V1_BODY = (
    '{"instances": [{{ text|tojson }}], "parameters": '
    '{"min_new_tokens": {{ max_tokens }}, "max_new_tokens": {{ max_tokens }}FIELDS}STREAM}'
)


def main() -> None:
    """Measure what the command line asks for."""
    arguments = parse()
    generator = find("aiperf")
    version = subprocess.run([generator, "--version"], capture_output=True, text=True, check=True)
    about = {"generator": f"aiperf {version.stdout.strip()}", **vars(arguments)}
    about["output"] = str(arguments.output)
    arguments.output.mkdir(parents=True)
    rows: list[Row] = []
    rates: list[float | None] = list(arguments.rates or [None])
    while rates:
        rate = rates.pop(0)
        folder = arguments.output / f"{len(rows):02}"
        send(command(generator, arguments, rate, len(rows)), folder, arguments)
        rows.append(read(folder, rate, arguments.new_tokens))
        report(arguments.output, about, rows)
        if not rows[-1].answered:
            break
        if rate is None:
            rates += [round(share * rows[-1].answered, 2) for share in SHARES]
        elif rows[-1].too_much:
            break
    print((arguments.output / "results.md").read_text())


def command(
    generator: str, arguments: argparse.Namespace, rate: float | None, number: int
) -> list[Any]:
    """Aiperf's command line for one rate. Every rate gets prompts of its own."""
    flags, extra, requests = PROTOCOLS[arguments.protocol](arguments)
    if rate is None:
        load = ["--concurrency", arguments.in_flight]
        prompts = PROMPTS
    else:
        load = ["--request-rate", rate * requests, "--arrival-pattern", arguments.arrivals]
        prompts = 2 * math.ceil(rate * requests * arguments.duration) + 50
    return [
        *(generator, "profile", "--url", arguments.url, "--model", arguments.model_name),
        *(*flags, *load, "--extra-inputs", json.dumps(extra), "--tokenizer", arguments.tokenizer),
        *("--num-dataset-entries", prompts, "--random-seed", arguments.seed + number),
        *("--warmup-request-count", 4, "--benchmark-duration", arguments.duration),
        *("--request-timeout-seconds", arguments.timeout),
        *("--benchmark-grace-period", arguments.timeout + 5),
        *("--ui", "none", "--no-gpu-telemetry", "--no-server-metrics", *arguments.flags),
    ]


Protocol = tuple[list[Any], dict[str, Any], float]


def v1(arguments: argparse.Namespace) -> Protocol:
    """Flags, the request's shape, and how many requests are sent for each full one: here 1."""
    flags, extra = v1_requests(arguments, ', "stream": true', "text")
    flags += ["--streaming", "--isl", arguments.prompt_tokens, "--osl", arguments.new_tokens]
    return flags, extra, 1


def v1_unstreamed(arguments: argparse.Namespace) -> Protocol:
    """The same for answers that come at once, with requests for one token among them."""
    flags, extra = v1_requests(arguments, "", "predictions[0].generated_text")
    requests = 1 + arguments.probes
    mix = {arguments.new_tokens: 100 / requests, 1: 100 - 100 / requests}
    parts = [f"{arguments.prompt_tokens},{tokens}:{share}" for tokens, share in mix.items()]
    return [*flags, "--sequence-distribution", ";".join(parts)], extra, requests


def v1_requests(
    arguments: argparse.Namespace, stream: str, response_field: str
) -> tuple[list[Any], dict[str, Any]]:
    """Flags and shape of V1 requests."""
    fields = {"temperature": 0, "return_full_text": False}
    if arguments.fields is not None:
        fields = arguments.fields
    further = "".join(f", {json.dumps(name)}: {json.dumps(one)}" for name, one in fields.items())
    template = V1_BODY.replace("FIELDS", further).replace("STREAM", stream)
    flags = ["--custom-endpoint", f"/v1/models/{arguments.model_name}:predict"]
    flags += ["--endpoint-type", "template"]
    return flags, {"payload_template": template, "response_field": response_field}


def openai(arguments: argparse.Namespace) -> Protocol:
    """The same for streamed completions."""
    fields = {"temperature": 0, "min_tokens": arguments.new_tokens, "ignore_eos": True}
    if arguments.fields is not None:
        fields = arguments.fields
    flags = ["--endpoint-type", "completions", "--streaming"]
    flags += ["--isl", arguments.prompt_tokens, "--osl", arguments.new_tokens]
    return flags, fields, 1


PROTOCOLS = {"v1": v1, "v1-unstreamed": v1_unstreamed, "openai": openai}


def send(line: list[Any], folder: Path, arguments: argparse.Namespace) -> None:
    """Run aiperf. It fails when no request was answered, which is a result too."""
    folder.mkdir()
    log = folder / "aiperf.log"
    limit = arguments.duration + arguments.timeout + PATIENCE
    words = [str(word) for word in [*line, "--artifact-dir", folder]]
    with log.open("w") as out:
        subprocess.run(words, stdout=out, stderr=out, timeout=limit, check=False)
    if not (folder / "profile_export.jsonl").exists():
        raise SystemExit(f"aiperf recorded nothing; see {log}")


def report(folder: Path, about: dict[str, Any], rows: list[Row]) -> None:
    """Write the table, after every rate."""
    results = {"about": about, "rows": [asdict(row) for row in rows]}
    (folder / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    what = (
        "{generator}, {arrivals} arrivals, {duration} s each, timeout {timeout} s; {prompt_tokens} "
        "prompt tokens, {new_tokens} new ones, protocol {protocol}, seed {seed}. Percentiles: "
        "p50 / p95 / p99."
    ).format(**about)
    table = "\n".join([HEAD, *map(str, rows)])
    (folder / "results.md").write_text(f"{what} {NOTES[about['protocol']]}\n\n{table}\n")


def find(program: str) -> str:
    """Beside this interpreter, or in PATH."""
    places = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    found = shutil.which(program, path=places)
    if found is None:
        raise SystemExit(f"{program} is not installed; see {Path(__file__).with_name('README.md')}")
    return found


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add("--url", required=True, help="of the running server")
    add("--model-name", default="eleutherai-gpt-j-6b", help="in the server's URLs or requests")
    add("--protocol", default="v1", choices=list(PROTOCOLS))
    add("--output", type=Path, required=True, help="new folder for the table and aiperf's files")
    add("--rates", nargs="+", type=float, help="full requests per second, rising")
    add("--duration", type=float, default=20, help="seconds of arrivals at each rate")
    add("--timeout", type=float, default=30, help="seconds after which a client gives up")
    add("--arrivals", default="poisson", choices=["poisson", "constant"])
    add("--prompt-tokens", type=int, default=32)
    add("--new-tokens", type=int, default=64)
    add(
        "--probes",
        type=float,
        default=0.25,
        help="v1-unstreamed: for one token, per full request",
    )
    add("--in-flight", type=int, default=64, help="requests, to measure the capacity")
    add("--tokenizer", default=str(DEMO), help="the model's: folder or id; the demo's by default")
    add("--fields", type=json.loads, help="JSON: the request's other fields (V1: parameters)")
    add("--seed", type=int, default=0, help="of prompts and arrivals; the next rate's is one more")
    add("flags", nargs="*", help="further flags of aiperf, after --")
    arguments = parser.parse_args()
    if arguments.new_tokens < 2 or arguments.probes <= 0:
        parser.error("--new-tokens must be at least 2, --probes above 0")
    if arguments.output.exists():
        parser.error(f"--output {arguments.output} is already there")
    return arguments


if __name__ == "__main__":
    main()

"""Write the tables of the docs that are made from the code, or check that they are up to date.

    python tools/docs_tables.py [--check]

A table stands between ``<!-- generated: NAME -->`` and ``<!-- end -->``.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import get_args

import helm_python
import torch
import yaml
from pydantic import BaseModel

from gptj_predictor.cli.benchmark import ONLY_SERVED
from gptj_predictor.cli.flags import ENVIRONMENT_PREFIX, flag_fields, spelling
from gptj_predictor.common.phases import Phase
from gptj_predictor.engine.request import Failure, FinishReason
from gptj_predictor.launch import step_bytes
from gptj_predictor.model.config import NetworkConfig
from gptj_predictor.model.quantization import WeightQuantization
from gptj_predictor.server import metrics_vllm
from gptj_predictor.server.metrics_table import OWN_METRICS
from gptj_predictor.server.protocol import Protocol
from gptj_predictor.server.request_counts import REASONS, Outcome
from gptj_predictor.settings import (
    GPU_PREFILL_TOKENS,
    BenchmarkSettings,
    CompareSettings,
    GenerationParameters,
    InfoSettings,
    PullSettings,
    ReportSettings,
    ServerSettings,
    SnapshotSettings,
)
from gptj_predictor.settings.metadata import Switch, allowed_values, default_in_words, marker
from gptj_predictor.snapshot.layout import NetworkLayout

ROOT = Path(__file__).parents[1]
PAGES = ("docs/api.md", "docs/configuration.md", "docs/operations.md")

CHART = ROOT / "charts" / "gptj-isvc"
#: What confines the chart's queries to one release.
OF_THE_RELEASE = re.compile(r'namespace="ml",pod=~"gptj-predictor-\.\*",?')

#: What the model's limits are called where no model is loaded.
LIMITS = {
    "context": "the context",
    "vocabulary": "the vocabulary",
    "last_token_id": "the last token id",
}

SECTION = re.compile(r"(<!-- generated: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def main() -> None:
    """Write or check."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; 1 if some are stale")
    check = parser.parse_args().check
    stale = False
    for path in (ROOT / page for page in PAGES):
        if not path.is_file():
            continue
        content = path.read_text()
        fresh = render(content)
        if content == fresh:
            continue
        stale = True
        name = path.relative_to(ROOT)
        print(f"{name}: {'stale; run tools/docs_tables.py' if check else 'written'}")
        if not check:
            path.write_text(fresh)
    sys.exit(1 if check and stale else 0)


def render(page: str) -> str:
    """The page with today's tables.

    Raises:
        KeyError: a section has a name that no table has.
    """
    return SECTION.sub(lambda match: f"{match[1]}\n{TABLES[match[2]]()}\n{match[3]}", page)


def parameter_table() -> str:
    """The parameters of a request."""
    rows = (
        (
            f"`{name}`",
            allowed_values(field, LIMITS),
            f"{default_in_words(field)}",
            f"{field.description}",
        )
        for name, field in GenerationParameters.model_fields.items()
    )
    return table(("Parameter", "Allowed", "Default", "Meaning"), rows)


def flag_table(settings: type[BaseModel], *, variables: bool = False) -> str:
    """The arguments of a command that a settings class has.

    Args:
        settings: The class.
        variables: Whether they have environment variables.
    """
    heads = ["Flag, variable" if variables else "Flag", "Type", "Default", "Meaning"]
    rows = []
    for name, field in flag_fields(settings).items():
        default = default_in_words(field)
        row = [
            f"`{spelling(name, field)}`",
            "a switch" if marker(field, Switch) else allowed_values(field, LIMITS),
            "has to be given" if default is None else default,
            f"{field.description}",
        ]
        if variables:
            row[0] += f"<br>`{ENVIRONMENT_PREFIX}{name.upper()}`"
        rows.append(row)
    return table(heads, rows)


def benchmark_tables() -> str:
    """The sweep's own arguments, and which of the server's the command does not have."""
    own = BenchmarkSettings.model_fields
    missing = ", ".join(f"`--{name}`" for name in ONLY_SERVED if name not in own)
    return f"{flag_table(BenchmarkSettings)}\nOf the flags of `serve` it has all but {missing}.\n"


#: Memory of cards in GiB, about what torch reports.
CARDS = {
    "RTX 3060, 12 GB": 11.6,
    "T4": 14.7,
    "V100, 16 GB": 15.8,
    "RTX 5000": 15.7,
    "L4, A10G": 22.1,
    "A5000, RTX 4090": 23.5,
    "V100, 32 GB": 31.7,
    "A100, 40 GB": 39.4,
    "A40, L40S": 44.4,
    "A100 or H100, 80 GB": 79.1,
    "H200": 139.8,
}
#: What CUDA's context, its libraries and the decode graphs take besides; an assumption.
CONTEXT_BYTES = 2**30


def sizing_table() -> str:
    """What of GPT-J-6B's KV cache fits cards, by the arithmetic of ``launch``."""
    config, dtype, settings = NetworkConfig(), torch.float16, ServerSettings()
    step = step_bytes(config, dtype, tokens=GPU_PREFILL_TOKENS, logit_rows=settings.max_batch_size)
    token_bytes = 2 * config.n_layer * config.n_embd * dtype.itemsize
    most = settings.max_batch_size * config.n_positions
    rows = []
    for card, gib in CARDS.items():
        row = [card]
        for quantization in get_args(WeightQuantization):
            weights = sum(NetworkLayout(config, quantization).part_bytes(dtype))
            left = int(gib * 2**30) - CONTEXT_BYTES - weights - step
            tokens = min(most, int(left * settings.kv_cache_share) // token_bytes)
            if tokens <= 0:
                row += ["does not fit", "", ""]
                continue
            together = [min(settings.max_batch_size, tokens // length) for length in (256, 2048)]
            row += [f"{tokens:,}", *map(str, together)]
        rows.append(row)
    heads = ("Card", "Tokens in the KV cache", "Texts of 256 tokens at once", "Of 2,048")
    int8 = ("int8 weights: tokens", "Texts of 256", "Of 2,048")
    return table((*heads, *int8), rows)


def metrics_table() -> str:
    """The server's own metrics."""
    rows = (
        (f"`{m.name}`", m.kind.value, ", ".join(f"`{label}`" for label in m.labels), m.help)
        for m in OWN_METRICS
    )
    return table(("Metric", "Type", "Labels", "Meaning"), rows)


def labels_table() -> str:
    """The labels of which every value is known."""
    rows = (
        (f"`{label}`", ", ".join(f"`{value}`" for value in values))
        for label, values in (
            ("protocol", Protocol),
            ("outcome", Outcome),
            ("reason", REASONS),
            ("phase", Phase),
            ("finish_reason", FinishReason),
            ("failure", Failure),
        )
    )
    return table(("Label", "Values"), rows)


def vllm_table() -> str:
    """Those with vLLM's names."""
    rows = (
        (
            f"`{m.name}`",
            m.kind.value,
            ", ".join(f"`{label}`" for label in m.labels),
            re.sub(r"\b(gptj_\w+)", r"`\1`", m.help),
        )
        for m in (*metrics_vllm.METRICS, *metrics_vllm.INFO_METRICS)
    )
    return table(("Metric", "Type", "More labels", "Meaning"), rows)


def alerts_table() -> str:
    """The chart's alerts with their default thresholds."""
    values = {
        "deploymentMode": "Standard",
        "scaling": {"minReplicas": 1},
        "prometheusRule": {"enabled": True},
    }
    with helm_python.Chart.load(CHART) as chart:
        files = chart.render(values, name="gptj", namespace="ml")
    [group] = yaml.safe_load(files[f"{CHART.name}/templates/prometheusrule.yaml"])["spec"]["groups"]
    rows = (
        (
            f"`{rule['alert']}`",
            f"`{OF_THE_RELEASE.sub('', rule['expr']).replace('{}', '')}`",
            rule.get("for", "at once"),
            rule["annotations"]["summary"],
            rule["annotations"]["action"],
        )
        for rule in group["rules"]
    )
    return table(("Alert", "If", "For", "What is wrong", "What to do"), rows)


def table(heads: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A Markdown table."""
    heads = list(heads)
    lines = [heads, ["---"] * len(heads), *rows]
    return "".join(
        f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |\n" for line in lines
    )


TABLES: Mapping[str, Callable[[], str]] = {
    "parameters": parameter_table,
    "sizing": sizing_table,
    "metrics": metrics_table,
    "labels": labels_table,
    "vllm": vllm_table,
    "alerts": alerts_table,
    "serve": partial(flag_table, ServerSettings, variables=True),
    "generation": partial(flag_table, GenerationParameters, variables=True),
    "pull": partial(flag_table, PullSettings),
    "snapshot": partial(flag_table, SnapshotSettings),
    "info": partial(flag_table, InfoSettings),
    "benchmark": benchmark_tables,
    "compare": partial(flag_table, CompareSettings),
    "report": partial(flag_table, ReportSettings),
}


if __name__ == "__main__":
    main()

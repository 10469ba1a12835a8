"""Write the tables of the docs that are made from the settings, or check that they are up to date.

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

from pydantic import BaseModel

from gptj_predictor.cli.benchmark import ONLY_SERVED
from gptj_predictor.cli.flags import ENVIRONMENT_PREFIX, spelling
from gptj_predictor.settings import (
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

ROOT = Path(__file__).parents[1]
PAGES = ("docs/api.md", "docs/configuration.md")

#: What the model's limits are called where no model is loaded.
LIMITS = {"context": "the context", "vocabulary": "the vocabulary"}

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
    for name, field in settings.model_fields.items():
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


def table(heads: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A Markdown table."""
    heads = list(heads)
    lines = [heads, ["---"] * len(heads), *rows]
    return "".join(
        f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |\n" for line in lines
    )


TABLES: Mapping[str, Callable[[], str]] = {
    "parameters": parameter_table,
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

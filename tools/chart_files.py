"""Write the Helm chart's generated files, or check that they are up to date.

    python tools/chart_files.py [--check]

The generated files are:

* the table of values in the chart's README, made from ``values.yaml`` and the ``# --`` comment
  above each value (as helm-docs does);
* what each file of ``examples/`` renders to, in ``tests/chart/golden``. A change of a template
  shows there as a diff.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import helm_python
import yaml

ROOT = Path(__file__).parents[1]
CHART = ROOT / "charts" / "gptj-isvc"
GOLDEN = ROOT / "tests" / "chart" / "golden"

BEGIN, END = "<!-- values: begin -->\n", "<!-- values: end -->\n"


def main() -> None:
    """Write the files, or check them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--check", action="store_true", help="write nothing; exit code 1 if a file is stale"
    )
    check = parser.parse_args().check
    stale = False
    for path, content in {**readme(), **renderings()}.items():
        if path.is_file() and path.read_text() == content:
            continue
        stale = True
        print(f"{path.relative_to(ROOT)}: {'stale; run make chart' if check else 'written'}")
        if not check:
            path.write_text(content)
    sys.exit(1 if check and stale else 0)


def readme() -> dict[Path, str]:
    """The chart's README with a new table of values."""
    path = CHART / "README.md"
    before, _, rest = path.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    rows = ["| value | default | |\n", "|---|---|---|\n"]
    for name, default, text in documented(CHART / "values.yaml"):
        rows.append(f"| `{name}` | `{json.dumps(default)}` | {text} |\n".replace("||", "|"))
    return {path: f"{before}{BEGIN}{''.join(rows)}{END}{after}"}


def documented(path: Path) -> Iterator[tuple[str, object, str]]:
    """Every value with a ``# --`` comment: its dotted name, its default, and the comment.

    Raises:
        ValueError: a value has no comment, and none of its parts could have one.
    """
    lines = path.read_text().splitlines()
    root = yaml.compose(path.read_text())
    assert isinstance(root, yaml.MappingNode)
    yield from _walk(root, "", lines)


def _walk(
    mapping: yaml.MappingNode, prefix: str, lines: list[str]
) -> Iterator[tuple[str, object, str]]:
    for key, node in mapping.value:
        name = f"{prefix}{key.value}"
        text = _comment(lines, key.start_mark.line)
        if text is not None:
            yield name, yaml.safe_load(yaml.serialize(node)), text
        elif isinstance(node, yaml.MappingNode) and node.value:
            yield from _walk(node, f"{name}.", lines)
        else:
            raise ValueError(f"{name} has no '# --' comment")


def _comment(lines: list[str], line: int) -> str | None:
    """The ``# --`` comment that ends on the line above, or None."""
    parts: list[str] = []
    while line > 0 and lines[line - 1].strip().startswith("#"):
        line -= 1
        part = lines[line].strip().removeprefix("#").strip()
        parts.insert(0, part.removeprefix("--").strip())
        if part.startswith("--"):
            return " ".join(parts)
    return None


def renderings() -> dict[Path, str]:
    """What each file of ``examples/`` renders to, and the notes that Helm prints."""
    found = {}
    with helm_python.Chart.load(CHART) as chart:
        for file in sorted(CHART.glob("examples/*.yaml")):
            values = yaml.safe_load(file.read_text())
            manifests = chart.render(values, name="gptj", namespace="ml")
            text = "".join(
                f"---\n# Source: {name}\n{content.strip()}\n"
                for name, content in sorted(manifests.items())
                if content.strip() and not name.endswith("NOTES.txt")
            )
            notes = manifests[f"{CHART.name}/templates/NOTES.txt"].strip()
            found[GOLDEN / file.name] = text
            found[GOLDEN / f"{file.stem}-notes.txt"] = f"{notes}\n"
    return found


if __name__ == "__main__":
    main()

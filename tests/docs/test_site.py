"""The site builds without a network, and no link of it or of the README leads nowhere."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
import yaml
from markdown_it import MarkdownIt

from tests.support.documents import DOCUMENTS, INCLUDE, ROOT

#: What Zensical reads, beside the files that pages include.
SOURCES = ("docs", "mkdocs.yml")
MOST_README_LINES = 150
#: Names files of other projects.
OTHERS_FILES = "docs/comparison.md"
#: Files of the repository, as prose and commands name them.
NAMED_FILE = re.compile(r"(?<![\w/])((?:benchmarks|charts|docs|src|tests|tools)/[\w./-]*\w)")


class Page(HTMLParser):
    """One page's anchors, and what it links to and loads."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.feed(path.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.anchors |= {given[name] for name in ("id", "name") if name in given}
        if tag == "a" and "href" in given:
            self.links.append(given["href"])
        elif tag in ("img", "script", "iframe") and "src" in given:
            self.loaded.append(given["src"])
        elif tag == "link" and given.get("rel") in ("stylesheet", "icon", "preload"):
            self.loaded.append(given["href"])


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built strictly in a folder of its own."""
    folder = tmp_path_factory.mktemp("project")
    for name in SOURCES:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, folder / name)
    for document in DOCUMENTS:
        for name, _ in INCLUDE.findall((ROOT / document).read_text()):
            (folder / name).parent.mkdir(exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    built = subprocess.run(
        [sys.executable, "-m", "zensical", "build", "--strict", "--clean"],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert built.returncode == 0, built.stdout + built.stderr
    return folder / "site"


def pages(site: Path) -> dict[Path, Page]:
    return {path: Page(path) for path in sorted(site.glob("**/*.html")) if path.name != "404.html"}


@pytest.mark.process
def test_every_page_is_in_the_site_and_in_its_navigation(site: Path) -> None:
    def listed(entry: object) -> list[str]:
        if isinstance(entry, str):
            return [entry]
        parts = entry.values() if isinstance(entry, dict) else entry
        assert not isinstance(parts, str)
        return [name for part in parts for name in listed(part)]  # type: ignore[attr-defined]

    names = {path.name for path in (ROOT / "docs").glob("*.md")}
    text = (ROOT / "mkdocs.yml").read_text()
    assert set(listed(yaml.safe_load(text)["nav"])) == names
    assert {path.name for path in pages(site)} == {name.replace(".md", ".html") for name in names}


@pytest.mark.process
def test_links_and_anchors(site: Path) -> None:
    found = pages(site)
    checked = 0
    for path, page in found.items():
        for link in [*page.links, *page.loaded]:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            if target.is_dir():
                target /= "index.html"
            assert target.exists(), f"{path.name}: {link}"
            if parts.fragment and target.suffix == ".html":
                assert unquote(parts.fragment) in found[target].anchors, f"{path.name}: {link}"
                checked += 1
    assert checked > 100


@pytest.mark.process
def test_nothing_is_loaded_from_elsewhere(site: Path) -> None:
    for path, page in pages(site).items():
        assert not [one for one in page.loaded if urlsplit(one).netloc], path.name


def readme() -> str:
    return (ROOT / "README.md").read_text()


def test_readme_fits_ten_minutes() -> None:
    assert len(readme().splitlines()) <= MOST_README_LINES


def test_files_that_the_readme_links_to_exist() -> None:
    tokens = MarkdownIt().enable("table").parse(readme())
    children = [child for token in tokens for child in token.children or []]
    links = [str(child.attrs["href"]) for child in children if child.type == "link_open"]
    headings = re.findall(r"^#+ (.*)$", readme(), re.MULTILINE)
    anchors = {re.sub(r"[^a-z0-9-]", "", title.lower().replace(" ", "-")) for title in headings}
    for link in links:
        parts = urlsplit(link)
        if parts.scheme:
            continue
        if not parts.path:
            assert parts.fragment in anchors, link
            continue
        assert (ROOT / parts.path).is_file(), link
        if parts.fragment:
            titles = re.findall(r"^#+ (.*)$", (ROOT / parts.path).read_text(), re.MULTILINE)
            assert parts.fragment in {title.lower().replace(" ", "-") for title in titles}, link
    assert len(links) > 15


@pytest.mark.parametrize("document", [one for one in DOCUMENTS if one != OTHERS_FILES])
def test_files_that_are_named_exist(document: str) -> None:
    for name in NAMED_FILE.findall((ROOT / document).read_text()):
        assert (ROOT / name).exists(), name


def test_architecture_lists_every_room() -> None:
    drawing = (ROOT / "docs/architecture.md").read_text().split("src/gptj_predictor/\n")[1]
    listed = set(re.findall(r"^  (\w+)(?:/|\.py) ", drawing.split("```")[0], re.MULTILINE))
    rooms = {
        path.stem for path in (ROOT / "src/gptj_predictor").iterdir() if path.suffix in ("", ".py")
    }
    assert listed == {name for name in rooms if not name.startswith("__")}


def test_the_readme_s_client_is_the_one_in_docs() -> None:
    assert f"```python\n{(ROOT / 'docs/clients/ask.py').read_text()}```" in readme()

"""The documentation: the site builds without a warning, is whole, and fetches nothing.

MkDocs itself warns of links and anchors that lead nowhere and of pages without a place in the
navigation, and --strict makes warnings errors; here the pages that were written are read again.
"""

import importlib.util
import os
import re
import runpy
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

ROOT = Path(__file__).parents[1]
#: What a browser loads by itself when it shows a page, by tag.
LOADED = {
    "audio": "src", "embed": "src", "iframe": "src", "image": "href", "img": "src", "input": "src",
    "link": "href", "object": "data", "script": "src", "source": "src", "track": "src",
    "use": "href", "video": "src",
}  # fmt: skip


class Page(HTMLParser):
    """What a page loads, where it leads, and which anchors it has."""

    def __init__(self, file):
        super().__init__()
        self.loads, self.links, self.anchors, self.styles = [], [], set(), ""
        self.in_style = False
        self.feed(file.read_text())

    def handle_starttag(self, tag, attributes):
        values = {key: value or "" for key, value in attributes}
        self.in_style = tag == "style"
        self.anchors |= {values[key] for key in ("id", "name") if key in values}
        self.styles += values.get("style", "")
        if tag == "a" and "href" in values:
            self.links.append(values["href"])
        self.loads += [
            values[key] for key in (LOADED.get(tag), "srcset", "poster") if key in values
        ]

    def handle_data(self, data):
        if self.in_style:
            self.styles += data


def in_css(text):
    """Addresses that a style sheet loads."""
    return re.findall(r"url\(\s*['\"]?([^'\")]+)|@import\s+['\"]([^'\"]+)", text)


def is_elsewhere(address):
    parts = urlsplit(address)
    return bool(parts.netloc or parts.scheme not in ("", "data"))


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The built site."""
    if importlib.util.find_spec("mkdocs") is None:
        pytest.skip("MkDocs is not installed; pip install -e '.[docs]'")
    out = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", f"--site-dir={out}"]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return out


@pytest.fixture(scope="module")
def pages(site):
    found = {file: Page(file) for file in site.rglob("*.html")}
    assert len(found) > 30
    return found


def test_nothing_is_loaded_from_another_host(site, pages):
    loads = {(file, address) for file, page in pages.items() for address in page.loads}
    texts = [page.styles for page in pages.values()]
    texts += [file.read_text() for file in site.rglob("*.css")]
    loads |= {("css", a or b) for text in texts for a, b in in_css(text)}
    assert any(str(address).endswith(".js") for _, address in loads)
    assert not {load for load in loads if is_elsewhere(load[1])}


def test_every_link_leads_to_a_file_and_an_anchor_of_the_site(site, pages):
    checked, wrong = 0, []
    for file, page in pages.items():
        for address in page.links + page.loads:
            if is_elsewhere(address) or address.startswith(("data:", "/")) or file.stem == "404":
                continue
            parts = urlsplit(address)
            target = (file.parent / unquote(parts.path)).resolve() if parts.path else file
            target = target / "index.html" if target.is_dir() else target
            anchor = unquote(parts.fragment)
            known = pages[target].anchors | {""} if target in pages else {anchor}
            checked += 1
            if not target.is_file() or anchor not in known:
                wrong.append(f"{file.relative_to(site)}: {address}")
    assert checked > 1000
    assert not wrong


def test_every_page_is_in_the_navigation(site, pages):
    start = site / "index.html"
    linked = {(start.parent / urlsplit(a).path).resolve() for a in pages[start].links}
    sources = [path.relative_to(ROOT / "docs") for path in (ROOT / "docs").rglob("*.md")]
    assert not [path for path in sources if (site / path).with_suffix(".html") not in linked]


def test_links_to_files_of_the_repository_lead_to_their_text(site):
    page = (site / "digits.html").read_text()
    (target,) = set(re.findall(r'href="([^"]*configs/digits_t2v[^"]*)"', page))
    assert "get_config" in (site / target).read_text()


def test_joint_parameters_are_told_apart():
    pytest.importorskip("griffe", reason="griffe comes with the docs extra")
    apart = runpy.run_path(str(ROOT / "docs" / "joint_parameters.py"))["apart"]
    text = """Does it.

    x, y: not a section.

Args:
    query, key: of one type,
        and of one shape.
    *rest, **more: handed on.
    alone: stays.

Returns:
    one, two: what it found.
"""
    assert apart(text).splitlines() == [
        "Does it.",
        "",
        "    x, y: not a section.",
        "",
        "Args:",
        "    query: of one type,",
        "        and of one shape.",
        "    key: of one type,",
        "        and of one shape.",
        "    *rest: handed on.",
        "    **more: handed on.",
        "    alone: stays.",
        "",
        "Returns:",
        "    one, two: what it found.",
    ]


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md"])
def test_links_of_the_repository_lead_to_files(page):
    targets = re.findall(r"\]\(([^)\s]+)\)", (ROOT / page).read_text())
    paths = {urlsplit(target).path for target in targets if not is_elsewhere(target)}
    assert paths
    assert not {path for path in paths if path and not (ROOT / path).exists()}

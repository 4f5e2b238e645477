"""Files of the repository that pages link to, such as ../configs/digits_t2v.py, in the site.

A link that leads out of docs/ works where the repository is shown. For the site each such file
becomes a page of its own below repository/, which the link then leads to: text as it is, programs
as listings. Other files are copied.
"""

import os
import re
from collections.abc import Callable
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
FOLDER = "repository"
LINK = re.compile(r"(\]\()([^)#\s:]+)((?:#[^)\s]*)?\))")
LISTED = {".py": "python", ".sh": "bash", ".sbatch": "bash", ".yaml": "yaml", ".toml": "toml"}


def outside(place: str, target: str) -> str | None:
    """Path in the repository of what a page links to, if that is a file outside of docs/.

    Args:
        place: folder of the page, in the repository.
        target: what the link says.
    """
    path = os.path.normpath(os.path.join(place, target))
    inside = path.startswith(("docs/", "..", "/"))
    return None if inside or not (ROOT / path).is_file() else path


def in_site(path: str) -> str:
    """Where a file of the repository is in the site, as the path of a source file there."""
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    name = Path(path)
    return f"{FOLDER}/{path}.md" if name.suffix in LISTED else f"{FOLDER}/{path}"


def rewrite(markdown: str, place: str, page: str, found: Callable[[str], None]) -> str:
    """The text with links that lead to where the files are in the site.

    Args:
        markdown: the text.
        place: folder of its file, in the repository.
        page: path of the page in the site.
        found: is told of every file outside of docs/.
    """

    def link(match: re.Match[str]) -> str:
        path = os.path.normpath(os.path.join(place, match[2]))
        if outside(place, match[2]):
            found(path)
        elif place.startswith("docs") or not path.startswith("docs/"):
            return match[0]
        target = os.path.relpath(in_site(path), os.path.dirname(page) or ".")
        return f"{match[1]}{target}{match[3]}"

    return LINK.sub(link, markdown)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the files that pages link to, and those that these link to."""
    waiting: list[str] = []
    done = set()
    for file in files.documentation_pages():
        place = os.path.dirname(f"docs/{file.src_uri}")
        rewrite(file.content_string, place, file.src_uri, waiting.append)
    while waiting:
        path = waiting.pop()
        if path in done:
            continue
        done.add(path)
        place, page, suffix = os.path.dirname(path), in_site(path), Path(path).suffix
        if page.endswith(".md"):
            text = (ROOT / path).read_text()
            if suffix in LISTED:
                text = f"# {path}\n\n```{LISTED[suffix]}\n{text}```\n"
            else:
                text = rewrite(text, place, page, waiting.append)
            content = {"content": f"---\nsearch:\n  exclude: true\n---\n{text}"}
        else:
            content = {"abs_src_path": str(ROOT / path)}
        files.append(File.generated(config, page, inclusion=InclusionLevel.NOT_IN_NAV, **content))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links of a page, as they are in the site."""
    if page.file.src_uri.startswith(f"{FOLDER}/"):
        return markdown
    place = os.path.dirname(f"docs/{page.file.src_uri}")
    return rewrite(markdown, place, page.file.src_uri, lambda path: None)

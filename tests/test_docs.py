"""Every command and every Python block of the documentation runs, in the order of its page.

What needs something that is not at hand says so where it stands (`documents`), and is skipped for
that reason; so are lines that install something, which tests/test_wheel.py tries.
"""

import ast
from pathlib import Path

import pytest
from documents import LANGUAGES, PAGES, ROOT, Reader, blocks

NAMES = [str(page.relative_to(ROOT)) for page in PAGES]
ALL = [(page, block) for page in PAGES for block in blocks(page)]


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_every_block_says_what_it_is(page):
    for block in blocks(page):
        place = f"{page.name}, line {block.line}"
        assert block.language in LANGUAGES, place
        if block.language == "python":
            ast.parse(block.code)
        if "tested with" in block.marks:
            flags = block.marks["tested with"]
            assert any(command.endswith(flags) for command in block.commands()), place


def test_most_blocks_are_run():
    code = [block for _, block in ALL if block.language in ("bash", "python")]
    assert sum(block.need is None for block in code) > 0.65 * len(code) > 50


@pytest.mark.parametrize(
    ("page", "line", "need"),
    [(str(page.relative_to(ROOT)), block.line, block.need) for page, block in ALL if block.need],
)
def test_what_is_not_run_says_why(page, line, need):
    pytest.skip(f"{page}, line {line}: {need}")


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_a_page_runs(page: Path, tmp_path: Path):
    (tmp_path / "prompts.txt").write_text("a red seven moves left\na blue three, up\n")
    with Reader(tmp_path) as reader:
        for block in blocks(page):
            if block.need is None:
                reader.run(block)

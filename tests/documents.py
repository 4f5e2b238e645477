"""Reads the code blocks of the documentation, and runs them as a reader would.

What precedes a block says what is to be known of it:

    *Needs released weights.*                 a paragraph that readers see: it is not run
    <!-- tested with: --config.steps=2 -->    flags that end its commands, so that they end soon
    <!-- after: x = 1 -->                     what its reader has before it

A block with a title is a file of that name. Lines that install something, `make`, and commands on
models of the hub are left out: other tests and CI do the former, and there is no hub.
"""

import dataclasses
import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Self

import jax
import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
#: What of the repository commands are given.
GIVEN = ("benchmarks", "configs", "docs", "launch", "tests")
LANGUAGES = {"bash", "python", "text", "bibtex"}

_BLOCK = re.compile(r'^```(\w*)(?: title="(.*?)")?\n(.*?)^```$', re.DOTALL | re.MULTILINE)
_MARK = re.compile(r"^<!-- (tested with|after): (.*) -->$")
_NEED = re.compile(r"^\*((?:Needs|Takes) .+)\.\*$")
_COMMAND = re.compile(r"^python (?:-m nova_jax\.|benchmarks/)(\w+)")
_LEFT_OUT = re.compile(r"^(#|pip install|make )|=BAAI/")
#: Executes the blocks that come as lines of JSON, one after the other, in one namespace.
_PYTHON = """
import json, sys
space = {"__name__": "__main__"}
for line in sys.stdin:
    exec(compile(json.loads(line), "block", "exec"), space)
    print("\\nthe block is done", flush=True)
"""


@dataclasses.dataclass(frozen=True)
class Block:
    """A block of code, the line that it begins on, and what is said of it."""

    line: int
    language: str
    title: str | None
    code: str
    need: str | None
    marks: dict[str, str]

    def commands(self) -> Iterator[str]:
        """Commands of a shell, each on a line of its own, with the flags that end them."""
        for command in self.code.replace("\\\n", " ").splitlines():
            # What begins a line stays: it may be of a file that the block writes.
            text = re.sub(r"\s+#\s.*$", "", command).rstrip()
            if text and not _LEFT_OUT.search(text.lstrip()):
                flags = self.marks.get("tested with", "")
                ours = _COMMAND.match(text) and ("--config=" in text or "--config." not in flags)
                yield f"{text} {flags}" if ours else text


def blocks(page: Path) -> list[Block]:
    """The blocks of a page."""
    text = page.read_text(encoding="utf-8")
    found = []
    for match in _BLOCK.finditer(text):
        before, marks, need = text[: match.start()].rstrip("\n").split("\n"), {}, None
        while before and (not before[-1] or _MARK.match(before[-1]) or _NEED.match(before[-1])):
            line = before.pop()
            if mark := _MARK.match(line):
                marks[mark[1]] = mark[2]
            elif said := _NEED.match(line):
                need = said[1]
        number = text.count("\n", 0, match.start()) + 1
        found.append(Block(number, *match.groups(), need, marks))
    return found


class Reader:
    """Runs blocks in a folder, where what the repository has is at hand.

    A server runs until another one is started at its port, or until the end.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in GIVEN:
            (folder / name).symlink_to(ROOT / name)
        self._environment = os.environ | {
            "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
            "JAX_COMPILATION_CACHE_DIR": str(jax.config.jax_compilation_cache_dir),
            "HF_HUB_OFFLINE": "1",
        }
        self._python: subprocess.Popen[str] | None = None
        self._servers: dict[int, subprocess.Popen[str]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for process in (self._python, *self._servers.values()):
            if process is not None:
                process.kill()
                with process:  # closes its pipes, and waits
                    pass

    def run(self, block: Block) -> None:
        """Runs a block; fails with what it printed."""
        if block.title:
            (self.folder / block.title).write_text(block.code, encoding="utf-8")
        elif block.language == "python":
            if before := block.marks.get("after"):
                self._run_python(before)
            self._run_python(block.code)
        elif block.language == "bash":
            commands = list(block.commands())
            servers = [c for c in commands if (ours := _COMMAND.match(c)) and ours[1] == "app"]
            for command in servers:
                self._serve(command)
            self._run_command("\n".join(c for c in commands if c not in servers))

    def _run_command(self, command: str) -> None:
        result = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", command],
            cwd=self.folder,
            env=self._environment,
            capture_output=True,
            text=True,
            timeout=3600,
        )
        if result.returncode:
            pytest.fail(f"{command}\n{result.stdout[-3000:]}\n{result.stderr[-3000:]}")

    def _run_python(self, code: str) -> None:
        if self._python is None:
            self._python = subprocess.Popen(
                [sys.executable, "-c", _PYTHON],
                cwd=self.folder,
                env=self._environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        assert self._python.stdin and self._python.stdout
        self._python.stdin.write(json.dumps(code) + "\n")
        self._python.stdin.flush()
        printed = []
        for line in self._python.stdout:
            if line == "the block is done\n":
                return
            printed.append(line)
        pytest.fail(f"{code}\n{''.join(printed)[-3000:]}")

    def _serve(self, command: str) -> None:
        """Starts a server and waits until it answers."""
        given = re.search(r"--port=(\d+)", command)
        port, deadline = int(given[1]) if given else 7860, time.monotonic() + 600
        if before := self._servers.get(port):
            before.kill()
            before.wait()
        server = self._servers[port] = subprocess.Popen(
            ["bash", "-c", f"exec {command}"], cwd=self.folder, env=self._environment, text=True
        )
        while server.poll() is None and time.monotonic() < deadline:
            with socket.socket() as client:
                if client.connect_ex(("127.0.0.1", port)) == 0:
                    return
            time.sleep(0.2)
        pytest.fail(f"{command}\ndoes not answer at port {port}")

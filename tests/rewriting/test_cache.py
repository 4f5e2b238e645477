"""Answers on disk: shared by processes, whole whatever happens to one of them."""

import json
import subprocess
import sys

import pytest

from nova_jax.errors import NovaError
from nova_jax.rewriting.cache import Cache

# Adds the same keys as the others do; prints what everybody is to find.
WRITER = """
import json, pathlib, sys
from nova_jax.rewriting.cache import Cache
cache = Cache(pathlib.Path(sys.argv[1]))
sys.stdin.read()  # until all are ready
print(json.dumps([cache.add(str(i), {"said": sys.argv[2] * 999})["said"] for i in range(100)]))
"""


def test_processes_that_write_at_once_agree(tmp_path):
    file = tmp_path / "new" / "cache.jsonl"
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, file, name],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )
        for name in "abc"
    ]  # fmt: skip
    for writer in writers:
        writer.stdin.close()
    said = []
    for writer in writers:
        with writer:
            said.append(json.loads(writer.stdout.read()))
    assert said[0] == said[1] == said[2]
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert [line["key"] for line in lines] == [str(i) for i in range(100)]
    assert [line["said"] for line in lines] == said[0]


def test_an_unfinished_line_is_passed_over(tmp_path):
    file = tmp_path / "cache.jsonl"
    Cache(file).add("1", {"said": "one"})
    Cache(file).add("2", {"said": "two"})
    whole = file.read_bytes()
    file.write_bytes(whole[:-9])  # as a process leaves it that is killed
    cache = Cache(file)
    assert cache.get("1") == {"said": "one"} and cache.get("2") is None
    assert cache.add("2", {"said": "two"}) == {"said": "two"}
    assert Cache(file).get("2") == {"said": "two"}
    # What another process adds is found without opening the cache anew.
    Cache(file).add("3", {"said": "drei"})
    assert cache.get("3") == cache.add("3", {"said": "three"}) == {"said": "drei"}


def test_a_folder_that_takes_no_file_is_one_line(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(NovaError, match="cannot be written to .*; choose another place"):
        Cache(tmp_path / "file" / "cache.jsonl")

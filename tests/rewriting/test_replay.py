"""Rewritten prompts out of files of each published shape."""

import json

import pytest

from nova_jax.errors import NovaError
from nova_jax.rewriting.replay import Replay

TEXTS = {"a bench": "A wooden bench in a park.", "二 dogs": "Two dogs run."}


def write(path, content):
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return str(path)


def shapes(folder):
    pairs = list(TEXTS.items())
    for name in ("rewritten", "dense_prompt"):
        entries = [{"id": i, "prompt": p, name: t} for i, (p, t) in enumerate(pairs)]
        yield write(folder / f"{name}.json", entries)
        yield write(folder / f"{name}.jsonl", "\n".join(map(json.dumps, entries)) + "\n\n")
    short = write(folder / "short.txt", "\n".join(TEXTS) + "\n")
    yield f"{short},{write(folder / 'longer.txt', chr(10).join(TEXTS.values()))}"


def test_every_shape_gives_the_same(tmp_path):
    names = list(shapes(tmp_path))
    assert len(names) == 5
    for name in names:
        assert Replay.read(name).texts == TEXTS
        assert Replay.read(name)(["二 dogs", "a bench", "二 dogs"]) == [
            "Two dogs run.", "A wooden bench in a park.", "Two dogs run.",
        ]  # fmt: skip


def test_what_is_written_is_read(tmp_path):
    said = Replay.of(Replay(TEXTS), ["二 dogs"], "here")
    (tmp_path / "said.jsonl").write_bytes(said.lines())
    assert Replay.read(str(tmp_path / "said.jsonl")).texts == {"二 dogs": "Two dogs run."}


def test_a_prompt_twice_has_the_first_words_and_it_is_said(tmp_path, caplog):
    """As two prompts of VBench are, with other words each."""
    entries = [{"prompt": "x", "dense_prompt": text} for text in ("one", "two", "one")]
    assert Replay.read(write(tmp_path / "a.json", entries))(["x"]) == ["one"]
    assert "several other words for 1 prompts, such as 'x'; the first hold" in caplog.text


def test_a_prompt_without_words_stands_for_itself(tmp_path):
    """As a cache has those that its model failed on."""
    entries = [{"prompt": "x", "rewritten": None}, {"prompt": "y", "rewritten": " "}]
    assert Replay.read(write(tmp_path / "a.json", entries)).texts == {"x": "x", "y": "y"}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", "{", "a.json is no JSON .*; give .json, .jsonl, or PROMPTS.txt,REWRITTEN.txt"),
        ("a.txt", "a bench", "a.txt is no JSON"),
        ("a.json", {"a": "b"}, "a.json is no list; give one"),
        ("a.json", [], "a.json holds no prompt"),
        ("a.json", [{"prompt": "x"}], 'entry 1 of .*a.json is .*; write {"prompt": "...", "rew'),
        ("a.json", [{"prompt": "x", "rewritten": 1}], "entry 1"),
        ("a.json", ["x"], "entry 1 of"),
        ("a.jsonl", '{"prompt": "x", "rewritten": "y"}\n{"pro', "a.jsonl is no JSON"),
        ("a.json", b"\xff", "a.json cannot be read"),
    ],
)
def test_what_is_no_such_file_is_one_line(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content) if isinstance(content, bytes) else write(path, content)
    with pytest.raises(NovaError, match=message) as raised:
        Replay.read(str(path))
    assert "\n" not in str(raised.value)


def test_files_that_do_not_belong_together_are_one_line(tmp_path):
    one, other = write(tmp_path / "a.txt", "x\ny\n"), write(tmp_path / "b.txt", "x\n")
    with pytest.raises(NovaError, match="a.txt has 2 lines and .*b.txt 1; give files whose lines"):
        Replay.read(f"{one},{other}")
    with pytest.raises(NovaError, match="c.txt cannot be read"):
        Replay.read(f"{one},{tmp_path / 'c.txt'}")


def test_a_prompt_that_is_missing_is_one_line():
    with pytest.raises(NovaError, match="no other words for 1 of 2 prompts, the first is 'a cat'"):
        Replay(TEXTS)(["a bench", "a cat"])

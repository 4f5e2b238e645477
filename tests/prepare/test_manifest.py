"""What is to be prepared: every kind of manifest, and every row that cannot be used."""

import json
import math

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nova_jax.errors import NovaError
from nova_jax.prepare.manifest import read_manifest

ROWS = [
    {"path": "a.mp4", "caption": " a  red\nball "},
    {"path": "b.png", "caption": "a house", "short_caption": "house", "label": 3},
    {"path": "a.mp4", "caption": "later", "start": 1.5, "end": 3},
]


@pytest.fixture
def files(tmp_path):
    for name in ("a.mp4", "b.png", "c.webm"):
        (tmp_path / name).write_bytes(b"something")
    (tmp_path / "empty.mp4").touch()
    return tmp_path


def write(path, rows):
    if path.suffix == ".jsonl":
        path.write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    elif path.suffix == ".csv":
        names = ["path", "caption", "short_caption", "start", "end", "label"]
        lines = [",".join(f'"{row.get(name, "")}"' for name in names) for row in rows]
        path.write_text("\n".join([",".join(names), *lines]))
    else:
        names = {name for row in rows for name in row}
        pq.write_table(pa.table({n: [row.get(n) for row in rows] for n in names}), path)
    return path


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_manifests_of_every_kind_say_the_same(files, kind):
    items, skips = read_manifest(write(files / f"m.{kind}", ROWS))
    assert skips == []
    assert [(i.name, i.caption, i.short_caption, i.start, i.end, i.label) for i in items] == [
        ("a.mp4", "a red ball", "", 0, math.inf, -1),
        ("b.png", "a house", "house", 0, math.inf, 3),
        ("a.mp4", "later", "", 1.5, 3, -1),
    ]
    assert [item.is_picture for item in items] == [False, True, False]


def test_a_directory_has_captions_beside(files):
    (files / "deep").mkdir()
    (files / "deep" / "d.gif").write_bytes(b"x")
    (files / "deep" / "d.txt").write_text("\n a long one\n\nshort\n")
    (files / "a.txt").write_bytes(b"caf\xe9")
    (files / "b.txt").write_text("naïve ☕", encoding="utf-8")
    items, skips = read_manifest(files)
    assert [(i.name, i.caption, i.short_caption) for i in items] == [
        ("b.png", "naïve ☕", ""),
        ("deep/d.gif", "a long one", "short"),
    ]
    assert dict(skips) == {
        "a.mp4": "a.txt is not UTF-8",
        "c.webm": "no caption",
        "empty.mp4": "the file is empty",
    }


def test_keys_do_not_depend_on_where_the_directory_lies(files, tmp_path_factory):
    other = tmp_path_factory.mktemp("other")
    (other / "a.mp4").write_bytes(b"else")
    keys = [read_manifest(write(place / "m.jsonl", ROWS[:1]))[0][0].key for place in (files, other)]
    assert keys[0] == keys[1]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"path": "gone.mp4", "caption": "x"}, "no such file"),
        ({"path": "empty.mp4", "caption": "x"}, "the file is empty"),
        ({"path": "a.mp4", "caption": "  "}, "no caption"),
        ({"path": "a.mp4"}, "no caption"),
        ({"caption": "x"}, "no path"),
        ({"path": "notes.doc", "caption": "x"}, "neither a picture nor a video"),
        ({"path": "a.mp4", "caption": "x", "start": "soon"}, "is no number"),
        ({"path": "a.mp4", "caption": "x", "start": 3, "end": 2}, "hold nothing"),
        ({"path": "a.mp4", "caption": 7}, "is no text"),
        (ROWS[0], "there before"),
    ],
)
def test_rows_that_cannot_be_used_are_listed(files, row, reason):
    items, skips = read_manifest(write(files / "m.jsonl", [ROWS[0], row]))
    assert len(items) == 1
    ((_, why),) = skips
    assert reason in why


def test_a_bad_line_costs_that_line_alone(files):
    path = files / "m.jsonl"
    good = json.dumps(ROWS[0]).encode()
    path.write_bytes(b'{"path": "\xff"}\n' + good + b"\n{broken\n[1]\n")
    items, skips = read_manifest(path)
    assert len(items) == 1
    assert dict(skips) == {
        "m.jsonl:1": "not UTF-8",
        "m.jsonl:3": "not a JSON object",
        "m.jsonl:4": "not a JSON object",
    }
    table = files / "m.csv"
    table.write_bytes(b"path,caption\na.mp4,caf\xe9\nb.png,fine\n")
    items, skips = read_manifest(table)
    assert [item.name for item in items] == ["b.png"]
    assert skips == [("m.csv:2", "not UTF-8")]


def test_manifests_that_cannot_be_used_are_named(files):
    with pytest.raises(NovaError, match="does not exist"):
        read_manifest(files / "gone.csv")
    with pytest.raises(NovaError, match="is no manifest"):
        read_manifest(files / "a.mp4")
    for kind in ("csv", "jsonl", "parquet"):
        path = write(files / f"n.{kind}", [{"path": "a.mp4", "text": "x"}])
        if kind == "csv":
            path.write_text("file,caption\na.mp4,x\n")
        with pytest.raises(NovaError, match="has no column"):
            read_manifest(path)
    (files / "n.parquet").write_bytes(b"PAR1 but no more")
    with pytest.raises(NovaError, match="cannot be read as Parquet"):
        read_manifest(files / "n.parquet")

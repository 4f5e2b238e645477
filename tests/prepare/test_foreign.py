"""Data that others prepared, from files that their own writers wrote."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from videos import moving_square, write_video

from nova_jax.errors import NovaError
from nova_jax.prepare.clips import ClipConfig, Unusable
from nova_jax.prepare.foreign import TFDSConfig, open_codewithgpu, open_tfds
from nova_jax.prepare.manifest import read_manifest
from nova_jax.prepare.preparation import PrepareConfig, prepare

# Three records by codewithgpu 0.2.8, protobuf 3.20.3: moments count up by 1/64 from the number.
RECORDS = Path(__file__).parent / "codewithgpu"
CONFIG = ClipConfig(sizes=((32, 48),), frames=(5,), stride=2)


def test_records_of_the_release_are_taken_as_they_are():
    items, read = open_codewithgpu(RECORDS)
    assert [item.name for item in items] == [f"codewithgpu:{n}" for n in range(3)]
    assert len({item.key for item in items}) == 3
    for n, item in enumerate(items):
        (clip,) = read(item, CONFIG)
        frames = 2 if n else 1
        whole = np.arange(8 * frames * 24).reshape(8, frames, 4, 6) / 64 + n
        np.testing.assert_array_equal(clip.moments, np.float16(whole).transpose(1, 2, 3, 0))
        assert clip.item.caption == f"long caption {n}, naïve"
        assert clip.item.short_caption == ("short" if n else "")
        assert (clip.flow, clip.fps) == ((2.5 * n, 12.0) if n else (0.0, 0.0))
    with pytest.raises(NovaError, match="has latents and no pixels; leave out --raw"):
        prepare(items, [], Path("/tmp/unused"), PrepareConfig(), None, read=read)


def test_damaged_records_of_the_release_are_named(tmp_path):
    directory = Path(shutil.copytree(RECORDS, tmp_path / "records"))
    data = directory / "00000.data"
    whole = data.read_bytes()
    items, read = open_codewithgpu(directory)
    for changed in (b"", whole[:100], b"\xff" * len(whole), whole.replace(b"shape", b"shade")):
        data.write_bytes(changed)
        with pytest.raises(Unusable, match="the record is damaged"):
            read(items[0], CONFIG)
    metadata = json.loads((directory / "METADATA").read_text())
    for change, named in (
        ({"caption": {"data": "BYTES", "shape": ["INT64"]}}, "captions as features"),
        ({"shape": None}, None),
    ):
        features = metadata["features"] | change
        features = {name: kind for name, kind in features.items() if kind is not None}
        (directory / "METADATA").write_text(json.dumps(metadata | {"features": features}))
        with pytest.raises(NovaError, match=named or "moments and shape are needed"):
            open_codewithgpu(directory)
    (directory / "00000.index").write_text("0\n")
    (directory / "METADATA").write_text(json.dumps(metadata))
    with pytest.raises(NovaError, match="holds no records of codewithgpu"):
        open_codewithgpu(directory)
    with pytest.raises(NovaError, match="holds no records of codewithgpu"):
        open_codewithgpu(tmp_path)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """A dataset of tensorflow-datasets: our own of pixels, which is one."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dataset")
    write_video(source / "v.mp4", moving_square(20), fps=10)
    (source / "v.txt").write_text("a square\nsquare")
    settings = PrepareConfig(clips=ClipConfig(sizes=((48, 64),), frames=(20,), stride=1))
    prepare(*read_manifest(source), out, settings, None)
    return out


def test_datasets_of_tensorflow_datasets_are_cut_like_files(dataset):
    fields = TFDSConfig(pixels="frames", short_caption="short_caption", label="label", fps="fps")
    items, read = open_tfds(str(dataset), fields)
    assert [item.name for item in items] == ["nova/1.0.0:train:0"]
    (clip,) = read(items[0], CONFIG)
    assert clip.frames.shape == (5, 32, 48, 3) and clip.fps == pytest.approx(5, rel=0.02)
    row = clip.item
    assert (row.caption, row.short_caption, row.label) == ("a square", "square", -1)
    assert clip.source_size == (48, 64)
    with pytest.raises(Unusable, match="too short"):
        read(items[0], ClipConfig())


@pytest.mark.parametrize(
    ("name", "settings", "named"),
    [
        ("no_such_dataset", {}, "cannot open no_such_dataset"),
        (None, {}, "has no field 'video' for config.tfds.pixels; it has caption,"),
        (None, {"pixels": "frames", "fps": "rate"}, "has no field 'rate' for config.tfds.fps"),
        (None, {"pixels": "frames", "split": "test"}, "cannot open"),
    ],
)
def test_datasets_that_cannot_be_used_are_named(dataset, name, settings, named):
    with pytest.raises(NovaError, match=named):
        open_tfds(name or str(dataset), TFDSConfig(**settings))


def test_fields_of_another_kind_are_skipped(dataset):
    items, read = open_tfds(str(dataset), TFDSConfig(pixels="flow"))
    with pytest.raises(Unusable, match="flow is float64 .., not RGB frames"):
        read(items[0], CONFIG)

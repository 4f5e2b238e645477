"""From files to records: all of them once, however often it is stopped, and bad ones listed."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image
from videos import moving_square, write_video

from nova_jax.autoencoders.pixels import to_float
from nova_jax.checkpoints.diffusers import load_autoencoder, load_text_encoder
from nova_jax.data.records import Records
from nova_jax.distributed import lock
from nova_jax.distributed.lock import claim_share
from nova_jax.distributed.multihost import parse_shard
from nova_jax.errors import NovaError
from nova_jax.prepare.clips import ClipConfig, read_clips
from nova_jax.prepare.encoders import Encoders
from nova_jax.prepare.manifest import read_manifest
from nova_jax.prepare.parts import Part
from nova_jax.prepare.preparation import PrepareConfig, Report, prepare

RELEASED = Path(__file__).parent.parent / "golden" / "pipeline_t2v"
CONFIG = PrepareConfig(
    clips=ClipConfig(sizes=((32, 48), (48, 32)), frames=(5,), stride=2, clips_per_video=2),
    text_length=16,
    batch_size=1,
    threads=2,
    rows_per_part=3,
)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Six files that can be used, of which v0 makes two clips, and three that cannot."""
    directory = tmp_path_factory.mktemp("source")
    for n, count in enumerate((20, 11, 12)):
        write_video(directory / f"v{n}.mp4", moving_square(count, hue=n), fps=10)
    for n in range(3):
        frame = moving_square(1, (48, 64) if n else (64, 48), hue=n)[0]
        Image.fromarray(frame).save(directory / f"p{n}.png")
    write_video(directory / "short.mp4", moving_square(4))
    (directory / "noise.mp4").write_bytes(b"noise" * 99)
    (directory / "silent.png").write_bytes((directory / "p0.png").read_bytes())
    for path in directory.glob("*.*"):
        if path.stem != "silent":
            path.with_suffix(".txt").write_text(f"the clip {path.stem}\n{path.stem}\n")
    return directory


CLIPS = ["p0.png", "p1.png", "p2.png", "v0.mp4", "v0.mp4", "v1.mp4", "v2.mp4"]


def run(source, out, config=CONFIG, encoders=None, **options):
    items, skips = read_manifest(source)
    return prepare(items, skips, out, config, encoders, **options)


def contents(directory):
    records = Records(directory)
    found = records.read(range(len(records)))
    return sorted(found, key=lambda record: (record["source"], record["start"]))


def test_pixels_and_captions_are_kept_as_they_are(source, tmp_path):
    report = run(source, tmp_path)
    assert (report.rows, report.clips, report.left) == (8, 7, 0)
    reasons = {where: why.split(":")[0] for where, why in report.skipped}
    assert reasons == {
        "silent.png": "no caption",
        "noise.mp4": "cannot be decoded",
        "short.mp4": "too short",
    }
    listed = json.loads((tmp_path / "report.json").read_text())["skipped"]
    assert {entry["input"] for entry in listed} == set(reasons)
    assert Records(tmp_path).metadata.skipped == dict.fromkeys(reasons.values(), 1)
    found = contents(tmp_path)
    assert [record["source"] for record in found] == CLIPS
    items = {item.name: item for item in read_manifest(source)[0]}
    for record in found:
        name = record["source"]
        clip = next(
            c
            for c in read_clips(items[name], CONFIG.clips)
            if abs(c.start - record["start"]) < 1e-3
        )
        np.testing.assert_array_equal(record["frames"], clip.frames)
        assert record["caption"] == f"the clip {name[:2]}" and record["short_caption"] == name[:2]
        assert record["flow"] == np.float32(clip.flow) and record["fps"] == np.float32(clip.fps)
        assert record["phash"] % (1 << 64) == clip.phash
    assert found[0]["frames"].shape == (1, 48, 32, 3)  # portrait
    Records(tmp_path).verify()


def test_a_stopped_run_goes_on_without_doing_work_twice(source, tmp_path):
    whole = run(source, tmp_path / "whole")
    rows = []

    def counted(item, config):
        rows.append(item.name)
        return read_clips(item, config)

    out = tmp_path / "parts"
    for take in (1, 3, 2):
        report = run(source, out, stopping=lambda rows, take=take: rows == take)
        assert report.rows == take and report.metadata is None
        assert not (out / "metadata.json").exists()
    rows.clear()
    last = run(source, out, read=counted)
    assert last.rows == 2 and len(rows) == 2 and last.left == 0
    assert sorted(last.skipped) == sorted(whole.skipped)
    for one, other in zip(contents(out), contents(tmp_path / "whole"), strict=True):
        np.testing.assert_array_equal(one.pop("frames"), other.pop("frames"))
        assert one == other
    assert run(source, out).rows == 0


def test_nothing_that_changes_imports_is_imported_beside_threads(tmp_path):
    program = """
import sys
from pathlib import Path
from nova_jax.prepare.clips import ClipConfig
from nova_jax.prepare.parts import Parts
Parts(Path(sys.argv[1]), ClipConfig(sizes=((32, 32),), frames=(1,)), None)
assert "tensorflow_datasets" in sys.modules
"""
    subprocess.run([sys.executable, "-c", program, tmp_path], check=True)


def test_what_a_killed_run_had_begun_is_done_again(source, tmp_path, monkeypatch):
    def killed(part):
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(Part, "close", killed)
        with pytest.raises(MemoryError):
            run(source, tmp_path)
    assert run(source, tmp_path).clips == 7
    assert [record["source"] for record in contents(tmp_path)] == CLIPS
    left = {path.name for path in (tmp_path / "parts").iterdir() if path.suffix != ".json"}
    assert left == {"lock"}


def test_processes_share_the_rows_and_the_last_one_finishes(source, tmp_path):
    reports = [run(source, tmp_path, shard=(index, 3)) for index in (2, 0, 1)]
    assert [report.rows for report in reports] == [2, 3, 3]
    assert [report.metadata is None for report in reports] == [True, True, False]
    assert [record["source"] for record in contents(tmp_path)] == CLIPS


def test_a_share_of_the_rows_is_for_one_process_at_a_time(tmp_path, monkeypatch):
    """Shards of one number of shards have no row in common, others have."""
    monkeypatch.setattr(lock, "_DYING", 0.1)
    out = tmp_path / "out"
    with claim_share(out, (0, 2)), claim_share(out, (1, 2)):
        for shard in ((0, 2), (0, 1), (2, 3)):
            with (
                pytest.raises(NovaError, match="out is in use by process"),
                claim_share(out, shard),
            ):
                pass
        left = out / "lock-0-of-1"  # by one that was killed
        left.write_text((out / "lock-0-of-2").read_text())
    with claim_share(out, (0, 3)):
        assert [path.name for path in out.iterdir()] == ["lock-0-of-3"]
    assert not list(out.iterdir())


def test_rows_can_be_added_later_and_shards_keep_their_numbers(source, tmp_path):
    items, skips = read_manifest(source)
    prepare(items[:4], [], tmp_path, CONFIG, None)
    before = {path.name: path.read_bytes() for path in tmp_path.glob("*array_record*")}
    report = prepare(items, skips, tmp_path, CONFIG, None)
    assert report.rows == len(items) - 4
    assert [record["source"] for record in contents(tmp_path)] == CLIPS
    for name, data in before.items():
        assert (tmp_path / name).read_bytes() == data


def test_strict_stops_at_the_first_bad_input(source, tmp_path):
    items, skips = read_manifest(source)
    with pytest.raises(NovaError, match="silent.png: no caption; mend it"):
        prepare(items, skips, tmp_path / "a", CONFIG, None, strict=True)
    with pytest.raises(NovaError, match="noise.mp4: cannot be decoded"):
        prepare(items, [], tmp_path / "b", CONFIG, None, strict=True)


def test_a_directory_of_another_config_is_refused(source, tmp_path):
    run(source, tmp_path)
    clips = dataclasses.replace(CONFIG.clips, stride=3)
    with pytest.raises(NovaError, match=r"clips.stride 2, now it is 3"):
        run(source, tmp_path, dataclasses.replace(CONFIG, clips=clips))
    (tmp_path / "parts" / "settings.json").write_text("{")
    with pytest.raises(NovaError, match="settings.json is damaged"):
        run(source, tmp_path)


@pytest.mark.parametrize("file", ["records", "metadata"])
def test_a_full_disk_is_an_error_of_storage(source, tmp_path, file):
    items, _ = read_manifest(source)
    parts = tmp_path / "parts"
    parts.mkdir()
    if file == "records":
        (parts / f"{items[0].key}-5x32x48").symlink_to("/dev/full")
        (parts / f"{items[0].key}-1x48x32").symlink_to("/dev/full")
    else:
        (parts / f"settings.json.{os.getpid()}.partial").symlink_to("/dev/full")
    with pytest.raises((RuntimeError, OSError), match="No space left on device"):
        run(source, tmp_path)


LANDSCAPE = dataclasses.replace(CONFIG, clips=dataclasses.replace(CONFIG.clips, sizes=((32, 48),)))


@pytest.fixture(scope="module")
def latents(source, tmp_path_factory):
    """Prepared with small released parts: the directory, the encoders and the report."""
    parts = load_autoencoder(RELEASED / "vae"), load_text_encoder(RELEASED)
    encoders = Encoders(*parts, source="small", text_length=16)
    out = tmp_path_factory.mktemp("latents")
    return out, encoders, parts, run(source, out, LANDSCAPE, encoders)


def test_moments_and_features_are_those_of_the_frozen_parts(source, latents):
    out, encoders, (codec, text_encoder), report = latents
    assert report.clips == 7 and report.bottleneck in ("decoding", "the encoders")
    assert encoders.devices == jax.local_device_count() > 1
    found = contents(out)
    assert [record["source"] for record in found] == CLIPS
    (item,) = (item for item in read_manifest(source)[0] if item.name == "p1.png")
    (clip,) = read_clips(item, LANDSCAPE.clips)
    moments = np.asarray(codec.moments(to_float(clip.frames[None])))[0]
    assert found[1]["moments"].shape == moments.shape
    np.testing.assert_allclose(found[1]["moments"], moments, rtol=5e-3, atol=5e-3)
    for record in found:
        for form in ("", "short_"):
            text, (length,) = text_encoder.encode([record[f"{form}caption"]], 16)
            assert record[f"{form}text"].shape == (length, 32)
            np.testing.assert_allclose(
                record[f"{form}text"], text[0, :length], rtol=5e-3, atol=5e-3
            )


def test_clips_whose_latents_are_not_finite_are_skipped(source, latents, tmp_path):
    _, encoders, *_ = latents

    def read(item, config):
        moments = np.zeros((1, 4, 6, encoders.encoding.moments), np.float16)
        moments[0, 1, 2, 3] = np.nan if item.name == "p1.png" else 1
        clip = read_clips(item, config)[0]
        return [dataclasses.replace(clip, moments=moments)]

    items = [item for item in read_manifest(source)[0] if item.is_picture]
    report = prepare(items, [], tmp_path, LANDSCAPE, encoders, read=read)
    assert report.skipped == [("p1.png", "its latents or text features are not finite")]
    assert [record["source"] for record in contents(tmp_path)] == ["p0.png", "p2.png"]


def test_other_encoders_are_refused(source, latents):
    out, encoders, (codec, text_encoder), _ = latents
    other = load_autoencoder(RELEASED.parent / "vae_opensora")
    with pytest.raises(NovaError, match="begun with another autoencoder .codec_probe differs."):
        others = Encoders(other, text_encoder, source="x", text_length=16)
        run(source, out, LANDSCAPE, others)
    with pytest.raises(NovaError, match="holds latents records"):
        run(source, out, LANDSCAPE)


def test_clips_that_an_autoencoder_cannot_take_are_named(latents):
    _, encoders, *_ = latents
    assert encoders.latent(33, (480, 768)) == (9, 60, 96)
    for frames, size in ((32, (480, 768)), (33, (480, 765))):
        with pytest.raises(NovaError, match="multiples of 8 and (17|33) frames"):
            encoders.latent(frames, size)


@pytest.mark.parametrize("text", ["3", "3/3", "-1/2", "a/b", "1/", "0/0"])
def test_shards_that_cannot_be_are_named(text):
    with pytest.raises(NovaError, match=f"--shard={text} is not i/n"):
        parse_shard(text)
    assert parse_shard("2/3") == (2, 3)


def test_the_report_says_what_was_skipped_and_which_side_waits(tmp_path):
    skipped = [(f"{n}.mp4", "too short") for n in range(9)]
    report = Report(
        rows=20, clips=10, seconds=5.0, waited_for_clips=3.0, waited_for_encoders=1.0,
        skipped=skipped, left=4, metadata=None,
    )  # fmt: skip
    shown = "\n".join(report.lines(tmp_path))
    assert "20 files gave 10 clips in 5.0 s, 2.00 clips/s" in shown
    assert "the limit: decoding" in shown and "4 files are left" in shown
    assert "Skipped 9:" in shown and "4.mp4: too short" in shown and "5.mp4" not in shown

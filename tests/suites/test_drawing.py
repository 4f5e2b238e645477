"""Files of a suite are those of its samples, whoever draws them and however often that stops."""

import dataclasses
import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
import small_suites
from PIL import Image

from nova_jax import budget, media
from nova_jax.distributed import lock
from nova_jax.errors import NovaError
from nova_jax.pipeline import NovaPipeline
from nova_jax.suites import presets
from nova_jax.suites.drawing import Asked, cut, draw
from nova_jax.suites.folder import Folder, missing
from nova_jax.suites.interface import Item, Target, sample_seed
from nova_jax.suites.registry import SUITES

GOLDEN = Path(__file__).parents[1] / "golden"
STEPS = {"num_inference_steps": 2, "num_diffusion_steps": 2}


@pytest.fixture(scope="module")
def clones(tmp_path_factory):
    return small_suites.write_clones(tmp_path_factory.mktemp("clones") / "clones")


def load(name):
    """A small model in the released layout, with random weights."""
    return NovaPipeline.from_pretrained(GOLDEN / name, devices=jax.devices()[:1])


@pytest.fixture(scope="module")
def pictures():
    """One that makes pictures of 64x64 pixels."""
    return load("pipeline_t2i")


def asked(clones, name="geneval", parts=None, **options):
    suite = SUITES[name]
    prompts = suite.prompts(clones, parts or suite.parts, verify=False)
    facts = {k: options.pop(k) for k in ("rewriter", "rewriter_name", "seed") if k in options}
    return Asked(suite, prompts, STEPS | options, checkpoint="small", **facts)


def run(pipeline, what, out, shard=(0, 1), **options):
    with Folder.claim(out, shard) as folder:
        return draw(pipeline, what, folder, show_progress=False, **options)


def contents(folder):
    """Every file but for what tells of speed."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and not path.name.startswith("speed")
    }


@pytest.fixture(scope="module")
def whole(pictures, clones, tmp_path_factory):
    """All of GenEval's small form, drawn at once in batches of 5: 12 pictures of 3 prompts."""
    out = tmp_path_factory.mktemp("whole") / "out"
    done = run(pictures, asked(clones), out, batch_size=5)
    assert (done.files, done.new) == (12, 12)
    return out


def read(path):
    with Image.open(path) as picture:
        return np.asarray(picture)


def assert_close(found, expected):
    """Equal but for rounding, as another batch shape may have it."""
    difference = np.abs(found.astype(int) - expected)
    assert difference.max() <= 1 and (difference > 0).mean() < 1e-3


def test_files_are_just_those_that_the_scorer_takes(whole):
    assert sorted(contents(whole)) == sorted(
        ["run.json", "prompts.jsonl"]
        + [f"images/0000{n}/metadata.jsonl" for n in range(3)]
        + [f"images/0000{n}/samples/0000{i}.png" for n in range(3) for i in range(4)]
    )
    lines = [(whole / f"images/0000{n}/metadata.jsonl").read_text() for n in range(3)]
    assert lines == [f"{line}\n" for line in small_suites.GENEVAL]


def test_pictures_are_what_the_pipeline_makes_of_prompt_and_seed(whole, pictures):
    prompt = "a photo of two clocks"
    seeds = [9, 8, 7, 6, sample_seed(prompt, 2)]
    alone = pictures([prompt] * 5, seed=seeds, num_frames=1, **STEPS).frames[4, 0]
    drawn = [read(whole / f"images/00001/samples/0000{i}.png") for i in range(4)]
    assert_close(drawn[2], alone)
    assert all(np.abs(a.astype(int) - b).mean() > 1 for a, b in zip(drawn, drawn[1:], strict=False))


def test_the_manifest_has_prompts_files_and_seeds(whole):
    rows = [json.loads(line) for line in (whole / "prompts.jsonl").read_text().splitlines()]
    assert [row["prompt"] for row in rows] == [
        json.loads(line)["prompt"] for line in small_suites.GENEVAL
    ]
    assert all(row["rewritten"] is None for row in rows)
    assert rows[1]["files"][2] == {
        "file": "images/00001/samples/00002.png",
        "seeds": [sample_seed("a photo of two clocks", 2)],
    }


def test_shards_make_the_same_bytes(whole, pictures, clones, tmp_path):
    new = [run(pictures, asked(clones), tmp_path, (i, 3), batch_size=5).new for i in (2, 0, 1)]
    assert new == [2, 5, 5]
    assert contents(tmp_path) == contents(whole)


def test_another_batch_size_makes_the_same_pictures(whole, pictures, clones, tmp_path):
    run(pictures, asked(clones), tmp_path, batch_size=4)
    for path in whole.rglob("*.png"):
        assert_close(read(tmp_path / path.relative_to(whole)), read(path))


def test_what_is_whole_stays_and_what_is_not_is_drawn_again(whole, pictures, clones, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(whole, out)
    half, gone, line = (
        out / "images/00000/samples/00001.png",
        out / "images/00002/samples/00003.png",
        out / "images/00001/metadata.jsonl",
    )
    half.write_bytes(half.read_bytes()[:-30])
    gone.unlink()
    line.write_text("{}")
    times = {path: path.stat().st_mtime_ns for path in out.rglob("*.png")}
    done = run(pictures, asked(clones), out, batch_size=5)
    assert (done.files, done.new) == (12, 2)
    assert contents(out) == contents(whole)
    changed = {path for path, time in times.items() if path.stat().st_mtime_ns != time}
    assert changed == {half}
    assert run(pictures, asked(clones), out, batch_size=5).new == 0


def test_other_seeds_make_other_pictures(whole, pictures, clones, tmp_path):
    run(pictures, asked(clones, parts=["colors"], seed=1), tmp_path, batch_size=4)
    name = "images/00002/samples/00000.png"
    assert np.abs(read(tmp_path / name).astype(int) - read(whole / name)).mean() > 1


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"num_inference_steps": 3}, "sampling.num_inference_steps 2, not 3"),
        ({"guidance_scale": 7.0}, "sampling.guidance.scale 5.0, not 7.0"),
        ({"seed": 4}, "seed 0, not 4"),
        ({"negative_prompt": "blurry"}, "negative_prompt None, not blurry"),
        ({"name": "dpg"}, "suite geneval, not dpg"),
        ({"parts": ["colors"]}, r"parts .'single_object', .*, not ..colors.."),
        ({"rewriter": lambda p: p, "rewriter_name": "Qwen"}, "rewriter None, not Qwen"),
    ],
)
def test_results_of_something_else_are_refused_by_name(
    whole, pictures, clones, tmp_path, change, said
):
    out = tmp_path / "out"
    shutil.copytree(whole, out)
    with pytest.raises(NovaError, match=f"{out} has results of .*{said}.*choose another --out"):
        run(pictures, asked(clones, **change), out)
    assert contents(out) == contents(whole)


def test_results_of_another_checkpoint_are_refused_by_name(whole, clones, untrained, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(whole, out)
    other = NovaPipeline.from_checkpoint(untrained, devices=jax.devices()[:1])
    with pytest.raises(NovaError, match="has results of model [0-9a-f]+, not [0-9a-f]+; "):
        run(other, asked(clones), out)
    assert contents(out) == contents(whole)


def test_files_that_nobody_knows_are_not_taken_for_results(whole, pictures, clones, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(whole / "images", out / "images")
    before = contents(out)
    with pytest.raises(
        NovaError, match="images/00000/samples/00000.png and no run.json, so nobody"
    ):
        run(pictures, asked(clones), out)
    assert contents(out) == before


def test_a_damaged_manifest_is_named(whole, pictures, clones, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(whole, out)
    (out / "prompts.jsonl").write_text('{"prompt"')
    with pytest.raises(NovaError, match=r"prompts.jsonl is damaged .*; choose another --out"):
        run(pictures, asked(clones), out)
    (out / "run.json").write_text("[")
    with pytest.raises(NovaError, match=r"run.json is damaged .*; choose another --out"):
        run(pictures, asked(clones), out)


def test_grids_are_four_samples_two_by_two(pictures, clones, tmp_path):
    run(pictures, asked(clones, "dpg"), tmp_path, batch_size=5)
    assert sorted(path.name for path in (tmp_path / "images").iterdir()) == ["7.png", "whoops3.png"]
    grid = read(tmp_path / "images" / "7.png")
    assert grid.shape == (128, 128, 3)
    seeds = [sample_seed("A long prompt.", i) for i in range(4)]
    alone = pictures(["A long prompt."] * 4, seed=seeds, num_frames=1, **STEPS).frames[:, 0]
    # As compute_dpg_bench.py cuts it: left to right, then the second row.
    corners = [(0, 0), (64, 0), (0, 64), (64, 64)]
    for (x, y), picture in zip(corners, alone, strict=True):
        assert_close(grid[y : y + 64, x : x + 64], picture)


def encoded(frames, folder):
    """Frames as a file of them shows them: H.264 has fewer colors."""
    file = media.save(folder / "alone" / "clip.mp4", media.encode_mp4(frames, 12.0))
    return media.read_video(file)


def test_videos_are_named_after_prompts(clones, tmp_path):
    out = tmp_path / "out"
    pipeline = load("pipeline_t2v")
    what = asked(clones, "vbench", parts=["imaging_quality"], max_latent_length=2)
    run(pipeline, what, out, batch_size=3)
    files = sorted(path.name for path in (out / "videos").iterdir())
    assert files == [f"a cat, oil painting-{i}.mp4" for i in range(5)]
    clips = [media.read_video(out / "videos" / file) for file in files]
    assert {clip.shape for clip in clips} == {(5, 64, 96, 3)}
    assert json.loads((out / "run.json").read_text())["fps"] == 12.0
    seeds = [sample_seed("a cat, oil painting", i) for i in (1, 2, 3)]
    told = ["a cat, oil painting"] * 3
    alone = pipeline(told, seed=seeds, max_latent_length=2, **STEPS).frames
    for clip, frames in zip(clips[1:4], alone, strict=True):
        assert np.abs(clip.astype(int) - encoded(frames, tmp_path)).mean() < 0.1
    assert np.abs(clips[3].astype(int) - clips[2]).mean() > 5
    cutoff = out / "videos" / files[1]
    before = contents(out)
    cutoff.write_bytes(cutoff.read_bytes()[:-7])
    assert run(pipeline, what, out, batch_size=3).new == 1
    assert contents(out) == before


def test_a_model_of_pictures_is_told_so_before_a_suite_of_videos(pictures, clones, tmp_path):
    with pytest.raises(NovaError, match="VBench is of videos, and small makes pictures unless"):
        run(pictures, asked(clones, "vbench"), tmp_path / "out")
    with pytest.raises(NovaError, match="an image model cannot make 9 frames"):
        run(pictures, asked(clones, "vbench", max_latent_length=9), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_model_of_classes_is_refused(clones, save_untrained, tmp_path):
    directory = save_untrained(tmp_path / "model", num_classes=3, text_dim=None, text_length=None,
                               frames=1, mixer_rank=None)  # fmt: skip
    with pytest.raises(NovaError, match="small takes class numbers, and prompts are texts"):
        run(NovaPipeline.from_checkpoint(directory), asked(clones), tmp_path / "out")


def test_memory_is_for_a_batch_and_the_decoding_of_the_one_before(pictures, monkeypatch):
    request = pictures.request([""] * 4, num_frames=1, batch_size=4, **STEPS)

    def least(**options):
        """Bytes that a machine must have."""
        low, high = 0, 2**40
        while high - low > 1:
            middle = (low + high) // 2
            monkeypatch.setattr(budget, "host_memory", lambda middle=middle: middle)
            try:
                pictures.check_memory(request, **options)
            except NovaError:
                low = middle
            else:
                high = middle
        return high

    drawn = dataclasses.replace(request, output_type="latent")
    assert least(overlapped=True) > least() + 2**20
    monkeypatch.setattr(budget, "host_memory", lambda: 2**20)
    with pytest.raises(NovaError, match="this request takes about .* of memory"):
        pictures.check_memory(drawn, overlapped=True)


def test_rewritten_prompts_are_what_the_model_is_told_and_no_more(pictures, clones, tmp_path):
    calls = []

    def rewriter(prompts):
        calls.append(list(prompts))
        return [prompt.removeprefix("a photo of ") for prompt in prompts]

    what = asked(clones, rewriter=rewriter, rewriter_name="light")
    for i in (1, 0):
        run(pictures, what, tmp_path, (i, 2), batch_size=5)
    assert len(calls) == 1 and len(calls[0]) == 3  # the second shard read what the first was told
    rows = [json.loads(line) for line in (tmp_path / "prompts.jsonl").read_text().splitlines()]
    assert rows[1]["prompt"] == "a photo of two clocks"
    assert rows[1]["rewritten"] == "two clocks"
    line = (tmp_path / "images/00001/metadata.jsonl").read_text()
    assert line == f"{small_suites.GENEVAL[1]}\n"
    seed = sample_seed("a photo of two clocks", 0)
    told = pictures([rows[1]["rewritten"]] * 5, seed=seed, num_frames=1, **STEPS).frames[0, 0]
    assert_close(read(tmp_path / "images/00001/samples/00000.png"), told)


def test_a_rewriter_that_loses_prompts_is_named(pictures, clones, tmp_path):
    what = asked(clones, rewriter=lambda prompts: prompts[1:], rewriter_name="short")
    with pytest.raises(NovaError, match="for 3 prompts; it must give a list of one text"):
        run(pictures, what, tmp_path)


def test_shards_are_held_by_one_process_each(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "_DYING", 0.1)
    with Folder.claim(tmp_path / "out", (0, 2)), Folder.claim(tmp_path / "out", (1, 2)):
        for shard in ((0, 2), (0, 1), (2, 3)):
            with pytest.raises(NovaError, match=r"out is in use by process \d+ on"):
                with Folder.claim(tmp_path / "out", shard):
                    pass
    assert not (tmp_path / "out").exists()


def test_what_a_killed_process_left_is_cleared_away(whole, pictures, clones, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(whole, out)
    (out / ".unfinished-0-of-1").mkdir()
    (out / ".unfinished-0-of-1" / ".0123.partial").write_bytes(b"half")
    run(pictures, asked(clones), out, batch_size=5)
    assert contents(out) == contents(whole)


def test_batches_hold_grids_whole():
    items = [Item(str(n), (Target(f"{n}.png", (0, 1, 2, 3)),)) for n in range(5)]
    assert [len(batch) for batch in cut(items, 9)] == [2, 2, 1]
    assert [len(batch) for batch in cut(items, 3)] == [1] * 5
    singles = [Item(str(n), tuple(Target(f"{n}{i}", (i,)) for i in range(4))) for n in range(3)]
    batches = cut(singles, 5)
    assert [len(batch) for batch in batches] == [5, 5, 2]
    assert [target.path for batch in batches for _, target in batch] == [
        target.path for item in singles for target in item.targets
    ]


def test_what_is_missing_is_what_is_not_whole(whole):
    targets = [Target(str(path.relative_to(whole)), (0,)) for path in sorted(whole.rglob("*.png"))]
    lost = Target("images/00009/samples/00000.png", (0,))
    assert missing(whole, [*targets, lost]) == [lost]


def test_presets_are_those_of_the_paper_and_the_release():
    assert presets.options("paper", "picture") == {
        "num_inference_steps": 128, "num_diffusion_steps": 100, "guidance_scale": 7.0,
    }  # fmt: skip
    assert presets.options("release", "video") == {
        "num_inference_steps": 128, "num_diffusion_steps": 25, "guidance_scale": 7.0,
        "max_latent_length": 9, "motion_flow": 5.0,
    }  # fmt: skip
    assert presets.options(None, "video") == {}

"""What the app draws, without a page: for many people at once, and again to the byte."""

import os
import shlex
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from serving import assert_same_files

from nova_jax import media
from nova_jax.app import studio as studio_module
from nova_jax.app.gallery import KEPT, Item, Shelf
from nova_jax.app.inputs import Given, check_prompt, own_pixels, read_picture
from nova_jax.app.studio import Studio
from nova_jax.errors import NovaError
from nova_jax.pipeline import NovaPipeline

ROWS = 3
WINDOW = {"window": 3}
# What this process has compiled others read.
ENVIRONMENT = os.environ | {
    "JAX_COMPILATION_CACHE_DIR": str(jax.config.jax_compilation_cache_dir),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.3",
    "JAX_PERSISTENT_CACHE_ENABLE_XLA_CACHES": "none",
}


@pytest.fixture(scope="module")
def pipeline(untrained) -> NovaPipeline:
    return NovaPipeline.from_checkpoint(untrained, devices=jax.devices()[:1])


@pytest.fixture(scope="module")
def studio(pipeline, untrained):
    made = Studio(pipeline, {"checkpoint": str(untrained)}, rows=ROWS, waiting=8, each=6)
    yield made
    made.close()


def finished(studio, *jobs):
    """What becomes of jobs."""
    studio.submit(jobs)
    wait_for(lambda: all(job.state == "done" for job in jobs))
    takes = [job.take() for job in jobs]
    return takes if len(takes) > 1 else takes[0]


def wait_for(condition):
    deadline = time.monotonic() + 240
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.fixture(scope="module")
def picture() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)


@pytest.fixture(scope="module")
def takes(studio, picture, tmp_path_factory):
    """One of every kind, some of them drawn beside each other."""
    first, other, single = finished(
        studio,
        studio.draw("me", "a red one", 1, 3),
        studio.draw("me", 'it\'s a "blue" two; $HOME', 2, 6, **WINDOW),
        studio.draw("me", "a three", 3, 1, guidance_scale=3.0, negative_prompt="dull"),
    )
    image = Given.image(picture, (16, 16))
    begun = studio.draw("me", "a four", 4, 3, image, motion_flow=2.0)
    again = studio.go_on("me", first, "a green two", 5, 2)
    begun, again = finished(studio, begun, again)
    third = finished(studio, studio.go_on("me", again, "a white three", 6, 2))
    stopped = studio.draw("me", "a five", 7, 3000, **WINDOW)
    studio.submit([stopped])
    wait_for(lambda: len(stopped.parts) > 1)
    stopped.stop()
    wait_for(lambda: stopped.state == "done")
    file = media.save_clip(tmp_path_factory.mktemp("given") / "clip", media.enlarge(first.clip), 8)
    longer = studio.draw("me", "a six", 8, 5, Given.video(str(file)), **WINDOW)
    mask = np.zeros((16, 16), bool)
    mask[:, 8:] = True
    painted = studio.paint("me", "a seven", 9, Given.painting(picture, mask, (16, 16)))
    longer, painted = finished(studio, longer, painted)
    return {
        "picture": single, "video": first, "window": other, "image": begun, "continued": again,
        "continued twice": third, "stopped": stopped.take(), "file": longer, "painted": painted,
    }  # fmt: skip


def test_every_take_has_its_frames(takes):
    frames = {name: len(take.clip) for name, take in takes.items()}
    stopped = frames.pop("stopped")
    assert frames == {
        "picture": 1, "video": 3, "window": 6, "image": 3, "continued": 5, "continued twice": 7,
        "file": 5, "painted": 1,
    }  # fmt: skip
    assert takes["stopped"].recipe.stopped == stopped < 3000
    assert np.array_equal(takes["continued"].clip[:3], takes["video"].clip)
    assert np.array_equal(takes["continued twice"].clip[:5], takes["continued"].clip)
    assert not np.array_equal(takes["continued"].clip[3], takes["video"].clip[0])


def test_programs_make_the_same(takes, tmp_path, pipeline):
    """All of them in one process that knows nothing of the app."""
    for name, take in takes.items():
        item = Item.save(take, tmp_path / "app", pipeline.fps)
        folder = tmp_path / name
        folder.mkdir()
        for file, data in take.files.values():
            (folder / file).write_bytes(data)
        (folder / "again.py").write_text(take.recipe.python())
        (folder / "expected").mkdir()
        (folder / "expected" / item.files[0].name).write_bytes(item.files[0].read_bytes())
    program = (
        "import os, pathlib, sys\n"
        "for folder in map(pathlib.Path, sys.argv[1:]):\n"
        "    os.chdir(folder)\n"
        "    exec(compile(pathlib.Path('again.py').read_text(), str(folder), 'exec'), {})\n"
    )
    folders = [str(tmp_path / name) for name in takes]
    subprocess.run([sys.executable, "-c", program, *folders], check=True, env=ENVIRONMENT)
    for name, take in takes.items():
        (made,) = (tmp_path / name).glob(f"{take.recipe.name}.*")
        assert_same_files(made, tmp_path / name / "expected" / made.name)


@pytest.mark.parametrize(
    ("name", "more"), [("continued twice", ""), ("painted", ""), ("window", " --gif")]
)
def test_commands_make_the_same(takes, name, more, tmp_path, pipeline):
    take = takes[name]
    item = Item.save(take, tmp_path, pipeline.fps)
    command = shlex.split(take.recipe.command() + more)
    assert command[:3] == ["python", "-m", "nova_jax.generate"]
    command = [sys.executable, *command[1:], "--out=output"]
    folder = item.preview.parent
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, env=ENVIRONMENT)
    assert done.returncode == 0, done.stderr
    made = folder / done.stdout.split("\n")[0]
    expected = next(file for file in item.files if file.suffix == made.suffix)
    assert_same_files(made, expected)


def test_others_in_the_pool_change_nothing(studio):
    alone = finished(studio, studio.draw("me", "a red one", 1, 3))
    together = finished(studio, *(studio.draw("me", "a red one", seed, 3) for seed in (2, 1, 3)))
    assert np.array_equal(alone.clip, together[1].clip)
    assert len({take.clip.tobytes() for take in together}) == 3


def test_frames_are_seen_while_they_fill(studio):
    job = studio.draw("me", "a red one", 1, 6, **WINDOW)
    assert (job.state, job.share) == ("waiting", 0)
    studio.submit([job])
    shares, fillings = [], []
    while job.state != "done":
        shares.append(job.share)
        fillings.append(job.filling)
    assert len(set(shares)) > 6 and shares == sorted(shares)
    assert any(filling is not None for filling in fillings) and job.filling is None


def test_too_many_are_refused_and_stopped_ones_leave(studio):
    endless = [studio.draw("me", "a one", seed, 3000, **WINDOW) for seed in range(ROWS + 3)]
    studio.submit(endless)
    with pytest.raises(NovaError, match="6 of yours are not done and 1 asked for, of at most 6"):
        studio.submit([studio.draw("me", "a one", 1, 3)])
    wait_for(lambda: endless[ROWS - 1].state == "drawing")
    assert [studio.before(job) for job in endless[ROWS:]] == [0, 1, 2]
    assert studio.of("me") == endless and studio.of("you") == []
    with pytest.raises(NovaError, match="3 requests wait already; try again in a minute"):
        studio.submit([studio.draw("you", "a one", 1, 3, **WINDOW)] * 6)
    for job in endless:
        job.stop()
    wait_for(lambda: not studio.of("me"))
    assert [job.error is None for job in endless] == [True] * ROWS + [False] * 3
    with pytest.raises(NovaError, match="stopped before a frame was there"):
        endless[-1].take()


def test_programs_are_forgotten_when_they_are_many(pipeline, monkeypatch):
    monkeypatch.setattr(studio_module, "PROGRAMS", 1)
    cleared = []
    monkeypatch.setattr(jax, "clear_caches", lambda: cleared.append(True))
    studio = Studio(pipeline, rows=1)
    for scale, count in ((2.0, 0), (2.0, 0), (3.0, 1)):
        finished(studio, studio.draw("me", "one", 1, 1, guidance_scale=scale))
        assert len(cleared) == count
    studio.close()


def test_a_bug_ends_its_pool_and_no_other(studio, monkeypatch):
    broken = studio.draw("me", "a one", 1, 3)
    monkeypatch.setattr(broken.session, "ready", lambda: 1 / 0)
    studio.submit([broken])
    wait_for(lambda: broken.state == "done")
    with pytest.raises(ZeroDivisionError):
        broken.take()
    assert len(finished(studio, studio.draw("me", "a one", 1, 3)).clip) == 3


def test_closing_tells_those_who_wait(pipeline):
    studio = Studio(pipeline, rows=1)
    jobs = [studio.draw("me", "a one", seed, 3000, **WINDOW) for seed in (1, 2)]
    studio.submit(jobs)
    wait_for(lambda: jobs[0].parts)
    studio.close()
    for job in jobs:
        with pytest.raises(NovaError, match="the app is closing"):
            job.take()


def test_what_does_not_fit_is_one_line(studio, takes, picture):
    with pytest.raises(NovaError, match="a picture does not go on"):
        studio.go_on("me", takes["painted"], "a one", 1, 3)
    with pytest.raises(NovaError, match="write a comma"):
        studio.go_on("me", takes["video"], "a one; a two", 1, 3)
    with pytest.raises(NovaError, match="nothing is marked"):
        Given.painting(picture, np.zeros((16, 16), bool), (16, 16))
    with pytest.raises(NovaError, match="the prompt is empty"):
        check_prompt(" \n ")
    with pytest.raises(NovaError, match="the prompt has 1001 characters"):
        check_prompt("a" * 1001)
    with pytest.raises(NovaError, match="no picture is given"):
        read_picture(None)
    with pytest.raises(NovaError, match="nothing yet"):
        _ = Shelf().chosen
    assert check_prompt(" a\n red\0 one ") == "a red one"


def test_enlarged_pictures_are_taken_back(picture):
    assert np.array_equal(own_pixels(media.enlarge(picture), (16, 16)), picture)
    other = media.enlarge(picture)
    other[0, 0] ^= 1
    assert np.array_equal(own_pixels(other, (16, 16)), other)
    mask = np.zeros((192, 192), bool)
    mask[0, 191] = True
    given = Given.painting(media.enlarge(picture), mask, (16, 16))
    assert np.argwhere(given.arrays["mask"]).tolist() == [[0, 15]]
    assert np.array_equal(given.arrays["image"], picture)


def test_a_shelf_keeps_the_newest(takes, tmp_path):
    shelf = Shelf()
    for _ in range(KEPT + 2):
        shelf.add([Item.save(takes["picture"], tmp_path, 8)])
    assert len(shelf.items) == KEPT == len(list(tmp_path.iterdir()))
    assert shelf.chosen is shelf.items[0] and shelf.choose(3) is shelf.chosen is shelf.items[3]
    shelf.clear()
    assert not list(tmp_path.iterdir())

"""Sessions from the command line, and files that grow with a video."""

import os
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from nova_jax import media
from nova_jax.errors import NovaError
from nova_jax.live import ClipFile, Cue, read_schedule
from nova_jax.pipeline import NovaPipeline

# Each pixel eight times: half of the resolution of colors in H.264 is enough.
FEW = ("--num_inference_steps=2", "--num_diffusion_steps=2", "--upscale=128")


def generate(*arguments, few=FEW, **options) -> subprocess.Popen:
    command = [sys.executable, "-m", "nova_jax.generate", *arguments, *few]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, **options)


def run(*arguments, **options) -> list[str]:
    process = generate(*arguments, **options)
    output, errors = process.communicate()
    assert process.returncode == 0, errors
    return output.splitlines()


def test_schedules_are_read():
    text = "0:a red one ; 16: a blue two: up"
    assert read_schedule(text) == [Cue(0, "a red one"), Cue(16, "a blue two: up")]
    assert read_schedule("0:a;3 @ 7:b@8") == [Cue(0, "a"), Cue(3, "b@8", 7)]
    for wrong in ("", "a", "0:", ":a", "0:a;", "-1:a", "0:a;x:b", "0@:a", "@1:a", "0@-1:a"):
        with pytest.raises(NovaError, match="write it as"):
            read_schedule(wrong)
    with pytest.raises(NovaError, match="frame 3 after frame 3; let frames rise"):
        read_schedule("0:a;3:b;3:c")


def test_a_session_is_scheduled_saved_and_gone_on_with(untrained, tmp_path):
    """The command does what the library does."""
    model, out, cut = f"--checkpoint={untrained}", f"--out={tmp_path}", tmp_path / "cut.npz"
    schedule = "--prompt_schedule=0:a red one;2:a blue two"
    video, saved = run(model, out, schedule, "--stream", "--frames=4", f"--save_session={cut}")
    assert saved == str(cut) and video == f"{tmp_path}/a-red-one_seed0.mp4"
    resumed = (f"--resume_session={cut}", "--max_latent_length=2", "--seed=5")
    (rest,) = run(model, out, *resumed, few=("--upscale=128",))
    assert rest == f"{tmp_path}/a-blue-two_seed5.mp4"

    pipeline = NovaPipeline.from_checkpoint(untrained, devices=jax.devices()[:1])
    few = {"num_inference_steps": 2, "num_diffusion_steps": 2}
    session = pipeline.start("a red one", num_frames=4, **few)
    expected = [*session.stream(2), *session.prompt("a blue two").stream(2)]
    expected += session.reseed(5).stream(2)
    found = np.concatenate([media.read_video(video), media.read_video(rest)])[:, 4::8, 4::8]
    expected = np.concatenate(expected, axis=1)[0]
    assert found.shape == expected.shape
    assert np.abs(found.astype(int) - expected).mean() < 6


def test_a_stream_that_ends_early_leaves_a_video_and_a_session(untrained, tmp_path):
    """One is killed with all it has started, one interrupted, which saves its session, too."""
    asked = (f"--checkpoint={untrained}", "--prompt=a red one", "--frames=100000", "--fps=2")
    asked += ("--window=3", "--stream", f"--save_session={tmp_path / 'cut.npz'}")
    videos = [tmp_path / name / "a-red-one_seed0.mp4" for name in ("killed", "interrupted")]
    processes = [
        generate(*asked, f"--out={video.parent}", start_new_session=True) for video in videos
    ]
    deadline = time.monotonic() + 240
    for process, video in zip(processes, videos, strict=True):
        while not (video.exists() and video.stat().st_size > 20_000):  # many fragments
            assert process.poll() is None and time.monotonic() < deadline, process.communicate()
            time.sleep(0.1)
    os.killpg(processes[0].pid, signal.SIGKILL)
    processes[1].send_signal(signal.SIGINT)
    for process, video in zip(processes, videos, strict=True):
        process.communicate()
        size = -1
        while size != (size := video.stat().st_size):  # ffmpeg finishes the file
            time.sleep(0.5)
        assert len(media.read_video(video)) > 10
    assert processes[1].returncode == 130
    frames = len(media.read_video(videos[1]))
    pipeline = NovaPipeline.from_checkpoint(untrained, devices=jax.devices()[:1])
    assert 0 <= pipeline.resume(tmp_path / "cut.npz").frame - frames <= 1


def test_a_growing_file_overwrites_nothing_and_says_what_fails(tmp_path):
    frames = np.random.default_rng(0).integers(0, 256, (5, 15, 17, 3), np.uint8)
    for name in ("clip.mp4", "clip-2.mp4"):
        with ClipFile(tmp_path / "clip.mp4", 4.0) as file:
            file.write(frames[:3])
            file.write(frames[3:])
        assert file.path == tmp_path / name
        assert media.read_video(file.path).shape == (5, 16, 18, 3)
    broken = ClipFile(tmp_path / "other.mp4", 4.0)
    broken.path = tmp_path / "none" / "other.mp4"
    with pytest.raises(OSError, match="ffmpeg failed"):
        for _ in range(1000):
            broken.write(frames)

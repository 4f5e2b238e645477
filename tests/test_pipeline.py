"""NovaPipeline on a small untrained model: the same video wherever and with whomever it is made."""

import jax
import numpy as np
import pytest

from nova_jax.errors import NovaError
from nova_jax.pipeline import NovaPipeline

PROMPTS = ["a red one", "a blue two moves up", "the digit three in white", "green 4, left"]


@pytest.fixture(scope="module")
def pipeline(untrained) -> NovaPipeline:
    return NovaPipeline.from_checkpoint(untrained, devices=jax.devices()[:1])


@pytest.fixture(scope="module")
def videos(pipeline) -> np.ndarray:
    return pipeline(PROMPTS, seed=7).frames


def assert_same(videos: np.ndarray, expected: np.ndarray) -> None:
    """Equal but for rounding: another batch shape may move a value across a whole number."""
    difference = np.abs(videos.astype(int) - expected)
    assert difference.max() <= 1 and (difference > 0).mean() < 1e-3


def test_videos_have_the_shape_and_rate_of_training(pipeline, videos):
    assert videos.shape == (4, 3, 16, 16, 3) and videos.dtype == np.uint8
    assert pipeline.size == (16, 16) and pipeline.fps == 6.0 and pipeline.motion_flow == 1.5
    for one, other in zip(videos, videos[1:], strict=False):
        assert np.abs(one.astype(int) - other).mean() > 0.5  # prompts differ, the noise does not


def test_a_video_is_the_same_alone_and_in_any_batch(pipeline, videos):
    assert_same(pipeline(PROMPTS[1], seed=7).frames, videos[1:2])
    assert_same(pipeline(PROMPTS[::-1], seed=7).frames, videos[::-1])
    assert_same(pipeline(PROMPTS, seed=7, batch_size=2).frames, videos)


def test_a_video_is_the_same_on_several_devices(untrained, videos):
    """Four samples on three devices: two each, so two of the six are padding."""
    spread = NovaPipeline.from_checkpoint(untrained, devices=jax.devices()[:3])
    assert_same(spread(PROMPTS, seed=7).frames, videos)


def test_seed_and_copy_make_a_difference_and_nothing_else_does(pipeline, videos):
    copies = pipeline(PROMPTS[:2], seed=[7, 8], num_videos_per_prompt=2).frames
    assert_same(copies[:1], videos[:1])
    pairs = [copies[0], copies[1], copies[2], videos[1]]  # a copy, another seed
    for one, other in zip(pairs, pairs[1:], strict=False):
        assert np.abs(one.astype(int) - other).mean() > 1


def test_an_image_becomes_the_first_frame(pipeline):
    image = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    video = pipeline(PROMPTS[:2], image=image).frames
    assert np.abs(video[:, 0].astype(int) - image).max() <= 1
    wide = np.concatenate([np.zeros_like(image), image, np.zeros_like(image)], axis=1)
    assert_same(pipeline(PROMPTS[:2], image=wide).frames, video)


def test_one_frame_is_a_picture_and_more_than_in_training_are_possible(pipeline):
    assert pipeline("one", num_frames=1).frames.shape == (1, 1, 16, 16, 3)
    assert pipeline("one", num_frames=4).frames.shape == (1, 4, 16, 16, 3)


@pytest.mark.parametrize(
    "options",
    [
        {"guidance_scale": 1.0},
        {"guidance_renorm": 0.5},
        {"image_guidance_scale": 1.5},
        {"motion_flow": 9.0},
        {"negative_prompt": "a blue two"},
        {"num_diffusion_steps": 2},
    ],
    ids=lambda options: next(iter(options)),
)
def test_options_reach_the_sampler(pipeline, options):
    plain = pipeline(PROMPTS[0], num_frames=1).frames
    changed = pipeline(PROMPTS[0], num_frames=1, **options).frames
    assert np.abs(changed.astype(int) - plain).max() > 1


def test_progress_counts_frames_of_all_batches(pipeline):
    calls = []
    pipeline(PROMPTS[:4], batch_size=2, on_frame=lambda done, total: calls.append((done, total)))
    assert calls == [(done, 6) for done in range(7)]


def test_a_class_conditional_image_model_takes_labels(save_untrained, tmp_path):
    directory = save_untrained(
        tmp_path / "classes",
        frames=1,
        text_dim=None,
        text_length=None,
        num_classes=10,
        mixer_rank=None,
    )
    pipeline = NovaPipeline.from_checkpoint(directory)
    pictures = pipeline([3, 4], seed=1).frames
    assert pictures.shape == (2, 1, 16, 16, 3)
    assert_same(pipeline([4, 3], seed=1).frames, pictures[::-1])
    assert np.abs(pictures[0].astype(int) - pictures[1]).max() > 4
    with pytest.raises(NovaError, match="image model cannot make 2 frames; ask for 1"):
        pipeline(4, num_frames=2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prompt": []}, "no prompt given"),
        ({"prompt": "one", "num_frames": 0}, "0 frames asked for; a video has at least 1"),
        ({"prompt": "one", "seed": [1, 2]}, "2 seeds for 1 prompts"),
        ({"prompt": "one", "batch_size": 0}, "must be at least 1"),
        ({"prompt": "one", "guidance_renorm": 2.0}, "renorm"),
    ],
)
def test_requests_that_make_no_sense_are_refused(pipeline, arguments, message):
    with pytest.raises(NovaError, match=message):
        pipeline(**arguments)

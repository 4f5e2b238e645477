"""Continuation and editing on small untrained models: what is given stays, the rest is drawn."""

import dataclasses

import jax
import numpy as np
import pytest
from autoencoders.test_streaming import COG, IMAGE, LTX, VIDEO
from autoencoders.test_streaming import make as make_codec
from PIL import Image
from test_pipeline import RELEASED, assert_same

from nova_jax.autoencoders.pixels import to_float
from nova_jax.beginning import check_beginning
from nova_jax.errors import NovaError
from nova_jax.models.config import NovaConfig
from nova_jax.pipeline import NovaPipeline

PROMPT = "a red one"


@pytest.fixture(scope="module")
def pipeline(untrained) -> NovaPipeline:
    return NovaPipeline.from_checkpoint(untrained, devices=jax.devices()[:1])


@pytest.fixture(scope="module")
def released() -> NovaPipeline:
    return NovaPipeline.from_pretrained(RELEASED, devices=jax.devices()[:1])


@pytest.fixture(scope="module")
def video() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), np.uint8)


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, shape, np.uint8)


def few(released, prompt=PROMPT, **options):
    return released(prompt, num_inference_steps=2, num_diffusion_steps=2, **options)


def test_a_video_goes_on_from_all_of_its_frames(pipeline, video):
    latents = np.asarray(pipeline.codec.encode(to_float(video[:2])[None]))
    wanted = pipeline(PROMPT, seed=3, latents=latents, num_frames=5)
    found = pipeline(PROMPT, seed=3, video=video[:2], num_frames=5)
    np.testing.assert_array_equal(found.frames, wanted.frames)
    other = pipeline(PROMPT, seed=3, video=[*video[1:2], video[1]], num_frames=5)
    assert np.abs(other.frames[:, 2:].astype(int) - found.frames[:, 2:]).mean() > 0.5
    # Unless told otherwise: the model's own length, or so many more.
    assert pipeline(PROMPT, video=video[:1]).frames.shape[1] == 3
    assert pipeline(PROMPT, video=video).frames.shape[1] == 6
    session = pipeline.start(PROMPT, seed=3, video=video[:2], max_latent_length=5)
    streamed = np.concatenate(list(session.stream(3)), axis=1)
    assert_same(streamed[:, 2:], found.frames[:, 2:])
    # Whole numbers come back as they were or, rounded, one lower.
    assert np.abs(streamed[:, :2].astype(int) - video[:2]).max() <= 1


def test_frames_that_fill_no_latent_frame_are_left_out_and_it_is_said(released, caplog):
    frames = noise(7, 64, 96, 3)
    made = few(released, video=frames, max_latent_length=3)
    assert "video of 7 frames: the first 2 are left out" in caplog.text
    assert_same(few(released, video=frames[2:], max_latent_length=3).frames, made.frames)
    assert made.frames.shape[1] == 9
    # Of what is painted anew the last ones are, with their masks.
    masks = np.zeros((7, 64, 96), bool)
    masks[3, :32] = True
    edit = released.request(PROMPT, video=frames, mask=masks).edit
    assert "video of 7 frames: the last 2 are left out" in caplog.text
    np.testing.assert_array_equal(edit.frames, frames[:5])
    assert edit.kept[0].all() and not edit.kept[1].all()
    assert (edit.share[3, :32] == 1).all() and not edit.share[[0, 1, 2, 4]].any()


def test_an_empty_mask_returns_the_input(pipeline, released, video):
    kept = pipeline(PROMPT, video=video, mask=np.zeros((16, 16), bool))
    np.testing.assert_array_equal(kept.frames[0], video)
    frames = noise(5, 64, 96, 3)
    kept = few(released, video=frames, mask=np.zeros((64, 96), np.uint8))
    np.testing.assert_array_equal(kept.frames[0], frames)


def test_a_full_mask_is_plain_generation(pipeline, released, video):
    plain = pipeline(PROMPT, seed=3)
    drawn = pipeline(PROMPT, seed=3, video=video, mask=Image.new("L", (16, 16), 255))
    assert_same(drawn.frames, plain.frames)
    plain = few(released, max_latent_length=2)
    drawn = few(released, video=noise(5, 64, 96, 3), mask=np.ones((64, 96), bool))
    np.testing.assert_allclose(drawn.latents, plain.latents, atol=1e-4)


def test_a_hole_is_drawn_and_its_surroundings_stay(pipeline, video):
    mask = np.zeros((16, 16), np.uint8)
    mask[1, 2] = 255  # one pixel of the first token of 4x4; with its neighbors 2x2 tokens
    made = pipeline(PROMPT, seed=3, video=video, mask=mask).frames[0]
    drawn = np.zeros((16, 16), bool)
    drawn[:8, :8] = True
    np.testing.assert_array_equal(made[:, ~drawn], video[:, ~drawn])
    changed = np.abs(made.astype(int) - video)[:, drawn].max(-1)
    assert (changed > 0).mean() > 0.8
    # With another prompt only the hole is another.
    other = pipeline("a blue two", seed=3, video=video, mask=mask).frames[0]
    difference = np.abs(made.astype(int) - other).max((0, -1)) > 0
    assert difference[drawn].any() and not difference[~drawn].any()


def test_each_frame_may_have_a_mask_of_its_own_and_the_video_goes_on(pipeline, video):
    masks = np.zeros((3, 16, 16), bool)
    masks[1] = True
    made = pipeline(PROMPT, seed=3, video=video, mask=masks, num_frames=4).frames[0]
    np.testing.assert_array_equal(made[[0, 2]], video[[0, 2]])
    assert np.abs(made[1].astype(int) - video[1]).mean() > 10 and len(made) == 4
    # The frame that was drawn is what those after it are made from.
    goes_on = pipeline(PROMPT, seed=3, video=made[:3], num_frames=4)
    state = pipeline.start(PROMPT, seed=3, video=made[:3], num_frames=4).state
    assert int(state.frame[0]) == 3 and goes_on.frames.shape[1] == 4


def test_later_frames_see_what_is_shown(pipeline, video):
    """The soft edge, too: latents of these pixels are theirs by arithmetic."""
    mask = np.zeros((16, 16), bool)
    mask[:5, :5] = True
    made = pipeline(PROMPT, seed=3, video=video[:1], mask=mask, num_frames=2)

    def goes_on(latents):
        session = pipeline.start(PROMPT, seed=3, latents=latents, num_frames=2)
        session.state = dataclasses.replace(session.state, drawn=session.state.frame)
        return np.asarray(next(session.latents(1)))

    after = goes_on(np.asarray(pipeline.codec.encode(to_float(made.frames[:, :1]))))
    hard_edge = goes_on(made.latents[:, :1])
    difference, other = (np.abs(made.latents[:, 1] - x).mean() for x in (after, hard_edge))
    assert difference < 0.1 * other  # whole numbers have rounded pixels


def test_a_picture_is_painted_in_and_around(pipeline, released, video, caplog):
    made = pipeline(PROMPT, image=video[0], outpaint=(0, 8, 0, 8))
    assert made.frames.shape == (1, 1, 16, 16, 3)
    assert "image of 32x16 scaled and cropped" in caplog.text
    picture = noise(64, 64, 3)
    # Room for tokens of 16 pixels on both sides of a model of 64x96: nothing is scaled.
    wide = few(released, image=Image.fromarray(picture), outpaint=[0, 16, 0, 16], seed=2)
    np.testing.assert_array_equal(wide.frames[0, 0, :, 32:64], picture[:, 16:48])
    assert np.abs(wide.frames[0, 0, :, :16].astype(int) - 127).mean() > 1


def test_the_edge_is_soft(pipeline, video):
    mask = np.zeros((16, 16), bool)
    mask[4:8, 4:8] = True
    edit = pipeline.request(PROMPT, image=video[0], mask=mask).edit
    share = edit.share[0]
    assert (share[mask] == 1).all() and (share[12:] == 0).all()
    np.testing.assert_allclose(share[8:12, 5], [4 / 5, 3 / 5, 2 / 5, 1 / 5])
    assert edit.kept.sum() == 16 - 9


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mask": np.ones((16, 16))}, "mask is given and nothing to paint in; give an image"),
        ({"outpaint": (1, 1, 1, 1)}, "outpaint is given and nothing to paint in"),
        ({"video": 3}, r"video is 3; give uint8 \[frames, height, width, 3\]"),
        ({"video": np.zeros((0, 16, 16, 3), np.uint8)}, r"video is uint8 \[0, 16, 16, 3\]"),
        ({"video": [noise(4, 4, 3), noise(5, 4, 3)]}, "of one size"),
        ({"video": noise(2, 16, 16, 3), "image": noise(16, 16, 3)}, "an image and video are given"),
        ({"video": noise(4, 16, 16, 3), "num_frames": 4}, "4 latent frames are given and 4 asked"),
        ({"image": noise(16, 16, 3), "mask": "x"}, "mask is 'x'; give a picture, or an array"),
        ({"image": noise(16, 16, 3), "mask": np.ones(3)}, "mask is .*; give a picture"),
        ({"image": noise(16, 16, 3), "mask": [np.ones((2, 2))] * 2}, "2 masks for 1 frames"),
        ({"image": noise(16, 16, 3), "outpaint": 3}, "outpaint is 3; give four numbers"),
        ({"image": noise(16, 16, 3), "outpaint": (0, 0, 0, -1)}, "outpaint is -1"),
        ({"image": noise(16, 16, 3), "outpaint": (0, 0, 0, 0)}, "outpaint is 0 on all sides"),
        ({"image": noise(16, 16, 3), "outpaint": (0, 0, 0, 99999)}, "picture of 100015 pixels"),
        (
            {"video": noise(3, 16, 16, 3), "mask": np.ones((16, 16)), "num_frames": 2},
            "3 latent frames are given and 2 asked for",
        ),
    ],
)
def test_what_cannot_be_edited_is_refused(pipeline, arguments, message):
    with pytest.raises(NovaError, match=message):
        pipeline.request(PROMPT, **arguments)


def test_a_mask_of_another_size_is_scaled_and_it_is_said(pipeline, video, caplog):
    mask = np.zeros((8, 8), bool)
    mask[:4] = True
    edit = pipeline.request(PROMPT, image=video[0], mask=mask).edit
    assert "mask of 8x8 scaled to 16x16" in caplog.text
    assert (edit.share[0, :8] == 1).all() and (edit.share[0, 12:] == 0).all()


def test_a_session_takes_no_mask(pipeline, video):
    with pytest.raises(NovaError, match="a session begins with frames as they are"):
        pipeline.start(PROMPT, video=video, mask=np.ones((16, 16), bool))


@pytest.mark.parametrize(
    ("name", "values", "latents", "over"),
    [
        ("AutoencoderKL", IMAGE, 3, 0),
        ("AutoencoderKLOpenSora", VIDEO, 3, 1),
        ("AutoencoderKLOpenSora", VIDEO, 9, 1),  # in two windows
        ("AutoencoderKLCogVideoX", COG, 4, 1),
        ("AutoencoderKLLTXVideo", LTX, 3, 1),
    ],
)
def test_every_autoencoder_has_its_frames_painted(name, values, latents, over):
    codec = make_codec(name, values)
    config = NovaConfig(
        latent_size=(4, 4), latent_channels=codec.latent_channels, patch_size=1, frames=latents,
        temporal_encoder="vit_d1w32", spatial_decoder="vit_d2w32", diffusion_head="mlp_d1w32",
        text_dim=8, text_length=4,
    )  # fmt: skip
    count, side = codec.pixel_frames(latents), 4 * codec.stride
    frames = noise(count + over, side, side, 3)
    mask = np.zeros((count + over, side, side), bool)
    mask[count - 1, 0, 0] = True  # in the last latent frame
    first = check_beginning(None, frames, None, mask, None, 2, config=config, codec=codec)
    edit = first.edit
    assert first.mean.shape == (2, latents, 4, 4, codec.latent_channels)
    assert edit.kept.shape == (latents, 16) and edit.kept[0].all()
    assert (~edit.kept[-1]).nonzero()[0].tolist() == [0, 1, 4, 5]
    drawn = 255 - frames[None, :count]
    made = edit.put_in(drawn)[0]
    outside = np.ones((count, side, side), bool)
    outside[count - 1, : side // 2, : side // 2] = False
    np.testing.assert_array_equal(made[outside], frames[:count][outside])
    np.testing.assert_array_equal(made[-1, 0, 0], drawn[0, -1, 0, 0])
    # What goes on takes the last frames, and all of them are context.
    going = check_beginning(None, frames, None, None, None, 1, config=config, codec=codec)
    np.testing.assert_allclose(
        going.mean[0], codec.encode(to_float(frames[over:])[None])[0], rtol=1e-5, atol=1e-5
    )

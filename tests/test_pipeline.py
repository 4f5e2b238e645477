"""NovaPipeline on small untrained models: the same video wherever and with whomever it is made."""

import dataclasses
import json
import shutil
import time
import weakref
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from PIL import Image

from nova_jax import media
from nova_jax.autoencoders.kl import AutoencoderKL, AutoencoderKLConfig
from nova_jax.checkpoints.rules import autoencoder_table
from nova_jax.checkpoints.tensors import write_safetensors
from nova_jax.distributed.mesh import MeshConfig, make_mesh
from nova_jax.errors import NovaError
from nova_jax.pipeline import SHIPPED, NovaPipeline
from nova_jax.request import Request
from nova_jax.sampling.options import SamplingConfig

RELEASED = Path(__file__).parent / "golden" / "pipeline_t2v"
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


def test_unrolled_loops_make_the_same_videos(untrained, videos):
    unrolled = NovaPipeline.from_checkpoint(untrained, devices=jax.devices()[:1], unroll=2)
    assert unrolled.model.temporal_encoder.blocks.unroll == 2
    assert_same(unrolled(PROMPTS, seed=7).frames, videos)
    with pytest.raises(NovaError, match="unroll is 0"):
        NovaPipeline.from_checkpoint(untrained, unroll=0)


def test_videos_of_another_size(pipeline, videos):
    wide = pipeline.resized(16, 24)
    assert wide.size == (16, 24) and pipeline.size == (16, 16)
    frames = wide(PROMPTS[:2], seed=7).frames
    assert frames.shape == (2, 3, 16, 24, 3) and frames.std() > 1
    assert_same(wide.resized(16, 16)(PROMPTS, seed=7).frames, videos)
    with pytest.raises(NovaError, match="size 16x18 does not fit the model; take multiples of 4"):
        pipeline.resized(16, 18)


def test_a_video_is_the_same_alone_and_in_any_batch(pipeline, videos):
    assert_same(pipeline(PROMPTS[1], seed=7).frames, videos[1:2])
    assert_same(pipeline(PROMPTS[::-1], seed=7).frames, videos[::-1])
    assert_same(pipeline(PROMPTS, seed=7, batch_size=2).frames, videos)


def test_batches_come_one_by_one_and_are_what_a_call_gives(pipeline):
    options = {"seed": 7, "batch_size": 2, "num_frames": 1}
    together = pipeline(PROMPTS[:3], **options)
    stream = pipeline.stream(PROMPTS[:3], **options)
    first = next(stream)
    np.testing.assert_array_equal(first.frames, together.frames[:2])
    np.testing.assert_array_equal(first.latents, together.latents[:2])
    assert [np.asarray(image).tolist() for image in first.images] == first.frames[:, 0].tolist()
    kept = weakref.ref(first)
    del first
    (second,) = stream
    assert kept() is None  # memory does not grow with the number of samples
    np.testing.assert_array_equal(second.frames, together.frames[2:])
    assert len(together.images) == 3 and together.images is together.images
    with pytest.raises(NovaError, match="no prompt given"):
        pipeline.stream([])  # at once, not with the first batch


def test_no_batch_is_padding_alone():
    """Ten samples, three at most in a batch of four devices."""
    request = Request(
        prompts=["one"] * 5,
        negative=None,
        seeds=[],
        copies=2,
        frames=1,
        first=None,
        flow=0.0,
        sampling=SamplingConfig(),
        batch_size=3,
        output_type="np",
        order=None,
        noise=None,
        show_progress=False,
    )
    batches = request.batches(4, all_take_part=True)
    assert [list(batch.prompts) for batch in batches] == [[0, 0, 1, 1], [2, 2, 3, 3], [4, 4, 4, 4]]
    assert [list(batch.copies) for batch in batches] == [[0, 1, 0, 1], [0, 1, 0, 1], [0, 1, 1, 1]]


def test_a_video_is_the_same_on_several_devices(untrained, videos):
    """Four samples on three devices: two each, so two of the six are padding."""
    spread = NovaPipeline.from_checkpoint(untrained, devices=jax.devices()[:3])
    assert_same(spread(PROMPTS, seed=7).frames, videos)


def test_seed_and_copy_make_a_difference_and_nothing_else_does(pipeline, videos):
    copies = pipeline(PROMPTS[:2], seed=[7, 8], num_images_per_prompt=2).frames
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


def test_options_come_on_top_of_a_config(pipeline):
    few = dataclasses.replace(pipeline.sampling, num_diffusion_steps=2)
    by_name = pipeline("one", num_frames=1, num_diffusion_steps=2, guidance_scale=1.0).frames
    by_config = pipeline("one", num_frames=1, sampling=few, guidance_scale=1.0).frames
    np.testing.assert_array_equal(by_config, by_name)
    assert pipeline.sampling.num_diffusion_steps != 2


def test_progress_counts_frames_of_all_batches_and_can_be_silenced(pipeline, capsys):
    pipeline(PROMPTS[:4], batch_size=2, num_diffusion_steps=2)
    shown = capsys.readouterr().err
    assert "6/6" in shown and shown.lstrip().startswith("starting (what is new is compiled first)")
    pipeline(PROMPTS[:4], batch_size=2, num_diffusion_steps=2, disable_progress_bar=True)
    assert not capsys.readouterr().err


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
    for label in (-1, 10, True, 1.0, "4"):
        with pytest.raises(NovaError, match=f"prompt, a class number, is {label!r}; it must be "):
            pipeline(label)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prompt": []}, "no prompt given"),
        ({"num_frames": 0}, "num_frames is 0; it must be at least 1"),
        ({"num_frames": 2.0}, "num_frames is 2.0; it must be int"),
        ({"max_latent_length": True}, "max_latent_length is True; it must be int"),
        ({"num_inference_steps": 4.5}, "num_inference_steps is 4.5; it must be int"),
        ({"num_images_per_prompt": True}, "num_images_per_prompt is True; it must be int"),
        ({"num_images_per_prompt": 1.5}, "num_images_per_prompt is 1.5; it must be int"),
        ({"batch_size": 0}, "batch_size is 0; it must be at least 1"),
        ({"batch_size": 1.5}, "batch_size is 1.5; it must be int"),
        ({"seed": [1, 2]}, "2 seeds for 1 prompts"),
        ({"seed": []}, "0 seeds for 1 prompts"),
        ({"seed": 2**32}, "seed is 4294967296; it must be at least 0 and at most 4294967295"),
        ({"seed": 2**63}, "seed is 9223372036854775808; it must be at least 0"),
        ({"seed": [-1]}, "seed is -1; it must be at least 0"),
        ({"seed": 1.5}, "seed is 1.5; it must be int"),
        ({"seed": "1"}, "seed is '1'; it must be int"),
        ({"seed": None}, "seed is None; it must be int"),
        ({"seed": True}, "seed is True; it must be int"),
        ({"key": 3}, "key is 3; make one by jax.random.key"),
        ({"key": jax.random.key_data(jax.random.key(3))}, "key is Array.*; make one by"),
        ({"guidance_renorm": 2.0}, "guidance_renorm is 2.0; it must be at least 0 and at most 1"),
        ({"guidance_scale": "5"}, "guidance_scale is '5'; it must be float"),
        ({"guidance_scale": np.nan}, "guidance_scale is nan; it must be finite"),
        ({"guidance_scale": np.ones((9, 9))}, r"guidance_scale is array[^\n]*; it must be float"),
        ({"sampling": {"num_inference_steps": 0}}, "sampling.num_inference_steps is 0"),
        ({"motion_flow": np.nan}, "motion_flow is nan; it must be finite"),
        ({"motion_flow": np.inf}, "motion_flow is inf; it must be finite"),
        ({"motion_flow": "x"}, "motion_flow is 'x'; it must be float"),
        ({"motion_flow": -1}, "motion_flow is -1; it must be at least 0"),
        ({"latents": "x"}, "latents are 'x'; they must be an array of real numbers"),
        ({"latents": np.ones((1, 1, 16, 16, 3), complex)}, "must be an array of real numbers"),
        ({"latents": np.full((1, 1, 16, 16, 3), np.nan)}, "latents are not all finite"),
        ({"latents": np.full((1, 1, 16, 16, 3), 1e300)}, "latents are not all finite in float32"),
        ({"order": "x"}, r"order is 'x'; it must be \[1, 16\], a permutation"),
        ({"order": np.zeros((1, 16), int)}, "order is .*; it must be"),
        ({"noise": 3}, "noise is 3; give a source"),
        ({"on_step": []}, r"on_step is \[\]; give a function"),
        ({"image": 3}, r"image is 3; give uint8 \[H, W, 3\]"),
        ({"image": "x.png"}, r"image is 'x.png'; give uint8 \[H, W, 3\]"),
        ({"prompt": b"one"}, "prompt b'one': this model takes text"),
        ({"prompt": {"a": 1}}, "prompt {'a': 1}: this model takes text"),
        ({"prompt": "on\udce9"}, r"prompt 'on\\udce9' is no text; write it in UTF-8"),
        ({"negative_prompt": ["\ud800"]}, "negative prompt .* is no text; write it in UTF-8"),
        ({"prompt": None, "prompt_embeds": 3}, "prompt embeddings are 3; give a list of arrays"),
        ({"prompt": None, "prompt_embeds": []}, "no prompt given"),
        ({"prompt": None, "prompt_embeds": [np.full((2, 16), np.inf)]}, "are not all finite"),
        ({"prompt": 3}, "prompt 3: this model takes text"),
        ({"prompt": ["one", None]}, "prompt None: this model takes text"),
        ({"negative_prompt": 3}, "negative prompt 3: this model takes text"),
        (
            {"image": np.zeros((0, 5, 3), np.uint8)},
            r"image is uint8 \[0, 5, 3\]; give uint8 .* with pixels",
        ),
        ({"image": np.zeros((5, 5, 3))}, r"image is float64 \[5, 5, 3\]"),
        ({"sampler": "fast"}, "sampler is 'fast'; it must be 'auto' or 'xla' or 'pallas'"),
        ({"output_type": 3}, "output_type is 3; it must be 'pil' or 'np' or 'latent'"),
    ],
)
def test_requests_that_make_no_sense_are_refused(pipeline, arguments, message):
    with pytest.raises(NovaError, match=message):
        pipeline(**{"prompt": "one"} | arguments)


@pytest.mark.parametrize("size", [(16.0, 16), ("16", 16), (True, 16), (-16, 16), (10**10, 16)])
def test_a_size_is_two_counts(pipeline, size):
    with pytest.raises(NovaError, match=f"height is {size[0]!r}; it must be "):
        pipeline.resized(*size)


def test_numpys_integers_are_integers(pipeline, videos):
    numbers = {"batch_size": np.int64(4), "num_frames": np.uint8(3), "seed": np.int64(7)}
    np.testing.assert_array_equal(pipeline(PROMPTS, **numbers).frames, videos)
    np.testing.assert_array_equal(pipeline(PROMPTS, seed=np.full(4, 7)).frames, videos)


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        (3, {}, "3 names no checkpoint; give a directory, or OWNER/NAME"),
        (None, {}, "None names no checkpoint"),
        ("", {}, "'' names no checkpoint"),
        ("a\nb", {}, "^there is no directory a b; nor one with a name like it"),
        (SHIPPED, {"dtype": "float17"}, "dtype is 'float17'; it must be 'float32' or 'bfloat16'"),
        (SHIPPED, {"dtype": np.float64}, "dtype is 'float64'; it must be"),
        (SHIPPED, {"dtype": None}, "dtype is None; it must be"),
        (SHIPPED, {"mesh": np.zeros(2)}, "mesh is array.*; make one with"),
        (SHIPPED, {"devices": [3]}, r"devices is \[3\]; give some of jax.devices"),
        (SHIPPED, {"param_dtype": "int4"}, "param_dtype is .int4.; it must be .*int8"),
        (SHIPPED, {"weights": "xx"}, "weights is 'xx'; it must be 'ema' or 'raw'"),
        (SHIPPED, {"step": 1.5}, "step is 1.5; it must be str or int"),
        (SHIPPED, {"unroll": 1.5}, "unroll is 1.5; it must be int"),
    ],
)
def test_what_cannot_be_loaded_is_named(source, options, message):
    with pytest.raises(NovaError, match=message):
        NovaPipeline.from_pretrained(source, **options)


@pytest.mark.parametrize("dtype", ["bfloat16", jnp.bfloat16, np.dtype("bfloat16")])
def test_types_have_many_names(untrained, dtype):
    model = NovaPipeline.from_pretrained(untrained, dtype=dtype).model
    assert jnp.dtype(model.dtype) == jnp.bfloat16


def made_of(pipeline: NovaPipeline, **changes) -> NovaPipeline:
    parts = {name: getattr(pipeline, name) for name in ("model", "schedule", "codec")}
    parts |= {name: getattr(pipeline, name) for name in ("text_encoder", "frames", "sampling")}
    parts |= {"motion_flow": pipeline.motion_flow, "fps": pipeline.fps}
    return NovaPipeline(**parts | changes, devices=jax.devices()[:1])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"frames": 0}, "frames is 0; it must be at least 1"),
        ({"motion_flow": np.nan}, "motion_flow is nan; it must be finite"),
        ({"fps": 1e9}, "fps is 1000000000.0; it must be at least 0.1 and at most 1000"),
        ({"fps": np.inf}, "fps is inf; it must be finite"),
        ({"sampling": 3}, "sampling is 3; it must be SamplingConfig"),
        ({"unroll": True}, "unroll is True; it must be int"),
    ],
)
def test_a_pipeline_is_made_of_what_makes_sense(pipeline, changes, message):
    with pytest.raises(NovaError, match=message):
        made_of(pipeline, **changes)


def test_samples_that_are_not_finite_are_named(pipeline):
    """Numbers that are finite themselves, and overflow on the way."""
    given = np.ones((4, 1, 16, 16, 3), np.float32)
    given[2] = 3e38
    with pytest.raises(
        NovaError, match=r"latents of prompt 'the digit three .*sample 1 of 1\) are n"
    ):
        pipeline(PROMPTS, latents=given)
    tiny = made_of(pipeline, codec=dataclasses.replace(pipeline.codec, scale=1e-40))
    with pytest.raises(
        NovaError, match=r"pixels of prompt 'a red one' \(sample 1 of 1\) are not fin"
    ):
        tiny(PROMPTS, seed=7)
    assert np.isfinite(tiny(PROMPTS, seed=7, output_type="latent").latents).all()


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (
            {"num_images_per_prompt": 10**9},
            "for the samples that are returned; .* lower num_images",
        ),
        (
            {"num_images_per_prompt": 10**9, "batch_size": 10**9},
            "for the drawing of a batch; .* lower batch_size or max_latent_length",
        ),
        ({"num_frames": 10**9}, r"TB of memory, .* this machine has [\d.]+ GB; lower max_"),
        ({"max_latent_length": 10**8}, r"lower max_latent_length \(num_frames\) or size"),
        ({"num_diffusion_steps": 10**9}, "num_diffusion_steps is 1000000000"),
    ],
    ids=str,
)
def test_requests_that_no_memory_holds_are_refused_at_once(pipeline, arguments, reason):
    began = time.monotonic()
    with pytest.raises(NovaError, match=reason):
        pipeline("one", **arguments)
    assert time.monotonic() - began < 5


def test_a_size_that_no_memory_holds_is_refused(pipeline):
    with pytest.raises(NovaError, match="lower max_latent_length .* or size"):
        pipeline.resized(99968, 99968)("one")


def test_a_batch_may_have_room_for_more_than_there_are(pipeline, videos):
    assert_same(pipeline(PROMPTS, seed=7, batch_size=10**9).frames, videos)


@pytest.fixture(scope="module")
def released() -> NovaPipeline:
    return NovaPipeline.from_pretrained(RELEASED)


def run(pipeline: NovaPipeline, *arguments, **options):
    few = {"num_inference_steps": 2, "num_diffusion_steps": 2, "disable_progress_bar": True}
    return pipeline(*arguments, **few | options)


def test_a_released_model_makes_pictures_unless_told_otherwise(released):
    output = run(released, "a red seven")
    assert output.frames.shape == (1, 1, 64, 96, 3)
    assert output.images[0].size == (96, 64)
    arrays = run(released, "a red seven", output_type="np")
    np.testing.assert_array_equal(arrays.images, output.frames[:, 0])
    video = run(released, "a red seven", max_latent_length=2)
    assert video.frames.shape == (1, 5, 64, 96, 3) and video.images is None
    np.testing.assert_array_equal(run(released, "a red seven", num_frames=5).frames, video.frames)


def test_latents_can_be_taken_out_and_put_in(released):
    latents = run(released, "one", max_latent_length=2, output_type="latent").frames
    assert latents.shape == (1, 2, 8, 12, 4) and latents.dtype == np.float32
    longer = run(released, ["one", "two"], max_latent_length=3, latents=latents)
    np.testing.assert_array_equal(longer.latents[:, :2], latents.repeat(2, axis=0))
    both = np.concatenate([latents, -latents])[:, :1]
    each = run(released, ["one", "two"], max_latent_length=2, latents=both)
    np.testing.assert_array_equal(each.latents[:, :1], both)
    with pytest.raises(NovaError, match="nothing is left to generate"):
        run(released, "one", max_latent_length=2, latents=latents)
    with pytest.raises(NovaError, match=r"latents have shape \[1, 8, 12, 4\]"):
        run(released, "one", max_latent_length=2, latents=latents[0, :1])


def test_text_features_stand_for_prompts(released):
    features, lengths = released.text_encoder.encode(["a red seven", "a city"], 16)
    embeds = [row[:length] for row, length in zip(features, lengths, strict=True)]
    by_text = run(released, "a red seven", negative_prompt="a city").latents
    by_embeds = run(released, prompt_embeds=embeds[:1], negative_prompt_embeds=embeds[1:]).latents
    np.testing.assert_array_equal(by_embeds, by_text)
    with pytest.raises(NovaError, match="a prompt and its embeddings are given"):
        run(released, "a red seven", prompt_embeds=embeds[:1])
    with pytest.raises(NovaError, match=r"shape \[3, 5\]; this model takes \[rows, 32\]"):
        run(released, prompt_embeds=[np.zeros((3, 5))])
    with pytest.raises(NovaError, match="2 negative prompts for 3 prompts"):
        run(released, ["a", "b", "c"], negative_prompt=["d", "e"])


def test_an_image_prompt_of_another_size_is_cropped_and_says_so(released, caplog):
    image = np.random.default_rng(0).integers(0, 256, (100, 100, 3), np.uint8)
    first = run(released, "one", max_latent_length=2, image=Image.fromarray(image))
    assert "100x100 scaled and cropped about its center to 96x64" in caplog.text
    cut = media.fit_image(image, (64, 96))
    # The latent of an image is drawn, from the sample's own key.
    both = run(released, ["two", "one"], max_latent_length=2, image=cut)
    assert_same(both.frames[1:], first.frames)
    other = run(released, "one", max_latent_length=2, image=cut, seed=1)
    assert np.abs(other.latents[:, 0] - first.latents[:, 0]).max() > 0
    with pytest.raises(NovaError, match="nothing is left to generate; ask for more"):
        run(released, "one", image=cut)


def test_a_key_is_as_good_as_a_seed(released):
    by_seed = run(released, "one", seed=5).latents
    np.testing.assert_array_equal(run(released, "one", key=jax.random.key(5)).latents, by_seed)


def test_parameters_can_be_split_over_a_mesh(released):
    mesh = make_mesh(jax.devices()[:4], MeshConfig(fsdp=2, tensor=2))
    spread = NovaPipeline.from_pretrained(RELEASED, mesh=mesh)
    prompts = ["one", "two", "three"]
    difference = run(spread, prompts).latents - run(released, prompts).latents
    assert np.abs(difference).max() < 1e-4


def test_unknown_arguments_are_errors(released):
    with pytest.raises(TypeError, match="guidance_scael"):
        released("one", guidance_scael=3)
    with pytest.raises(NovaError, match="output_type is 'pt'"):
        released("one", output_type="pt")


def test_a_released_class_conditional_model_takes_labels(tmp_path):
    golden = RELEASED.parent / "c2i_flow_stride16"
    for part in ("transformer", "scheduler"):
        shutil.copytree(golden / part, tmp_path / part)
    config = {
        "_class_name": "AutoencoderKL",
        "latent_channels": 4,
        "block_out_channels": [32] * 5,
        "layers_per_block": 1,
    }
    (tmp_path / "vae").mkdir()
    (tmp_path / "vae" / "config.json").write_text(json.dumps(config))
    (tmp_path / "model_index.json").write_text("{}")
    network = AutoencoderKL(
        AutoencoderKLConfig(latent_channels=4, block_out_channels=(32,) * 5, layers_per_block=1),
        dtype="float32",
        rngs=nnx.Rngs(0),
    )
    variables = {path: v.get_value() for path, v in nnx.to_flat_state(nnx.state(network))}
    write_safetensors(
        tmp_path / "vae",
        "diffusion_pytorch_model",
        (
            (entry.released, entry.to_released(np.asarray(variables[entry.path])))
            for entry in autoencoder_table(variables)
        ),
    )
    pipeline = NovaPipeline.from_pretrained(tmp_path)
    output = run(pipeline, [3, 7], guidance_scale=2.0)
    assert [image.size for image in output.images] == [pipeline.size[::-1]] * 2
    assert_same(run(pipeline, [7, 3], guidance_scale=2.0).frames, output.frames[::-1])

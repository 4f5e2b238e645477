"""The memory that generation is said to take, against XLA's layout of its programs."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small
from flax import nnx

from nova_jax.distributed.memory import Part, check_fits, device_bytes, device_memory, host_memory
from nova_jax.errors import NovaError
from nova_jax.kernels.device import Target, target
from nova_jax.models.config import NovaConfig
from nova_jax.models.nova import Conditions, Nova
from nova_jax.request import Batches
from nova_jax.sampling import frames
from nova_jax.sampling.guidance import GuidanceConfig
from nova_jax.sampling.memory import generation_bytes
from nova_jax.sampling.options import SamplingConfig
from nova_jax.sampling.order import set_sizes
from nova_jax.sampling.schedules import DDPMSchedule, FlowMatchingSchedule
from nova_jax.sampling.state import begin

SAMPLING = SamplingConfig(num_inference_steps=2, num_diffusion_steps=8)
WIDE = NovaConfig.from_dict(
    small.VIDEO | {"temporal_encoder": "vit_d2w128", "spatial_decoder": "vit_d4w128",
                   "latent_size": (24, 24), "diffusion_head": "mlp_d3w192", "frames": 4}
)  # fmt: skip

DEEP = NovaConfig.from_dict(WIDE.to_dict() | {"spatial_decoder": "vit_d16w128", "frames": 2})


def laid_out(config, schedule, sampling, *, samples):
    """Bytes that the program of a frame takes, and those of the parameters."""
    graph, params = nnx.split(nnx.eval_shape(lambda: Nova(config, rngs=nnx.Rngs(0))))
    array = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.float32)  # noqa: E731
    keys = jax.eval_shape(lambda: jax.vmap(jax.random.key)(jnp.arange(samples)))
    conditions = Conditions(
        text=array(samples, config.text_length, config.text_dim),
        text_length=jax.ShapeDtypeStruct((samples,), jnp.int32),
        flow=array(samples),
        fps=array(samples),
    )
    slots = min(config.frames, sampling.window or config.frames)
    state = jax.eval_shape(partial(begin, config, slots=slots), conditions, None, keys)
    lowered = frames.next_frame_program.lower(
        graph,
        params,
        state,
        None,
        schedule=schedule,
        sampling=sampling,
        parallelism=frames.single_device,
    )
    found = lowered.compile().memory_analysis()
    size = lambda tree: sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))  # noqa: E731
    video = array(samples, config.frames, *config.latent_size, config.latent_channels)
    extra = found.temp_size_in_bytes + found.output_size_in_bytes + 2 * size(video)
    return extra + size(state.seen), size(params)


@pytest.mark.parametrize(
    ("config", "schedule", "samples", "options"),
    [
        (WIDE, FlowMatchingSchedule(), 32, {}),
        (dataclasses.replace(WIDE, frames=64), DDPMSchedule(), 8,
         {"guidance": GuidanceConfig(scale=1.0)}),
        (dataclasses.replace(WIDE, frames=64), FlowMatchingSchedule(), 8, {"window": 32}),
        (DEEP, FlowMatchingSchedule(), 32, {"feature_cache": 4, "num_inference_steps": 8}),
    ],
    ids=["steps of a frame", "many frames", "a window of them", "keys and values"],
)  # fmt: skip
def test_the_estimate_is_close_to_what_is_laid_out(config, schedule, samples, options):
    sampling = dataclasses.replace(SAMPLING, **options)
    needed, parameters = laid_out(config, schedule, sampling, samples=samples)
    options = {"samples": samples, "frames": config.frames, "itemsize": 4}
    guess = generation_bytes(config, schedule, sampling, parameters=parameters, **options)
    assert 0.7 < (guess + parameters) / (needed + parameters) < 1.5


def test_the_released_video_model_fits_a_gpu_of_24_gb():
    """All but the text encoder (5.6 GB) and decoding; JAX has three quarters of the GPU."""
    config = NovaConfig.from_dict(
        dict(latent_size=(60, 96), frames=16, temporal_encoder="vit_d16w1024",
             spatial_decoder="vit_d32w1024", diffusion_head="mlp_d3w1280", text_dim=2560,
             text_length=256, mixer_rank=24)
    )  # fmt: skip
    options = {"samples": 1, "frames": 9, "itemsize": 2, "parameters": 1_300_000_000}
    with target(Target("gpu", 8.6)):
        drawing = generation_bytes(config, FlowMatchingSchedule(), SamplingConfig(), **options)
    assert 0.1e9 < drawing < 0.75 * 24e9 - 1.3e9 - 5.6e9


def test_memory_is_this_machines():
    assert 2**28 < host_memory() < 2**50
    if jax.default_backend() == "cpu":
        assert device_memory(jax.devices()[0]) == host_memory()
    assert device_bytes({"a": jnp.zeros((3, 4)), "b": np.int8(0) + jnp.zeros(2, jnp.int8)}) == 50


def test_what_does_not_fit_names_the_largest_part_and_what_lowers_it():
    parts = [Part("parameters", 9e9, ()), Part("a", 1e9, ["x"]), Part("b", 2e9, ["y", "z"])]
    check_fits("this", parts, 12e9, "here")
    with pytest.raises(NovaError) as error:
        check_fits("this", parts, 11e9, "here", "go")
    assert str(error.value) == (
        "this takes about 12.00 GB of memory, 2.00 GB of that for b; here has 11.00 GB; "
        "lower y or z, or go"
    )


def test_batches_are_made_when_they_are_asked_for():
    batches = Batches(total=5, copies=2, size=3)
    assert [(batch.prompts, batch.copies) for batch in batches] == [
        ((0, 0, 1), (0, 1, 0)),
        ((1, 2, 2), (1, 0, 0)),  # the last sample pads
    ]
    many = Batches(total=10**15, copies=10**15, size=2)
    assert len(many) == 5 * 10**14
    assert many[len(many) - 1].copies == (10**15 - 2, 10**15 - 1)


def test_steps_beyond_one_for_each_token_take_no_memory():
    np.testing.assert_array_equal(set_sizes(16, 10**12), np.ones(16))
    np.testing.assert_array_equal(set_sizes(16, 33), set_sizes(16, 32))

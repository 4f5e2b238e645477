"""Text encoder and autoencoder in the host's memory between their turns: the same pictures."""

import types
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx

from nova_jax import budget
from nova_jax.distributed.mesh import MeshConfig, make_mesh
from nova_jax.errors import NovaError
from nova_jax.pipeline import NovaPipeline

RELEASED = Path(__file__).parent / "golden" / "pipeline_t2v"
CALL = dict(seed=3, num_inference_steps=2, num_diffusion_steps=2, max_latent_length=2)
PROMPTS = ["a red seven", "a blue three"]


@pytest.fixture(scope="module")
def kept() -> NovaPipeline:
    return NovaPipeline.from_pretrained(RELEASED, devices=jax.devices()[:1])


@pytest.fixture(scope="module")
def offloaded() -> NovaPipeline:
    return NovaPipeline.from_pretrained(RELEASED, devices=jax.devices()[:1], offload=True)


def parameters(part) -> list:
    return jax.tree.leaves(nnx.state(part.network))


def test_videos_are_the_same_and_nothing_stays_on_the_device(kept, offloaded):
    for part in (offloaded.codec, offloaded.text_encoder):
        assert all(type(leaf) is np.ndarray for leaf in parameters(part))
    frames = offloaded(PROMPTS, **CALL).frames
    np.testing.assert_array_equal(frames, kept(PROMPTS, **CALL).frames)
    # An embedding of the text encoder has a shape that no other array has.
    (largest,) = {max(parameters(offloaded.text_encoder), key=lambda leaf: leaf.size).shape}
    before = sum(array.shape == largest for array in jax.live_arrays())
    offloaded(PROMPTS, **CALL)
    assert sum(array.shape == largest for array in jax.live_arrays()) == before
    assert not offloaded.codec._placed


def test_pictures_go_in_and_sessions_go_on(kept, offloaded):
    picture = np.random.default_rng(0).integers(0, 255, (*kept.size, 3), np.uint8)
    made = [pipeline(PROMPTS[0], image=picture, **CALL).frames for pipeline in (kept, offloaded)]
    np.testing.assert_array_equal(*made)
    shown = [
        np.concatenate(list(pipeline.start(PROMPTS[0], **CALL).stream(2)), axis=1)
        for pipeline in (kept, offloaded)
    ]
    np.testing.assert_array_equal(*shown)


def test_parameters_go_back_to_where_they_were():
    mesh = make_mesh(jax.devices()[:2], MeshConfig(fsdp=2))
    spread = NovaPipeline.from_pretrained(RELEASED, mesh=mesh)
    other = NovaPipeline.from_pretrained(RELEASED, mesh=mesh, offload=True)
    places = [leaf.sharding for leaf in parameters(spread.text_encoder)]
    assert jax.tree.leaves(other.text_encoder._places) == places
    np.testing.assert_array_equal(other(PROMPTS, **CALL).frames, spread(PROMPTS, **CALL).frames)


def test_the_model_in_the_package_has_nothing_to_offload():
    pipeline = NovaPipeline.from_checkpoint(offload=True)
    assert pipeline.codec.network is None and pipeline.text_encoder.network is None
    with pytest.raises(NovaError, match="offload"):
        NovaPipeline.from_checkpoint(offload="yes")


def test_a_device_needs_the_largest_part_only(kept, offloaded, monkeypatch):
    device = types.SimpleNamespace(platform="gpu", device_kind="a small GPU")
    gigabyte = 10**9

    def check(memory: float, *sizes: float, offload: bool, overlapped: bool = False) -> None:
        monkeypatch.setattr(budget, "device_memory", lambda _: memory * gigabyte)
        request = kept.request(PROMPTS, **CALL)
        sizes = [int(size * gigabyte) for size in sizes]
        budget.check_memory(
            *(request, kept.config, kept.schedule, kept.codec),
            samples=1,
            itemsize=4,
            parameters=budget.Parameters(*sizes, offload),
            devices=[device],
            returned=False,
            overlapped=overlapped,
        )

    check(7.1, 2, 1, 4, offload=False)
    with pytest.raises(NovaError, match="a small GPU has 6.90 GB; .* or load it with offload=True"):
        check(6.9, 2, 1, 4, offload=False)
    check(6.1, 2, 1, 4, offload=True)  # transformer and text encoder
    with pytest.raises(NovaError, match="4.00 GB of that for the text encoder"):
        check(5.9, 2, 1, 4, offload=True)
    check(3.1, 2, 1, 0.5, offload=True)  # transformer and autoencoder
    with pytest.raises(NovaError):
        check(2.9, 2, 1, 0.5, offload=True)
    with pytest.raises(NovaError):  # also where a batch is decoded while the next one is drawn
        check(2.9, 2, 1, 0.5, offload=True, overlapped=True)

"""FLOPs of generation: against XLA's count, and what padding adds at the released sizes."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from nova_jax.models import Nova, NovaConfig, flops
from nova_jax.sampling.order import bucket_steps, set_sizes

VIDEO = NovaConfig(
    latent_size=(60, 96),
    temporal_encoder="vit_d16w1024",
    spatial_decoder="vit_d32w1024",
    diffusion_head="mlp_d3w1280",
    frames=9,
    text_dim=2560,
    text_length=256,
    mixer_rank=24,
)


@pytest.mark.parametrize(("steps", "most"), [(64, 16), (25, 16)])
def test_padding_adds_less_than_5_percent(steps, most):
    sizes = set_sizes(VIDEO.num_tokens, steps)
    cost = functools.partial(flops.ar_step, VIDEO, 25)
    buckets = bucket_steps(sizes, cost)
    padded, needed = (sum(column) for column in zip(*(b.cost(cost) for b in buckets), strict=True))
    assert padded < 1.05 * needed
    assert len(buckets) <= most


def test_a_cache_of_four_steps_saves_two_thirds_of_the_released_video_model():
    frames = [set_sizes(VIDEO.num_tokens, 64).tolist()] * 9
    options = dict(batch=1, passes=2, slots=9, diffusion_steps=25, condition_tokens=258)
    whole = flops.of_generation(VIDEO, sets=frames, **options)
    cached = flops.of_generation(VIDEO, sets=frames, feature_cache=4, **options)
    assert whole["spatial decoder"] == pytest.approx(1479e12, rel=0.01)
    assert 2.8 < sum(whole.values()) / sum(cached.values()) < 3.6
    same = flops.of_generation(VIDEO, sets=frames, feature_cache=1, **options)
    assert same == whole


def test_spatial_flops_are_what_xla_counts():
    config = dataclasses.replace(
        VIDEO,
        latent_size=(16, 16),
        temporal_encoder="vit_d2w128",
        spatial_decoder="vit_d2w128",
        diffusion_head="mlp_d1w128",
    )
    model = nnx.eval_shape(lambda: Nova(config, rngs=nnx.Rngs(0), unroll=2))
    graph, state = nnx.split(model)

    def step(state, visible, order, indicators):
        decoder = nnx.merge(graph, state).spatial_decoder
        return decoder(visible, 20, order, indicators, only=(jnp.asarray(20), 12))

    def revised(state, visible, order, indicators):
        decoder, first = nnx.merge(graph, state).spatial_decoder, jnp.asarray(7)
        known, only = decoder.unknown(1), (jnp.asarray(20), 12)
        part = (visible, 20, order[:, :25], indicators[:, :0], only)
        return decoder.revise(known, *part, first=first, most=20)[0]

    def counted(step, visible):
        shapes = [jnp.zeros((1, visible, 16)), jnp.zeros((1, 64), int), jnp.zeros((1, 16, 128))]
        return jax.jit(step).lower(state, *shapes).compile().cost_analysis()["flops"]

    # XLA counts additions, norms and activations too; the last block projects unused queries.
    assert counted(step, 20) == pytest.approx(flops.spatial_step(config, 20, 12), rel=0.15)
    assert counted(revised, 25) == pytest.approx(flops.revised_step(config, 20, 12), rel=0.15)
    assert counted(revised, 25) < 0.65 * counted(step, 20)  # of 64 tokens

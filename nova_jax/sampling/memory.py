"""The memory that generation takes, counted from sizes: nothing is traced or compiled.

It follows what `nova_jax.sampling.frames` holds, with factors that were read off XLA's layouts of
its programs (`compiled.memory_analysis()`): 0.7 to 1.5 times what they need is to be expected.

Letters: R rows (samples times guidance passes), D width, T frames, N tokens of a frame, M indicator
features, L condition tokens, P values of a token, S diffusion steps.
"""

from __future__ import annotations

from nova_jax.kernels.attention import score_bytes
from nova_jax.kernels.device import platform
from nova_jax.kernels.diffusion_sampler.api import MODULATION_BYTES
from nova_jax.models.config import NovaConfig
from nova_jax.sampling.options import SamplingConfig
from nova_jax.sampling.order import set_sizes
from nova_jax.sampling.schedules import Schedule

# Copies of its input that a transformer block has at once.
_BLOCK = 10
# What a program takes for each byte that is counted here.
_ROOM = 1.35


def generation_bytes(
    config: NovaConfig,
    schedule: Schedule,
    sampling: SamplingConfig,
    *,
    samples: int,
    frames: int,
    itemsize: int,
    parameters: int,
) -> float:
    """Bytes that a device needs to generate, besides the parameters.

    Args:
        config: the model's.
        schedule, sampling: how samples are drawn.
        samples: made together on the device.
        frames: T.
        itemsize: bytes of a number of the computation.
        parameters: bytes of the transformer's parameters on the device.

    Raises:
        NovaError: the steps make no sense.
    """
    steps = schedule.sampling_steps(sampling.num_diffusion_steps, sampling.flow_shift)
    fewest = min(sampling.of_frame(frame).num_inference_steps for frame in (0, 1))
    largest_set = int(set_sizes(config.num_tokens, fewest).max())
    rows, width = samples * sampling.guidance.passes, config.width
    head, heads = config.diffusion_head_size, config.spatial_decoder_size.heads
    # CPUs compute in float32: of smaller types they hold a copy, also of a stage's parameters.
    narrow = platform() == "cpu" and itemsize < 4
    wide = 4 if narrow else itemsize
    depth, other = config.temporal_encoder_size.depth, config.spatial_decoder_size.depth
    copied = 2 * narrow * parameters / (depth + other)

    slots = sampling.slots(frames)
    tokens = config.condition_tokens + slots * config.indicator_tokens
    latent = 4 * samples * config.num_tokens * config.token_dim
    # All frames, and those that are looked back at, before and after a step.
    kept = 2 * latent * (frames + slots - 1)

    def blocks(queries: int, keys: int) -> float:
        size = queries * width * wide
        return _BLOCK * rows * size + score_bytes(rows, heads, queries, keys, itemsize)

    temporal = blocks(tokens, tokens) + depth * copied
    everything = config.indicator_tokens + config.num_tokens
    spatial = blocks(everything, everything) + other * copied
    if sampling.feature_cache is not None:
        spatial += 2 * other * rows * everything * width * itemsize  # keys and values

    # Modulations of the head's blocks: of all steps at once, unless they are too large.
    a_step = rows * largest_set * (3 * head.depth + 2) * head.width * itemsize
    modulations = wide / itemsize * max(a_step, min(MODULATION_BYTES, len(steps.time) * a_step))
    # Noise of the steps that add some: drawn, padded, and the set's part of it.
    noise = 3 * len(steps.time) * min(1, steps.noise_draws) + 3
    drawn = 4 * samples * config.num_tokens * config.token_dim * noise
    return _ROOM * (kept + max(temporal, spatial + modulations + drawn))

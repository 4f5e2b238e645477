"""What generation and training cost: FLOPs of their matrix products, stage by stage.

Two per multiply-add, counted from the sizes and without padding. Attention counts the pairs that
are seen; norms, activations and positions are left out.

Letters: D width, N tokens of a frame, M indicator features, L condition tokens, K AR steps, S
diffusion steps, P values of a token.
"""

import itertools
from collections.abc import Sequence

from nova_jax.models.config import NovaConfig


def block(width: int, queries: int, keys: int) -> float:
    """A transformer block whose `queries` attend to `keys`, projecting both sides anew."""
    products = 2 * width**2 * (2 * keys + queries) + 2 * width**2 * 9 * queries
    return products + 4 * width * queries * keys


def spatial_step(config: NovaConfig, visible: int, predicted: int) -> float:
    """The spatial decoder in one AR step of one sample and guidance pass.

    The first half of the blocks sees the M indicator features and the visible tokens, the second
    half all tokens, and the last block is asked for the predicted ones only.
    """
    width, depth = config.width, config.spatial_decoder_size.depth
    seen = config.indicator_tokens + visible
    everything = config.indicator_tokens + config.num_tokens
    first, second = depth // 2, depth - depth // 2
    total = first * block(width, seen, seen) + (second - 1) * block(width, everything, everything)
    return total + block(width, predicted, everything) + 2 * config.token_dim * width * visible


def revised_step(config: NovaConfig, visible: int, predicted: int) -> float:
    """The same where only the set before and the one that is predicted are mapped anew.

    See `nova_jax.models.spatial_decoder.SpatialDecoder.revise`. A set has as many tokens as the one
    before it, or a few more.
    """
    width, depth = config.width, config.spatial_decoder_size.depth
    everything = config.indicator_tokens + config.num_tokens
    part = min(2 * predicted + 1, config.num_tokens)

    def half(depth: int, keys: int) -> float:
        return depth * part * (24 * width**2 + 4 * width * keys)

    unasked = (part - predicted) * (18 * width**2 + 4 * width * everything)
    halves = (
        half(depth // 2, config.indicator_tokens + visible),
        half(depth - depth // 2, everything),
    )
    return sum(halves) - unasked + 2 * config.token_dim * width * part


def head_token(config: NovaConfig, steps: int) -> float:
    """The diffusion head's S steps, or noisy copies, for one token of one sample and pass."""
    size = config.diffusion_head_size
    width, values = size.width, config.token_dim
    a_step = 2 * width**2 * (5 * size.depth + 2) + 2 * 2 * width * values
    return steps * a_step + 2 * width * (config.width + width)


def temporal_encoder(config: NovaConfig, slots: int, condition_tokens: int) -> float:
    """The temporal encoder over so many slots, of one sample and guidance pass.

    Slots see no later one; conditions are one block with the first.
    """
    size, tokens = config.temporal_encoder_size, config.indicator_tokens
    blocks = [condition_tokens + tokens, *[tokens] * (slots - 1)]
    pairs = sum(n * seen for n, seen in zip(blocks, itertools.accumulate(blocks), strict=True))
    return size.depth * (24 * size.width**2 * sum(blocks) + 4 * size.width * pairs)


def ar_step(config: NovaConfig, steps: int, visible: int, predicted: int) -> float:
    """One AR step of one sample and guidance pass: what padding of either number costs."""
    return spatial_step(config, visible, predicted) + predicted * head_token(config, steps)


def of_generation(
    config: NovaConfig,
    *,
    batch: int,
    passes: int,
    slots: int,
    sets: Sequence[Sequence[int]],
    diffusion_steps: int,
    condition_tokens: int,
    feature_cache: int | None = None,
) -> dict[str, float]:
    """FLOPs of a whole generation by stage.

    Args:
        config: the model's.
        batch, passes: B samples, G guidance passes.
        slots: of the temporal encoder, which sees all of them for each frame.
        sets: of each of T frames, tokens that each of its AR steps reveals, as
            `nova_jax.sampling.options.SamplingConfig.sets` has them.
        diffusion_steps: S.
        condition_tokens: L, motion's included.
        feature_cache: AR steps from one that sees all tokens to the next; None: all do.
    """

    def spatial(sets: Sequence[int]) -> float:
        visible = itertools.accumulate(sets, initial=0)
        whole = [k % (feature_cache or 1) == 0 for k in range(len(sets))]
        return sum(
            (spatial_step if all_of_it else revised_step)(config, v, n)
            for v, n, all_of_it in zip(visible, sets, whole, strict=False)
        )

    rows, frames = batch * passes, len(sets)
    return {
        "temporal encoder": rows * frames * temporal_encoder(config, slots, condition_tokens),
        "spatial decoder": rows * sum(map(spatial, sets)),
        "diffusion head": rows * frames * config.num_tokens * head_token(config, diffusion_steps),
    }


def of_training(config: NovaConfig, *, batch: int, frames: int, loss_repeat: int) -> float:
    """FLOPs of a training step: three times its forward pass, with nothing recomputed.

    Counted are all pairs of attention, also those that block-causal attention leaves out, and as
    many visible tokens as there is room for.
    """
    width, tokens, indicators = config.width, config.num_tokens, config.indicator_tokens
    temporal = config.condition_tokens + frames * indicators
    depth, rows = config.spatial_decoder_size.depth, batch * frames
    stages = (
        (config.temporal_encoder_size.depth, batch, temporal),
        (depth // 2, rows, indicators + config.max_visible_tokens),
        (depth - depth // 2, rows, indicators + tokens),
    )
    blocks = sum(depth * rows * block(width, n, n) for depth, rows, n in stages)
    return 3 * (blocks + rows * tokens * head_token(config, loss_repeat))

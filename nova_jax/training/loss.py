"""The training loss: masked, per-token diffusion loss over all frames (paper, section 3.4).

Dimensions: B videos, T frames, F = B·T frames, N tokens of a frame, P values of a token,
R = loss_repeat noisy copies of each frame.
"""

import dataclasses

import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Float, Int, Key

from nova_jax.models.config import NovaConfig
from nova_jax.models.layout import constrain
from nova_jax.models.nova import Conditions, Context, Nova
from nova_jax.models.observe import observe
from nova_jax.sampling.order import to_reveal_order
from nova_jax.sampling.schedules import Schedule
from nova_jax.training.context import ContextDraws, frame_weights


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainingDraws:
    """Everything random about one evaluation of the loss.

    Attributes:
        order: reveal order of each frame, rows b·T + t; its first tokens are the visible ones.
        num_visible: visible tokens, the same for every frame of the batch.
        noise: Gaussian noise of each copy, tokens row-major.
        timestep_index: index into the schedule's training table, tokens row-major.
        context: of what the temporal encoder sees; None where that is the frames themselves.
        start: where the window begins that is seen of longer clips; None for whole clips.
    """

    order: Int[Array, "f n"]
    num_visible: Int[Array, ""]
    noise: Float[Array, "r f n p"]
    timestep_index: Int[Array, "r f n"]
    context: ContextDraws | None = None
    start: Int[Array, ""] | None = None

    @classmethod
    def sample(
        cls,
        config: NovaConfig,
        schedule: Schedule,
        key: Key[Array, ""],
        *,
        batch: int,
        frames: int,
        loss_repeat: int = 4,
    ) -> "TrainingDraws":
        """Draws masks, noise and timesteps for `batch` videos of `frames` frames.

        The mask ratio is one draw a batch, by default from a normal(1, 0.25) cut to [0.7, 1] (MAR,
        section 4).
        """
        order_key, ratio_key, noise_key, time_key = jax.random.split(key, 4)
        rows, tokens = batch * frames, config.num_tokens
        order = jnp.argsort(jax.random.uniform(order_key, (rows, tokens)), axis=1)
        std = config.mask_ratio_std
        lowest = (config.mask_ratio_min - 1.0) / std
        ratio = 1.0 + std * jax.random.truncated_normal(ratio_key, lowest, 0.0)
        visible = jnp.round((1.0 - ratio) * tokens).astype(jnp.int32)
        shape = (loss_repeat, rows, tokens)
        return cls(
            order=order.astype(jnp.int32),
            num_visible=jnp.minimum(visible, config.max_visible_tokens),
            noise=jax.random.normal(noise_key, (*shape, config.token_dim)),
            timestep_index=schedule.draw_timesteps(time_key, shape),
        )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LossParts:
    """The loss taken apart; tokens are in reveal order.

    Attributes:
        loss: the sum that is minimised.
        first: T·Σ over frame 0, the paper's text-to-image part; the whole loss of images.
        rest: T/(T−1)·Σ over later frames, the image-to-image part; 0 for images.
        per_token: squared error of each token's copies, averaged over its values.
        weight: 1 for masked tokens, 0 for visible ones.
        timestep_index: the training timestep of each copy.
        mask_ratio: share of tokens that are masked.
    """

    loss: Float[Array, ""]
    first: Float[Array, ""]
    rest: Float[Array, ""]
    per_token: Float[Array, "r b t n"]
    weight: Float[Array, " n"]
    timestep_index: Int[Array, "r b t n"]
    mask_ratio: Float[Array, ""]


def training_loss(
    model: Nova,
    schedule: Schedule,
    latents: Float[Array, "b t h w c"],
    conditions: Conditions,
    draws: TrainingDraws,
    context: Context | None = None,
) -> tuple[Float[Array, ""], LossParts]:
    """The loss of a batch of videos, or of images (T = 1), and its parts.

    Latents are scaled as the model expects them; conditions have one row a video; `context` is
    what the temporal encoder sees where that is not the latents.
    """
    batch, frames = latents.shape[:2]
    repeat, _, tokens, _ = draws.noise.shape
    features = model(latents, conditions, draws.order, draws.num_visible, context)
    features = constrain(features, "frames", None, None)
    observe("spatial_decoder", features)

    x = rearrange(model.tokens(latents), "b t n p -> (b t) n p")
    x = to_reveal_order(x, draws.order)[None]
    reveal = jax.vmap(to_reveal_order, in_axes=(0, None))
    noise = constrain(reveal(draws.noise, draws.order), None, "frames", None, None)
    index = reveal(draws.timestep_index[..., None], draws.order)[..., 0]
    table = schedule.training_table()
    signal, noise_scale = (jnp.asarray(c)[index][..., None] for c in (table.signal, table.noise))
    head = model.diffusion_head
    # One row a timestep of the table, of which there are fewer than noisy tokens.
    times = head.embed_step(jnp.asarray(table.time))
    condition = head.feature_embed(features)[None] + times[index]
    prediction = head(signal * x + noise_scale * noise, condition).astype(jnp.float32)
    observe("diffusion_head", prediction)
    per_token = jnp.mean((prediction - schedule.target(x, noise)) ** 2, axis=-1)

    weight = (jnp.arange(tokens) >= draws.num_visible).astype(jnp.float32)
    weighted = per_token * weight[None, None]
    weighted = weighted / (repeat * batch * frames * jnp.sum(weight) + 1e-5)
    weighted = rearrange(weighted, "r (b t) n -> r b t n", t=frames)
    if draws.start is not None:
        weighted *= frame_weights(draws.start, frames)[None, None, :, None]
    if frames == 1:
        first, rest = jnp.sum(weighted), jnp.zeros(())
    else:
        first = frames * jnp.sum(weighted[:, :, 0])
        rest = frames / (frames - 1) * jnp.sum(weighted[:, :, 1:])
    parts = LossParts(
        loss=first + rest,
        first=first,
        rest=rest,
        per_token=rearrange(per_token, "r (b t) n -> r b t n", t=frames),
        weight=weight,
        timestep_index=rearrange(index, "r (b t) n -> r b t n", t=frames),
        mask_ratio=1.0 - draws.num_visible / tokens,
    )
    return parts.loss, parts

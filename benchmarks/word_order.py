"""How soon a temporal encoder learns from word order alone which color is on which side.

    python benchmarks/word_order.py --position_share=0.2
    python benchmarks/word_order.py --position_share=0.5

Captions of scenes ("a red seven left of a blue three"), the encoder of `configs/digits_t2i.py` with
an indicator feature for each of its 3 x 3 cells, and a linear layer that names the color of the six
cells on the two sides: what a picture model has to know, without drawing, in minutes. Who knows
both colors and not which is where is right in 50 %.
"""

import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import app, flags
from flax import nnx

from nova_jax.digits.captions import COLORS
from nova_jax.digits.scene_captions import RELATIONS, caption
from nova_jax.digits.scenes import draw_scene
from nova_jax.models import Conditions, Nova, NovaConfig
from nova_jax.text.hashed_words import HashedTextEncoder

SHARE = flags.DEFINE_float("position_share", 0.2, "Of the text's features, what tells the place.")
STEPS = flags.DEFINE_integer("steps", 1500, "At most; ends at 97 % right.")
DIM, LENGTH, BATCH = 128, 16, 64
SHOWN = 250  # steps from row to row


def draw(rng: np.random.Generator) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Captions, the color of each of 3 x 3 cells, and which cells the caption tells."""
    captions, colors, told = [], np.zeros((BATCH, 3, 3), int), np.zeros((BATCH, 3, 3))
    for row in range(BATCH):
        scene = draw_scene(rng, "color_position")
        captions.append(caption(scene, int(rng.integers(2**62))))
        right, down = RELATIONS[scene.relation or ""]
        sides = [0, 2] if right + down < 0 else [2, 0]
        columns, of_column = np.zeros((3, 3), int), np.zeros((3, 3))
        columns[:, sides] = [list(COLORS).index(color) for color in scene.colors]
        of_column[:, sides] = 1
        colors[row], told[row] = (columns.T, of_column.T) if down else (columns, of_column)
    return captions, colors.reshape(BATCH, 9), told.reshape(BATCH, 9)


def main(_: list[str]) -> None:
    """Prints cross entropy and share of right cells, means of the last 100 steps."""
    config = NovaConfig(
        latent_size=(3, 3),
        patch_size=1,
        temporal_patch=1,
        temporal_encoder="vit_d3w128",
        spatial_decoder="vit_d2w128",  # not used
        diffusion_head="mlp_d1w32",
        text_dim=DIM,
        text_length=LENGTH,
    )
    encoder = HashedTextEncoder(dim=DIM, position_share=SHARE.value)
    modules = (Nova(config, rngs=nnx.Rngs(0)), nnx.Linear(DIM, len(COLORS), rngs=nnx.Rngs(1)))
    graph, params, rest = nnx.split(modules, nnx.Param, ...)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.contrib.muon(1.5e-3))
    blank = jnp.zeros((BATCH, 1, *config.latent_size, config.latent_channels))

    def loss(params, text, length, colors, told):
        model, layer = nnx.merge(graph, params, rest)
        condition = model.embed_conditions(Conditions(text=text, text_length=length))
        logits = layer(model.temporal_encoder(blank, condition)[:, 0])
        entropy = optax.softmax_cross_entropy_with_integer_labels(logits, colors)
        right = logits.argmax(-1) == colors
        return jnp.sum(entropy * told) / jnp.sum(told), jnp.sum(right * told) / jnp.sum(told)

    @jax.jit
    def step(params, state, *batch):
        found, gradients = jax.value_and_grad(loss, has_aux=True)(params, *batch)
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state, jnp.stack(found)

    rng, state, history, begin = np.random.default_rng(0), optimizer.init(params), [], time.time()
    print(f"position_share {SHARE.value:g}\nsteps  cross entropy  right, %  seconds")
    for done in range(1, STEPS.value + 1):
        captions, colors, told = draw(rng)
        params, state, found = step(params, state, *encoder.encode(captions, LENGTH), colors, told)
        history.append(found)
        if done % SHOWN == 0:
            entropy, right = np.mean(history[-100:], axis=0)
            print(
                f"{done:5} {entropy:14.3f} {100 * right:9.1f} {time.time() - begin:8.0f}",
                flush=True,
            )
            if right > 0.97:
                break


if __name__ == "__main__":
    app.run(main)

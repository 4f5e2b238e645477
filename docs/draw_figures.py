"""Draws the figures of docs/model.md from the code itself; needs `pip install -e '.[plots]'`.

    python docs/draw_figures.py docs/images

model_stages.png: the three stages, with the token counts of the released video model.
reveal_order.png: which of a frame's tokens are drawn at which AR step. block_causal_mask.png: what
tokens of the temporal encoder see, for a small config.
"""

import sys
from pathlib import Path

import jax
import numpy as np
from flax import nnx
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import BoundaryNorm, ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

from nova_jax import recipes
from nova_jax.models import Nova, NovaConfig
from nova_jax.sampling.order import reveal_order, set_sizes

WIDTH, DPI = 8.0, 160  # inches and pixels an inch: shown at 800 pixels a point is 1.4 of them
LATENT_FRAMES, AR_STEPS = 9, 64  # of the released video model
PALE, DARK, GRAY = "#e8eaf6", "#303f9f", "#616161"
SMALL = NovaConfig(
    latent_size=(16, 24),
    frames=4,
    temporal_encoder="vit_d1w32",
    spatial_decoder="vit_d2w32",
    diffusion_head="mlp_d1w32",
    text_dim=32,
    text_length=16,
)


def released() -> NovaConfig:
    """The config of the released video model, as its recipe has it."""
    values = recipes.read("t2v_480p_0p6b").model.to_dict()
    return NovaConfig.from_dict(values)


def save(figure: Figure, path: Path) -> None:
    """Writes a PNG."""
    figure.savefig(path, dpi=DPI, facecolor="white", metadata={"Software": None})


def box(axes: Axes, place: tuple[float, float, float, float], title: str, text: str) -> None:
    """A box at (left, bottom, width, height) with a title above its text."""
    left, bottom, width, height = place
    style = "round,pad=0,rounding_size=0.08"
    patch = FancyBboxPatch((left, bottom), width, height, boxstyle=style, fc=PALE, ec=DARK)
    axes.add_patch(patch)
    middle = left + width / 2
    top = bottom + height - 0.13
    axes.text(middle, top, title, ha="center", va="top", weight="bold", color=DARK, size=11)
    axes.text(middle, top - 0.3, text, ha="center", va="top", size=9.5, linespacing=1.5)


def arrow(axes: Axes, *corners: tuple[float, float]) -> None:
    """An arrow along these places."""
    style = {"color": GRAY, "lw": 1.4}
    x, y = zip(*corners[:-1], strict=True)
    axes.plot(x, y, solid_joinstyle="round", **style)
    head = {"arrowstyle": "-|>", "mutation_scale": 14, "shrinkA": 0, "shrinkB": 0, **style}
    axes.add_patch(FancyArrowPatch(corners[-2], corners[-1], **head))


def draw_stages(path: Path) -> None:
    """The three stages of the released video model, and what goes from one to the next."""
    config = released()
    text, motion = config.text_length, config.condition_tokens - (config.text_length or 0)
    tokens, indicators = config.num_tokens, config.indicator_tokens
    sequence = config.condition_tokens + LATENT_FRAMES * indicators
    sizes = set_sizes(tokens, AR_STEPS)
    h, w = config.latent_size
    figure = Figure(figsize=(WIDTH, 3.1), layout="constrained")
    axes = figure.subplots()
    axes.set(xlim=(0, 8), ylim=(0.05, 3.1))
    axes.axis("off")
    bottom, height = 1.2, 1.45
    box(
        axes,
        (0.05, bottom, 2.35, height),
        "temporal encoder",
        f"{config.temporal_encoder}, once a frame\n"
        f"sees {text} text, {motion} motion tokens,\n"
        f"begin of video, frames before:\n"
        f"{sequence:,} tokens of {LATENT_FRAMES} frames",
    )
    box(
        axes,
        (2.85, bottom, 2.35, height),
        "spatial decoder",
        f"{config.spatial_decoder}, once an AR step\n"
        f"sees {indicators} indicator features and\n"
        f"the tokens that are visible,\n0 to {tokens - sizes[-1]:,} of {tokens:,}",
    )
    box(
        axes,
        (5.65, bottom, 2.3, height),
        "diffusion head",
        f"{config.diffusion_head}, S diffusion steps\n"
        f"denoises {sizes.min()} to {sizes.max()} tokens,\n"
        f"each by itself,\n{config.token_dim} numbers a token",
    )
    middle, note = bottom + height / 2, {"ha": "center", "size": 9.5, "color": GRAY}
    above = bottom + height + 0.12
    arrow(axes, (2.4, middle), (2.85, middle))
    axes.text(2.62, above, f"{indicators} features of frame t", va="bottom", **note)
    arrow(axes, (5.2, middle), (5.65, middle))
    axes.text(5.42, above, f"{tokens:,} features, one a token", va="bottom", **note)
    arrow(axes, (6.3, bottom), (6.3, 0.9), (4.0, 0.9), (4.0, bottom))
    again = f"drawn tokens become visible: {len(sizes)} AR steps"
    axes.text(5.15, 0.82, again, va="top", **note)
    arrow(axes, (7.4, bottom), (7.4, 0.4), (1.2, 0.4), (1.2, bottom))
    frame = f"a finished latent frame, {h}×{w}×{config.latent_channels}, is seen by later ones"
    axes.text(4.3, 0.32, frame, va="top", **note)
    save(figure, path)


def draw_order(path: Path) -> None:
    """A frame's tokens by the AR step that draws them."""
    config, steps = SMALL, 8
    sizes = set_sizes(config.num_tokens, steps)
    order = np.asarray(reveal_order(jax.random.key(0)[None], config.num_tokens))[0]
    step_of = np.empty(config.num_tokens, int)
    step_of[order] = np.repeat(np.arange(1, len(sizes) + 1), sizes)
    grid = step_of.reshape(config.grid)
    colors = ListedColormap(colormaps["viridis"](np.linspace(0.05, 0.95, len(sizes))))
    norm = BoundaryNorm(np.arange(0.5, len(sizes) + 1), len(sizes))
    figure = Figure(figsize=(WIDTH, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1.45, 1))
    left.imshow(grid, cmap=colors, norm=norm)
    for (row, column), step in np.ndenumerate(grid):
        color = "black" if step > 0.6 * len(sizes) else "white"
        left.text(column, row, str(step), ha="center", va="center", color=color, size=10)
    rows, columns = config.grid
    left.set_title(f"a frame of {rows}×{columns} tokens, by AR step", size=11)
    left.set(xticks=[], yticks=[])
    numbers = np.arange(1, len(sizes) + 1)
    right.bar(numbers, sizes, color=colors(norm(numbers)))
    for number, size in zip(numbers, sizes, strict=True):
        right.text(number, size + 0.2, str(size), ha="center", size=10)
    right.set_title(f"tokens that a step draws, {len(sizes)} AR steps", size=11)
    right.set_xlabel("AR step")
    right.set_xticks(numbers)
    right.set_yticks([])
    right.spines[["left", "top", "right"]].set_visible(False)
    save(figure, path)


def draw_mask(path: Path) -> None:
    """The mask of a small temporal encoder, as it is without the blocks of attention."""
    config, slots = SMALL, SMALL.frames
    model = nnx.eval_shape(lambda: Nova(config, rngs=nnx.Rngs(0)))
    length = config.condition_tokens
    mask = np.asarray(model.temporal_encoder.mask(slots, length))[0]
    blocks = model.temporal_encoder.blocks_of(slots, length)
    figure = Figure(figsize=(WIDTH, 5.6), layout="constrained")
    axes = figure.subplots()
    axes.imshow(~mask, cmap=ListedColormap([DARK, "white"]), interpolation="nearest")
    names = ["conditions", "begin of video", *(f"frame {t}" for t in range(slots - 1))]
    sizes = [length, *[config.indicator_tokens] * slots]
    ends = np.cumsum(sizes)
    middles = ends - np.asarray(sizes) / 2 - 0.5
    labels = [f"{name}: {size}" for name, size in zip(names, sizes, strict=True)]
    axes.set_yticks(middles, labels)
    axes.set_xticks(middles, labels, rotation=20, ha="right")
    axes.tick_params(length=0)
    for end in ends[:-1]:
        axes.axhline(end - 0.5, color="0.6", lw=0.8)
        axes.axvline(end - 0.5, color="0.6", lw=0.8)
    axes.set_xlabel("what is seen: keys")
    axes.set_ylabel("tokens that see: queries")
    seen = f"{mask.mean():.0%} of the scores are seen (dark)"
    axes.set_title(f"{len(mask)} tokens in {len(blocks)} blocks; {seen}", size=11)
    save(figure, path)


def main(folder: str) -> None:
    """Draws all figures into a folder."""
    place = Path(folder)
    draw_stages(place / "model_stages.png")
    draw_order(place / "reveal_order.png")
    draw_mask(place / "block_causal_mask.png")


if __name__ == "__main__":
    main(sys.argv[1])

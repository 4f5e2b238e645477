"""What a pipeline is asked for, cut into batches, and what it gives.

Letters as in `nova_jax.pipeline`; g latent frames are given.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int, Key, UInt8
from PIL import Image

from nova_jax.autoencoders.interface import Array
from nova_jax.config import shown
from nova_jax.editing import Edit
from nova_jax.errors import NovaError
from nova_jax.rewriting.interface import Rewriter
from nova_jax.sampling.denoise import NoiseSource
from nova_jax.sampling.keys import image_keys, sample_key
from nova_jax.sampling.options import SamplingConfig
from nova_jax.sampling.steps import OnStep

# A text, a class label, or text features [rows, text_dim].
Prompt = Any
OutputType = Literal["pil", "np", "latent"]


@dataclasses.dataclass(frozen=True)
class FirstFrames:
    """Latent frames that videos begin with, as distributions.

    Attributes:
        mean: one for each prompt.
        deviation: standard deviation of what each sample draws.
        edit: what of them is painted anew; None for nothing.
    """

    mean: Float[np.ndarray, "p g h w c"]
    deviation: Float[np.ndarray, "1 g h w c"]
    edit: Edit | None = None


@dataclasses.dataclass(frozen=True)
class Batch:
    """Samples that are made together: each one's prompt, and which of that prompt's it is."""

    prompts: Sequence[int]
    copies: Sequence[int]

    def __len__(self) -> int:
        return len(self.prompts)


@dataclasses.dataclass(frozen=True)
class Batches(Sequence[Batch]):
    """Batches of one size, made when they are asked for; the last sample pads the last batch.

    Attributes:
        total: samples.
        copies: of them, samples of each prompt.
        size: samples of a batch.
    """

    total: int
    copies: int
    size: int

    def __len__(self) -> int:
        return -(-self.total // self.size)

    def __getitem__(self, index: Any) -> Any:
        first = range(len(self))[index] * self.size
        samples = (min(sample, self.total - 1) for sample in range(first, first + self.size))
        prompts, copies = zip(*(divmod(sample, self.copies) for sample in samples), strict=True)
        return Batch(prompts, copies)


@dataclasses.dataclass(frozen=True)
class Request:
    """Samples of prompts, as `nova_jax.pipeline.NovaPipeline.stream` is asked for them.

    Attributes:
        prompts, negative, seeds: one of each for every prompt; seeds are keys.
        copies: samples of each prompt.
        frames: T.
        first: what videos begin with; None for nothing.
        flow: motion score.
        sampling: how samples are drawn.
        batch_size: most samples to compute together.
        output_type: what is given.
        order, noise: drawn elsewhere.
        show_progress: whether a bar is shown.
        on_step: called after each AR step.
        rewriter: of prompts that come later, in a session.
        rewritten: what the model reads in place of each prompt; None for the prompts themselves.
    """

    prompts: Sequence[Prompt]
    negative: Sequence[Prompt] | None
    seeds: Sequence[Key[jax.Array, ""]]
    copies: int
    frames: int
    first: FirstFrames | None
    flow: float
    sampling: SamplingConfig
    batch_size: int
    output_type: OutputType
    order: Int[jax.Array, "b n"] | None
    noise: NoiseSource | None
    show_progress: bool
    on_step: OnStep | None = None
    rewriter: Rewriter | None = None
    rewritten: Sequence[str] | None = None

    def __post_init__(self) -> None:
        """Raises a `NovaError` if what is to be called after each step cannot be."""
        if self.on_step is not None and not callable(self.on_step):
            raise NovaError(
                f"on_step is {shown(self.on_step)}; give a function, which is called with a "
                "nova_jax.sampling.steps.Partial"
            )

    @property
    def recorded(self) -> bool:
        """Whether order or noise are given: they have no known layout, so one device has all."""
        return self.order is not None or self.noise is not None

    @property
    def edit(self) -> Edit | None:
        """What of the first frames is painted anew."""
        return None if self.first is None else self.first.edit

    @property
    def painting(self) -> dict[str, Any]:
        """What of the first frames is painted anew, as `generate` takes it."""
        return {} if self.edit is None else {"kept": self.edit.kept, "share": self.edit.seen}

    @property
    def read(self) -> Sequence[Prompt]:
        """What the model reads, one for every prompt."""
        return self.rewritten or self.prompts

    @property
    def count(self) -> int:
        """Samples."""
        return len(self.prompts) * self.copies

    def batches(self, devices: int, *, all_take_part: bool) -> Batches:
        """All samples, in batches of one size that devices share evenly; the last sample pads.

        Fewer samples than devices take one device each, or are padded so that all take part.

        Raises:
            NovaError: what is recorded is for one batch and there are several.
        """
        number = -(-self.count // self.batch_size)
        if self.recorded and number > 1:
            raise NovaError("a given order or noise needs one batch; make batch_size larger")
        size = -(-self.count // number)
        if all_take_part or size > devices:
            size += -size % devices
        return Batches(self.count, self.copies, size)

    def keys(self, batch: Batch) -> Key[jax.Array, " b"]:
        """The samples' random keys."""
        seeds = jnp.stack([self.seeds[prompt] for prompt in batch.prompts])
        return jax.vmap(sample_key)(seeds, jnp.asarray(batch.copies))

    def first_frames(
        self, batch: Batch, keys: Key[jax.Array, " b"]
    ) -> Float[jax.Array, "b g h w c"] | None:
        """What the samples begin with, drawn from their keys."""
        if self.first is None:
            return None
        mean = jnp.asarray(self.first.mean[np.asarray(batch.prompts)])
        return mean + _image_noise(keys, self.first.deviation)

    def check_finite(self, batch: Batch, finite: Bool[Array, "b ..."], what: str) -> None:
        """Refuses what was made of a batch if any number of it is not finite.

        Raises:
            NovaError: naming the first sample that has such.
        """
        rows = np.asarray(finite.all(axis=tuple(range(1, finite.ndim))))
        if not rows.all():
            row = int(rows.argmin())
            raise NovaError(
                f"the {what} of prompt {shown(self.prompts[batch.prompts[row]])} (sample "
                f"{batch.copies[row] + 1} of {self.copies}) are not finite; compute in float32, or "
                "with less guidance"
            )


@dataclasses.dataclass(frozen=True)
class Output:
    """What a pipeline made of B samples.

    Attributes:
        latents: float32 `[B, T, h, w, C]`, as the transformer sees them.
        frames: uint8 RGB `[B, F, H, W, 3]`; with `output_type="latent"` the latents.
        fps: frames per second.
        output_type: what was asked for.
    """

    latents: Float[np.ndarray, "b t h w c"]
    frames: np.ndarray
    fps: float
    output_type: OutputType

    @classmethod
    def joined(cls, parts: Sequence[Output]) -> Output:
        """The samples of all parts in one."""
        latents = frames = np.concatenate([part.latents for part in parts])
        if parts[0].output_type != "latent":
            frames = np.concatenate([part.frames for part in parts])
        return dataclasses.replace(parts[0], latents=latents, frames=frames)

    @functools.cached_property
    def images(self) -> list[Image.Image] | UInt8[np.ndarray, "b H W 3"] | None:
        """Where F is 1, the frames as PIL images, or as an array with `output_type="np"`."""
        if self.output_type == "latent" or self.frames.shape[1] > 1:
            return None
        pictures = self.frames[:, 0]
        return pictures if self.output_type == "np" else list(map(Image.fromarray, pictures))


@jax.jit
def _image_noise(
    keys: Key[jax.Array, " b"], deviation: Float[jax.Array, "1 g h w c"]
) -> Float[jax.Array, "b g h w c"]:
    """Noise of this standard deviation."""
    normal = lambda key: jax.random.normal(key, jnp.shape(deviation)[1:])  # noqa: E731
    return deviation * jax.vmap(normal)(image_keys(keys))

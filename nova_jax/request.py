"""What a pipeline is asked for, checked and cut into batches, and what it gives.

Letters as in `nova_jax.pipeline`; g latent frames are given.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int, Key, UInt8
from PIL import Image

from nova_jax import media
from nova_jax.autoencoders.interface import VideoCodec
from nova_jax.autoencoders.pixels import to_float
from nova_jax.distributed.memory import Part, check_fits, device_memory, host_memory
from nova_jax.errors import NovaError
from nova_jax.models.config import NovaConfig
from nova_jax.sampling.denoise import NoiseSource
from nova_jax.sampling.keys import image_keys, sample_key, seed_key
from nova_jax.sampling.memory import generation_bytes
from nova_jax.sampling.options import SamplingConfig
from nova_jax.sampling.schedules import Schedule

logger = logging.getLogger(__name__)

# A text, a class label, or text features [rows, text_dim].
Prompt = Any
OutputType = Literal["pil", "np", "latent"]


@dataclasses.dataclass(frozen=True)
class FirstFrames:
    """Latent frames that videos begin with, as distributions.

    Attributes:
        mean: one for each prompt.
        deviation: standard deviation of what each sample draws.
    """

    mean: Float[np.ndarray, "p g h w c"]
    deviation: Float[np.ndarray, "1 g h w c"]


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
    """Samples of prompts, as `nova_jax.pipeline.NovaPipeline.__call__` is asked for them.

    Attributes:
        prompts, negative, seeds: one of each for every prompt; seeds are keys.
        copies: samples of each prompt.
        frames: T.
        first: what videos begin with; None for nothing.

    Raises:
        NovaError: a number or the type of the output makes no sense.
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

    def __post_init__(self) -> None:
        if min(self.copies, self.batch_size) < 1:
            raise NovaError("num_images_per_prompt and batch_size must be at least 1")
        if self.output_type not in ("pil", "np", "latent"):
            raise NovaError(f'output_type is {self.output_type!r}; choose "pil", "np" or "latent"')

    @property
    def recorded(self) -> bool:
        """Whether order or noise are given: they have no known layout, so one device has all."""
        return self.order is not None or self.noise is not None

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


@dataclasses.dataclass(frozen=True)
class Output:
    """What a pipeline made of B samples.

    Attributes:
        latents: float32 `[B, T, h, w, C]`, as the transformer sees them.
        frames: uint8 RGB `[B, F, H, W, 3]`; with `output_type="latent"` the latents.
        images: where F is 1, the frames as PIL images, or as an array `[B, H, W, 3]` with
            `output_type="np"`; else None.
        fps: frames per second.
    """

    latents: Float[np.ndarray, "b t h w c"]
    frames: np.ndarray
    images: list[Image.Image] | UInt8[np.ndarray, "b H W 3"] | None
    fps: float

    @classmethod
    def of(
        cls,
        request: Request,
        latents: Sequence[np.ndarray],
        pixels: Sequence[np.ndarray],
        fps: float,
    ) -> Output:
        """All batches together, without what pads the last one; no pixels: latents are wanted."""
        whole = np.concatenate(latents)[: request.count]
        if request.output_type == "latent":
            return cls(whole, whole, None, fps)
        frames = np.concatenate(pixels)[: request.count]
        images: Any = frames[:, 0] if frames.shape[1] == 1 else None
        if images is not None and request.output_type == "pil":
            images = [Image.fromarray(image) for image in images]
        return cls(whole, frames, images, fps)


@jax.jit
def _image_noise(
    keys: Key[jax.Array, " b"], deviation: Float[jax.Array, "1 g h w c"]
) -> Float[jax.Array, "b g h w c"]:
    """Noise of this standard deviation."""
    normal = lambda key: jax.random.normal(key, jnp.shape(deviation)[1:])  # noqa: E731
    return deviation * jax.vmap(normal)(image_keys(keys))


def check_prompts(
    prompts: Any, embeds: Sequence[np.ndarray] | None, what: str, config: NovaConfig
) -> list[Prompt]:
    """One or several prompts or text features, of a kind that the model takes.

    Raises:
        NovaError: there are none, of both kinds, or of the wrong one.
    """
    if embeds is None:
        several = isinstance(prompts, Sequence | np.ndarray) and not isinstance(prompts, str)
        texts = list(prompts) if several else [] if prompts is None else [prompts]
        if not texts:
            raise NovaError(f"no {what} given; give at least one")
        kind, words = (str, "text") if config.text_dim else (int, "a class number")
        for text in texts:
            if not isinstance(text, kind | (np.integer if kind is int else kind)):
                raise NovaError(f"{what} {text!r}: this model takes {words}")
        return texts
    if prompts:
        raise NovaError(f"a {what} and its embeddings are given; give one of them")
    rows = [np.asarray(embed, np.float32) for embed in embeds]
    for embed in rows:
        if embed.ndim != 2 or embed.shape[1] != config.text_dim:
            raise NovaError(
                f"{what} embeddings have shape {list(embed.shape)}; "
                f"this model takes [rows, {config.text_dim}]"
            )
    return rows


def check_negative(
    prompts: Any, embeds: Sequence[np.ndarray] | None, count: int, config: NovaConfig
) -> list[Prompt] | None:
    """A negative prompt for each of so many prompts; None where there is none.

    Raises:
        NovaError: as `check_prompts`, or there are some, but not as many.
    """
    if not prompts and embeds is None:
        return None
    negative = check_prompts(prompts, embeds, "negative prompt", config)
    negative = negative * count if len(negative) == 1 else negative
    if len(negative) != count:
        raise NovaError(
            f"{len(negative)} negative prompts for {count} prompts; give one, or one for each"
        )
    return negative


def check_seeds(
    seed: int | Sequence[int], key: Key[jax.Array, ""] | None, count: int
) -> list[Key[jax.Array, ""]]:
    """The key of the seed of each of so many prompts.

    Raises:
        NovaError: there are several, but not as many.
    """
    seeds = [seed] * count if isinstance(seed, int) else list(seed)
    if len(seeds) != count:
        raise NovaError(f"{len(seeds)} seeds for {count} prompts; give one for each")
    return [seed_key(seed) if key is None else key for seed in seeds]


def check_latents(latents: np.ndarray, count: int, frames: int, config: NovaConfig) -> FirstFrames:
    """Latents, [1 or P, g, h, w, C], that the videos of so many prompts begin with.

    Raises:
        NovaError: they are not of this model, or nothing is left to generate.
    """
    given = np.asarray(latents, np.float32)
    wanted = (*config.latent_size, config.latent_channels)
    if given.ndim != 5 or given.shape[2:] != wanted or given.shape[0] not in (1, count):
        raise NovaError(
            f"latents have shape {list(given.shape)}; this model takes "
            f"[1 or {count}, frames, {', '.join(map(str, wanted))}]"
        )
    if given.shape[1] >= frames:
        raise NovaError(
            f"{given.shape[1]} latent frames are given and {frames} asked for; nothing is "
            "left to generate"
        )
    mean = np.broadcast_to(given, (count, *given.shape[1:]))
    return FirstFrames(mean, np.zeros_like(given[:1]))


def encode_image(
    image: np.ndarray | Image.Image,
    count: int,
    frames: int,
    *,
    size: tuple[int, int],
    codec: VideoCodec,
) -> FirstFrames:
    """A picture, uint8 [H, W, 3], that becomes the first frame of the videos of so many prompts.

    Raises:
        NovaError: it is no picture, or there are no more frames than it.
    """
    if frames == 1:
        raise NovaError("an image becomes the first frame; ask for more than one frame")
    picture = np.asarray(image.convert("RGB") if isinstance(image, Image.Image) else image)
    fitted = media.fit_image(picture, size)
    if picture.shape[:2] != size:
        logger.warning(
            "image of %dx%d scaled and cropped about its center to %dx%d",
            *(*picture.shape[1::-1], *size[::-1]),
        )
    mean, deviation = (np.asarray(x) for x in codec.posterior(to_float(fitted)[None, None]))
    return FirstFrames(np.broadcast_to(mean, (count, *mean.shape[1:])), deviation)


def check_memory(
    request: Request,
    config: NovaConfig,
    schedule: Schedule,
    codec: VideoCodec,
    *,
    samples: int,
    itemsize: int,
    transformer: int,
    frozen: int,
    devices: Sequence[jax.Device],
    returned: bool,
) -> None:
    """Counts what a request takes, see `nova_jax.sampling.memory`, before anything is compiled.

    Args:
        request: for samples.
        config, schedule, codec: of the model.
        samples: of a batch, on one device.
        itemsize: bytes of a number of the computation.
        transformer, frozen: bytes of its parameters and of all others, on one device.
        devices: of this process, that take part.
        returned: whether all samples are kept to be returned, not only those of a batch.

    Raises:
        NovaError: a device, or this machine, has less.
    """
    height, width = (side * codec.stride for side in config.latent_size)
    frames, pixels = request.frames, 3 * codec.pixel_frames(request.frames) * height * width
    latents = frames * config.num_tokens * config.token_dim
    what, shared = "this request", devices[0].platform == "cpu"
    shorter = ["max_latent_length (num_frames)"] * (frames > 1)
    smaller, fewer = [*shorter, "size"], ["batch_size"] * (samples > 1)
    # CPUs compute in float32 anyway.
    narrower = ["dtype (to bfloat16)"] * (itemsize > 2 and not shared)
    generation = generation_bytes(
        config,
        schedule,
        request.sampling,
        samples=samples,
        frames=frames,
        itemsize=itemsize,
        parameters=transformer,
    )
    drawing = [Part("the drawing of a batch", generation, [*fewer, *smaller, *narrower])]
    decoding = [
        # Latents; pixels in float32, twice on their way to uint8.
        Part("the pixels of a batch", samples * (4 * latents + 13 * pixels), [*fewer, *smaller]),
        Part(
            "the decoding of a clip",
            codec.decode_bytes(frames, (height, width)),
            [*smaller, *narrower],
        ),
    ]
    stages = [drawing] if request.output_type == "latent" else [drawing, decoding]
    largest = max(stages, key=lambda parts: sum(part.bytes for part in parts))
    on_device = [Part("parameters", transformer + frozen, ()), *largest]

    # Batches, and then all of them in one array.
    sample = 4 * latents + pixels * (request.output_type != "latent")
    copies = ["num_images_per_prompt"] * (request.copies > 1)
    prompts = ["the number of prompts"] * (len(request.prompts) > 1)
    kept = Part(
        "the samples that are returned",
        2 * sample * request.count * returned,
        [*copies, *prompts, *shorter, "size"],
    )
    if shared:
        on_device = [part._replace(bytes=part.bytes * len(devices)) for part in on_device]
        check_fits(what, [*on_device, kept], host_memory(), "this machine")
        return
    check_fits(what, on_device, device_memory(devices[0]), devices[0].device_kind)
    check_fits(what, [kept], host_memory(), "this machine")

"""NovaPipeline: prompts (and a picture) in, pictures and videos out.

    pipeline = NovaPipeline.from_pretrained("BAAI/nova-d48w1024-osp480", dtype="bfloat16")
    video = pipeline("a drone view of a city at night", max_latent_length=9).frames[0]

    pipeline = NovaPipeline.from_checkpoint()  # the small model in the package
    video = pipeline("a red seven moves slowly to the left", seed=1).frames[0]

Letters: B samples, F pixel frames, T latent frames, H×W pixels, h×w latents, C latent channels.
"""

from __future__ import annotations

import copy
import dataclasses
import logging
import os
from collections.abc import Sequence
from numbers import Real
from pathlib import Path
from typing import Any, Literal, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Float, Int, Key, UInt8
from PIL import Image
from tqdm import tqdm

from nova_jax import media
from nova_jax.autoencoders.interface import VideoCodec
from nova_jax.autoencoders.pixels import to_float, to_uint8
from nova_jax.checkpoints import diffusers
from nova_jax.checkpoints.model import load_model
from nova_jax.config import from_dict
from nova_jax.distributed.mesh import (
    SampleSpread,
    batch_sharding,
    batch_ways,
    make_mesh,
    replicated,
)
from nova_jax.errors import NovaError
from nova_jax.kernels.diffusion_sampler.api import Implementation, choose
from nova_jax.models.embeddings import DEFAULT_FLOW, DEFAULT_FPS
from nova_jax.models.nova import Conditions, Nova
from nova_jax.sampling.denoise import NoiseSource
from nova_jax.sampling.frames import SamplingConfig, generate
from nova_jax.sampling.guidance import GuidanceConfig
from nova_jax.sampling.schedules import Schedule
from nova_jax.text.interface import TextEncoder

# The digits model that comes with the package.
SHIPPED = Path(__file__).parent / "assets" / "digits_t2v"

logger = logging.getLogger(__name__)


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


class NovaPipeline:
    """A model with its frozen parts, ready to generate.

    Args:
        model: The transformer.
        schedule: The noise schedule it was trained with.
        codec: Latents to pixels and back.
        text_encoder: Prompts to features; None for a class-conditional model.
        frames: Latent frames of a video unless told otherwise.
        sampling: What options are unless told otherwise.
        motion_flow: Motion score unless told otherwise.
        fps: Frame rate that the model is conditioned on and videos play at.
        mesh: Devices that hold the parameters, as they already do, and share the samples.
        devices: Without a mesh: devices to spread samples over, each with a copy of the parameters;
            by default all of this process.
        unroll: Blocks per iteration of the loops over depth. On a CPU 16 takes a twentieth off the
            time of a large model and compiles for three times as long.
    """

    def __init__(
        self,
        model: Nova,
        schedule: Schedule,
        codec: VideoCodec,
        text_encoder: TextEncoder | None,
        *,
        frames: int,
        sampling: SamplingConfig,
        motion_flow: float,
        fps: float,
        mesh: Mesh | None = None,
        devices: Sequence[jax.Device] | None = None,
        unroll: int = 1,
    ) -> None:
        if unroll < 1:
            raise NovaError(f"unroll is {unroll}; it must be at least 1")
        self.schedule, self.codec, self.text_encoder = schedule, codec, text_encoder
        self.config, self.frames, self.sampling = model.config, frames, sampling
        self.motion_flow, self.fps = motion_flow, fps
        self._graph, self._state = nnx.split(model.unrolled(unroll))
        self._mesh = mesh
        self._devices = list(devices or jax.local_devices())
        self._placed: dict[int, tuple[Mesh, nnx.State]] = {}

    @classmethod
    def from_checkpoint(
        cls,
        directory: str | os.PathLike[str] = SHIPPED,
        *,
        which: Literal["ema", "raw"] = "ema",
        checkpoint: Literal["latest", "best"] | int = "latest",
        dtype: jax.typing.DTypeLike = jnp.float32,
        devices: Sequence[jax.Device] | None = None,
        unroll: int = 1,
    ) -> NovaPipeline:
        """Loads a model directory or the work directory of a training run.

        Args:
            directory: Where it is; by default the one that comes with the package.
            which: Of a training run, averaged or current parameters.
            checkpoint: Of a training run, which of its checkpoints.
            dtype: Type the model computes in.
            devices: Devices to spread samples over; by default all of this process.
            unroll: See the class.

        Raises:
            NovaError: There is no checkpoint of this project, or it is damaged.
        """
        loaded = load_model(directory, which=which, checkpoint=checkpoint, dtype=dtype)
        config = loaded.config
        missing = [
            part
            for part, value, needed in (
                ("codec", loaded.codec, True),
                ("text_encoder", loaded.text_encoder, loaded.model.config.text_dim is not None),
            )
            if needed and value is None
        ]
        if missing or loaded.codec is None:
            raise NovaError(
                f"{directory} was trained on latents and names no {' and no '.join(missing)}; put "
                'that of the data into its config.json, as {"type": "released", "source": DIR}'
            )
        return cls(
            loaded.model,
            loaded.schedule,
            loaded.codec,
            loaded.text_encoder,
            frames=loaded.model.config.frames,
            sampling=from_dict(SamplingConfig, config.get("sampling", {}), "sampling"),
            motion_flow=config.get("motion_flow", DEFAULT_FLOW),
            fps=config.get("dataset", {}).get("fps", DEFAULT_FPS),
            devices=devices,
            unroll=unroll,
        )

    @classmethod
    def from_pretrained(
        cls,
        source: str | os.PathLike[str],
        *,
        dtype: jax.typing.DTypeLike = jnp.float32,
        mesh: Mesh | None = None,
        unroll: int = 1,
    ) -> NovaPipeline:
        """Loads a model in the released layout, such as `BAAI/nova-d48w1024-osp480`.

        Unless told otherwise it samples as the release does: 64 autoregressive steps of 25
        diffusion steps, guidance 5, and a picture (`max_latent_length=1`).

        Args:
            source: Its directory, or its id on the Hugging Face hub.
            dtype: Type of the parameters and of the computation; norms and softmax are float32.
            mesh: Devices to put the parameters on, see `nova_jax.distributed.mesh`; by default
                the first device, and copies on others when there are samples for them.
            unroll: See the class.

        Raises:
            NovaError: It cannot be found or downloaded, or something in it is missing, unknown,
                damaged or of another shape.
        """
        directory = diffusers.resolve(os.fspath(source))
        options: dict[str, Any] = {"dtype": dtype, "mesh": mesh}
        model, schedule = diffusers.load_transformer(directory, param_dtype=dtype, **options)
        codec = diffusers.load_autoencoder(directory / "vae", **options)
        facts = [("latent channels", model.config.latent_channels, codec.latent_channels, "vae")]
        text_encoder = None
        if model.config.text_dim is not None:
            text_encoder = diffusers.load_text_encoder(directory, **options)
            facts.append(("text_dim", model.config.text_dim, text_encoder.dim, "text_encoder"))
        for what, wanted, given, part in facts:
            if wanted != given:
                raise NovaError(
                    f"{directory}: the transformer has {what} {wanted}, {part}/ gives {given}; "
                    "they are of different models"
                )
        return cls(
            model,
            schedule,
            codec,
            text_encoder,
            frames=1,
            sampling=SamplingConfig(guidance=GuidanceConfig(scale=5.0)),
            motion_flow=DEFAULT_FLOW,
            fps=DEFAULT_FPS,
            mesh=mesh,
            unroll=unroll,
        )

    @property
    def model(self) -> Nova:
        """The transformer, where its parameters were loaded to."""
        return nnx.merge(self._graph, self._state)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of what is generated, in pixels."""
        height, width = self.config.latent_size
        return height * self.codec.stride, width * self.codec.stride

    def resized(self, height: int, width: int) -> NovaPipeline:
        """The same pipeline, on the same parameters, for another size.

        Sizes far from those of the training look it.

        Args:
            height, width: In pixels.

        Raises:
            NovaError: A token does not fit the size.
        """
        unit = self.codec.stride * self.config.patch_size
        if height % unit or width % unit or min(height, width) < 2 * unit:
            raise NovaError(
                f"size {height}x{width} does not fit the model; take multiples of {unit}, at least "
                f"{2 * unit}"
            )
        other = copy.copy(self)
        model = self.model.resized((height // self.codec.stride, width // self.codec.stride))
        other.config, other._graph = model.config, nnx.graphdef(model)
        return other

    def __call__(
        self,
        prompt: str | int | Sequence[str] | Sequence[int] | None = None,
        num_inference_steps: int | None = None,
        num_diffusion_steps: int | None = None,
        max_latent_length: int | None = None,
        guidance_scale: float | None = None,
        guidance_trunc: float | None = None,
        guidance_renorm: float | None = None,
        image_guidance_scale: float | None = None,
        flow_shift: float | None = None,
        motion_flow: float | None = None,
        negative_prompt: str | Sequence[str] | None = None,
        image: np.ndarray | Image.Image | None = None,
        num_images_per_prompt: int = 1,
        *,
        min_guidance_scale: float | None = None,
        seed: int | Sequence[int] = 0,
        key: Key[jax.Array, ""] | None = None,
        latents: np.ndarray | None = None,
        prompt_embeds: Sequence[np.ndarray] | None = None,
        negative_prompt_embeds: Sequence[np.ndarray] | None = None,
        output_type: Literal["pil", "np", "latent"] = "pil",
        num_frames: int | None = None,
        sampler: Implementation | None = None,
        batch_size: int = 32,
        disable_progress_bar: bool = False,
        order: Int[jax.Array, "b n"] | None = None,
        noise: NoiseSource | None = None,
    ) -> Output:
        """Generates videos, or pictures where there is one frame.

        A sample depends on its prompt, its seed and its number among the samples of its prompt, and
        on nothing else in the call: alone, in any batch and on any number of devices it is the
        same, up to the rounding of the last bit that another batch shape may bring.

        Args:
            prompt: Prompts, or class labels of a class-conditional model; one or several.
            num_inference_steps: Autoregressive steps of a frame (K in the paper).
            num_diffusion_steps: Diffusion steps of each (S).
            max_latent_length: T; also beyond the length of the training videos.
            guidance_scale: Classifier-free guidance; 1 turns it off.
            guidance_trunc: Network time, 0 to 1000, below which there is no guidance.
            guidance_renorm: Lower bound of the factor that restores the norm; 1 turns it off.
            image_guidance_scale: Guidance by the frame before; 0 turns it off.
            flow_shift: Noise-level shift of flow-matching sampling.
            motion_flow: Motion score: mean optical flow, larger is livelier.
            negative_prompt: What the unconditional passes see, one for all or one for each prompt;
                nothing by default.
            image: First frame of every video, uint8 `[H, W, 3]` of any size: it is scaled and
                cropped to fill `size`.
            num_images_per_prompt: Samples of each prompt, all different.
            min_guidance_scale: Guidance before the first step of a frame, growing linearly.
            seed: One for all prompts or one for each.
            key: Random key in place of a seed.
            latents: First latent frames `[B, t, h, w, C]` of every video, in place of an image; one
                for all prompts or one for each.
            prompt_embeds: Text features of each prompt, `[rows, text_dim]`, in place of prompts.
            negative_prompt_embeds: The same for the unconditional passes.
            output_type: "latent" leaves latents as they are; "np" gives pictures as an array.
            num_frames: F, in place of `max_latent_length`.
            sampler: Implementation of the loop over diffusion steps: "auto", "xla" or "pallas".
            batch_size: Most samples to compute together, in all devices; bounds memory.
            disable_progress_bar: Show none.
            order, noise: Reveal orders and noise of all samples, drawn elsewhere.

        Returns:
            The samples in the order of the prompts, those of one prompt next to each other.

        Raises:
            NovaError: An option or the image does not fit the model.
        """
        texts = self._texts(prompt, prompt_embeds, "prompt")
        seeds = [seed] * len(texts) if isinstance(seed, int) else list(seed)
        if len(seeds) != len(texts):
            raise NovaError(f"{len(seeds)} seeds for {len(texts)} prompts; give one for each")
        if min(num_images_per_prompt, batch_size) < 1:
            raise NovaError("num_images_per_prompt and batch_size must be at least 1")
        if output_type not in ("pil", "np", "latent"):
            raise NovaError(f'output_type is {output_type!r}; choose "pil", "np" or "latent"')
        without = None
        if negative_prompt or negative_prompt_embeds is not None:
            without = self._texts(negative_prompt, negative_prompt_embeds, "negative prompt")
            without = without * len(texts) if len(without) == 1 else without
            if len(without) != len(texts):
                raise NovaError(
                    f"{len(without)} negative prompts for {len(texts)} prompts; give one, or one "
                    "for each"
                )
        frames = self.latent_frames(max_latent_length, num_frames)
        given, spread = self._given(image, latents, len(texts), frames)
        sampling = self.sampling_with(
            num_inference_steps=num_inference_steps,
            num_diffusion_steps=num_diffusion_steps,
            flow_shift=flow_shift,
            sampler=sampler,
            guidance_scale=guidance_scale,
            min_guidance_scale=min_guidance_scale,
            guidance_trunc=guidance_trunc,
            guidance_renorm=guidance_renorm,
            image_guidance_scale=image_guidance_scale,
        )
        flow = self.motion_flow if motion_flow is None else motion_flow

        samples = [(i, copy) for i in range(len(texts)) for copy in range(num_images_per_prompt)]
        # Order and noise that are given have no known layout: one device draws it all.
        recorded = order is not None or noise is not None
        devices = 1 if recorded else len(self._devices)
        batches = _batches(samples, batch_size, self._mesh or devices)
        if recorded and len(batches) > 1:
            raise NovaError("a given order or noise needs one batch; make batch_size larger")
        if self._mesh is not None and self._mesh.size > 1 and choose(sampling.sampler) == "pallas":
            raise NovaError(
                'sampler "pallas" needs the whole model on each device; load it without a mesh, or '
                'choose sampler "xla"'
            )
        made: list[np.ndarray] = []
        shown: list[np.ndarray] = []
        bar = tqdm(
            desc="generating",
            unit="frame",
            total=len(batches) * frames,
            disable=disable_progress_bar,
        )

        def frame_done(_: int) -> None:
            bar.update()

        with bar:
            for batch in batches:
                prompts, copies = (list(column) for column in zip(*batch, strict=True))
                seeded = [jax.random.key(seeds[i]) if key is None else key for i in prompts]
                keys = jax.vmap(jax.random.fold_in)(jnp.stack(seeded), jnp.asarray(copies))
                first = None
                if given is not None:
                    first = given[prompts] if len(given) > 1 else given.repeat(len(batch), 0)
                    first = first if spread is None else first + _drawn(keys, spread)
                mesh, model = self._on_devices(min(len(batch), devices))
                conditions, negative, keys, first = jax.device_put(
                    (
                        self.conditions([texts[i] for i in prompts], flow),
                        without and self.conditions([without[i] for i in prompts], flow),
                        keys,
                        first,
                    ),
                    batch_sharding(mesh),
                )
                drawn = generate(
                    model,
                    self.schedule,
                    conditions,
                    frames=frames,
                    config=sampling,
                    keys=keys,
                    negative=negative,
                    given=first,
                    order=order,
                    noise=noise,
                    on_frame=frame_done,
                    spread=SampleSpread(mesh, whole=self._mesh is None),
                )
                made.append(np.asarray(drawn))
                if output_type != "latent":
                    shown.append(np.asarray(to_uint8(self.codec.decode(drawn))))
        count = len(samples)
        latent_frames = np.concatenate(made)[:count]
        if output_type == "latent":
            return Output(latent_frames, latent_frames, None, self.fps)
        pixels = np.concatenate(shown)[:count]
        images: Any = None
        if pixels.shape[1] == 1:
            images = pixels[:, 0]
            images = [Image.fromarray(x) for x in images] if output_type == "pil" else images
        return Output(latent_frames, pixels, images, self.fps)

    def _texts(self, prompts: Any, embeds: Any, what: str) -> list[Any]:
        """Prompts, labels or text features, one a sample."""
        if embeds is None:
            several = isinstance(prompts, Sequence | np.ndarray) and not isinstance(prompts, str)
            texts = list(prompts) if several else [] if prompts is None else [prompts]
            if not texts:
                raise NovaError(f"no {what} given; give at least one")
            kind, words = (str, "text") if self.config.text_dim else (int, "a class number")
            for text in texts:
                if not isinstance(text, kind | (np.integer if kind is int else kind)):
                    raise NovaError(f"{what} {text!r}: this model takes {words}")
            return texts
        if prompts:
            raise NovaError(f"a {what} and its embeddings are given; give one of them")
        rows = [np.asarray(embed, np.float32) for embed in embeds]
        for embed in rows:
            if embed.ndim != 2 or embed.shape[1] != self.config.text_dim:
                raise NovaError(
                    f"{what} embeddings have shape {list(embed.shape)}; "
                    f"this model takes [rows, {self.config.text_dim}]"
                )
        return rows

    def sampling_with(
        self,
        *,
        num_inference_steps: int | None = None,
        num_diffusion_steps: int | None = None,
        flow_shift: float | None = None,
        sampler: Implementation | None = None,
        guidance_scale: float | None = None,
        min_guidance_scale: float | None = None,
        guidance_trunc: float | None = None,
        guidance_renorm: float | None = None,
        image_guidance_scale: float | None = None,
    ) -> SamplingConfig:
        """How samples are drawn with these options, see `__call__`; None: as in `sampling`."""
        return _override(
            self.sampling,
            num_inference_steps=num_inference_steps,
            num_diffusion_steps=num_diffusion_steps,
            flow_shift=flow_shift,
            sampler=sampler,
            guidance=_override(
                self.sampling.guidance,
                scale=guidance_scale,
                min_scale=min_guidance_scale,
                trunc=guidance_trunc,
                renorm=guidance_renorm,
                image_scale=image_guidance_scale,
            ),
        )

    def latent_frames(self, max_latent_length: int | None, num_frames: int | None) -> int:
        """T of a request in latent frames or in frames; without one, the pipeline's own."""
        if max_latent_length is not None and num_frames is not None:
            raise NovaError("max_latent_length and num_frames are given; give one of them")
        frames = self.frames if max_latent_length is None else max_latent_length
        if num_frames is not None:
            if num_frames < 1:
                raise NovaError(f"{num_frames} frames asked for; a video has at least 1")
            frames = self.codec.latent_frames(num_frames)
            if (fitting := self.codec.pixel_frames(frames)) != num_frames:
                raise NovaError(f"this model cannot make {num_frames} frames; ask for {fitting}")
        if frames < 1:
            raise NovaError(f"max_latent_length is {frames}; a video has at least 1 latent frame")
        if frames > 1 and not self.config.is_video:
            raise NovaError(f"an image model cannot make {frames} frames; ask for 1")
        return frames

    def _given(
        self, image: Any, latents: Any, prompts: int, frames: int
    ) -> tuple[jax.Array | None, jax.Array | None]:
        """First latent frames, one for all prompts or one for each, and their deviation if any."""
        if latents is not None:
            if image is not None:
                raise NovaError("an image and latents are given; give one of them")
            given = jnp.asarray(latents, jnp.float32)
            wanted = (*self.config.latent_size, self.config.latent_channels)
            if given.ndim != 5 or given.shape[2:] != wanted or given.shape[0] not in (1, prompts):
                raise NovaError(
                    f"latents have shape {list(given.shape)}; this model takes "
                    f"[1 or {prompts}, frames, {', '.join(map(str, wanted))}]"
                )
            if given.shape[1] >= frames:
                raise NovaError(
                    f"{given.shape[1]} latent frames are given and {frames} asked for; nothing is "
                    "left to generate"
                )
            return given, None
        if image is None:
            return None, None
        if frames == 1:
            raise NovaError("an image becomes the first frame; ask for more than one frame")
        picture = np.asarray(image.convert("RGB") if isinstance(image, Image.Image) else image)
        fitted = media.fit_image(picture, self.size)
        if picture.shape[:2] != self.size:
            (height, width), size = picture.shape[:2], self.size
            logger.warning(
                "image of %dx%d scaled and cropped about its center to %dx%d",
                *(width, height, size[1], size[0]),
            )
        pixels = to_float(fitted)[None, None]
        mean, deviation = self.codec.posterior(pixels)
        return jnp.asarray(mean), jnp.asarray(deviation)

    def conditions(self, prompts: Sequence[Any], flow: float) -> Conditions:
        """Conditions of prompts, labels or text features; an image model takes no motion."""
        motion: dict[str, jax.Array] = {}
        if self.config.is_video:
            ones = jnp.ones(len(prompts))
            motion = {"flow": flow * ones, "fps": self.fps * ones}
        if self.text_encoder is None:
            return Conditions(label=jnp.asarray(prompts, jnp.int32), **motion)
        length = self.config.text_length or 0
        if isinstance(prompts[0], np.ndarray):
            rows = [embed[:length] for embed in prompts]
            lengths = np.array([len(embed) for embed in rows], np.int32)
            text = np.stack([np.pad(row, ((0, length - len(row)), (0, 0))) for row in rows])
        else:
            text, lengths = self.text_encoder.encode(prompts, length)
        return Conditions(text=jnp.asarray(text), text_length=jnp.asarray(lengths), **motion)

    def _on_devices(self, count: int) -> tuple[Mesh, Nova]:
        """The model on the mesh, or whole on each of so many devices."""
        if self._mesh is not None:
            return self._mesh, nnx.merge(self._graph, self._state)
        if count not in self._placed:
            mesh = make_mesh(self._devices[:count])
            self._placed[count] = mesh, jax.device_put(self._state, replicated(mesh))
        mesh, state = self._placed[count]
        return mesh, nnx.merge(self._graph, state)


Config = TypeVar("Config", SamplingConfig, GuidanceConfig)
Sample = TypeVar("Sample")


def _override(config: Config, **options: Any) -> Config:
    """The options that are given, on top of a config."""
    for name, value in options.items():
        if name not in ("guidance", "sampler") and not isinstance(value, Real | None):
            raise NovaError(f"{name} is {value!r}; it must be a number")
    return dataclasses.replace(config, **{k: v for k, v in options.items() if v is not None})


@jax.jit
def _drawn(keys: Key[jax.Array, " b"], deviation: jax.Array) -> jax.Array:
    """Noise of this standard deviation, a sample's from its own key."""
    keys = jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, 2)
    shape = jnp.shape(deviation)[1:]
    return deviation * jax.vmap(lambda key: jax.random.normal(key, shape))(keys)


def _batches(samples: list[Sample], most: int, devices: Mesh | int) -> list[list[Sample]]:
    """Splits samples into batches of one size that devices share evenly; the last sample pads.

    A mesh takes part as a whole; of other devices there need be no more than samples.
    """
    count = -(-len(samples) // most)
    size = -(-len(samples) // count)
    if isinstance(devices, Mesh):
        size += -size % batch_ways(devices)
    elif size > devices:
        size += -size % devices
    padded = samples + samples[-1:] * (count * size - len(samples))
    return [padded[start : start + size] for start in range(0, len(padded), size)]

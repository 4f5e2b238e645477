"""NovaPipeline: prompts (and a picture) in, pictures and videos out.

    pipeline = NovaPipeline.from_checkpoint()
    videos = pipeline(["a red seven moves slowly to the left"], seed=1).frames

Letters: B samples, F pixel frames, T latent frames, H×W pixels, h×w latents, C latent channels.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import UInt8

from nova_jax import media
from nova_jax.checkpoints.native import load_model
from nova_jax.codecs.interfaces import TextEncoder, VideoCodec
from nova_jax.codecs.pixels import to_float, to_uint8
from nova_jax.distributed.mesh import batch_sharding, make_mesh, replicated
from nova_jax.errors import NovaError
from nova_jax.models.embeddings import DEFAULT_FLOW, DEFAULT_FPS
from nova_jax.models.nova import Conditions, Nova
from nova_jax.sampling.generate import SamplingConfig, generate
from nova_jax.sampling.guidance import GuidanceConfig
from nova_jax.sampling.schedules import Schedule
from nova_jax.training.config import from_dict

# The digits model that comes with the package.
SHIPPED = Path(__file__).parent / "assets" / "digits_t2v"


@dataclasses.dataclass(frozen=True)
class Videos:
    """What a pipeline made: `frames` is uint8 RGB `[B, F, H, W, 3]`, F = 1 for pictures."""

    frames: UInt8[np.ndarray, "b f h w 3"]
    fps: float


class NovaPipeline:
    """A model with its frozen parts, ready to generate.

    Args:
        model: The transformer.
        schedule: The noise schedule it was trained with.
        codec: Latents to pixels and back.
        text_encoder: Prompts to features; None for a class-conditional model.
        frames: Pixel frames of a video unless told otherwise.
        sampling: What options are unless told otherwise.
        motion_flow: Motion score unless told otherwise.
        fps: Frame rate that the model is conditioned on and videos play at.
        devices: Devices to spread samples over; by default all of this process.
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
        devices: Sequence[jax.Device] | None = None,
    ) -> None:
        self.schedule, self.codec, self.text_encoder = schedule, codec, text_encoder
        self.config, self.frames, self.sampling = model.config, frames, sampling
        self.motion_flow, self.fps = motion_flow, fps
        self._graph, self._state = nnx.split(model)
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
    ) -> NovaPipeline:
        """Loads a model directory or the work directory of a training run.

        Args:
            directory: Where it is; by default the one that comes with the package.
            which: Of a training run, averaged or current parameters.
            checkpoint: Of a training run, which of its checkpoints.
            dtype: Type the model computes in.
            devices: Devices to spread samples over; by default all of this process.

        Raises:
            NovaError: There is no checkpoint of this project, or it is damaged.
        """
        loaded = load_model(directory, which=which, checkpoint=checkpoint, dtype=dtype)
        config = loaded.config
        return cls(
            loaded.model,
            loaded.schedule,
            loaded.codec,
            loaded.text_encoder,
            frames=loaded.codec.pixel_frames(loaded.model.config.frames),
            sampling=from_dict(SamplingConfig, config.get("sampling", {}), "sampling"),
            motion_flow=config.get("motion_flow", DEFAULT_FLOW),
            fps=config.get("dataset", {}).get("fps", DEFAULT_FPS),
            devices=devices,
        )

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of what is generated, in pixels."""
        height, width = self.config.latent_size
        return height * self.codec.stride, width * self.codec.stride

    def __call__(
        self,
        prompt: str | int | Sequence[str] | Sequence[int],
        negative_prompt: str | None = None,
        *,
        image: UInt8[np.ndarray, "h w 3"] | None = None,
        num_frames: int | None = None,
        num_inference_steps: int | None = None,
        num_diffusion_steps: int | None = None,
        guidance_scale: float | None = None,
        min_guidance_scale: float | None = None,
        guidance_trunc: float | None = None,
        guidance_renorm: float | None = None,
        image_guidance_scale: float | None = None,
        flow_shift: float | None = None,
        motion_flow: float | None = None,
        seed: int | Sequence[int] = 0,
        num_videos_per_prompt: int = 1,
        batch_size: int = 32,
        on_frame: Callable[[int, int], None] | None = None,
    ) -> Videos:
        """Generates videos, or pictures with `num_frames=1`.

        A sample depends on its prompt, its seed and its number among the videos of its prompt, and
        on nothing else in the call: alone, in any batch and on any number of devices it is the
        same, up to the rounding of the last bit that another batch shape may bring.

        Args:
            prompt: Prompts, or class labels of a class-conditional model; one or several.
            negative_prompt: What the unconditional passes see; nothing by default.
            image: First frame of every video, of any size: it is scaled and cropped to fill `size`.
            num_frames: F; also beyond the length of the training videos. Default: that length.
            num_inference_steps: Autoregressive steps of a frame (K in the paper).
            num_diffusion_steps: Diffusion steps of each (S).
            guidance_scale: Classifier-free guidance; 1 turns it off.
            min_guidance_scale: Guidance before the first step of a frame, growing linearly.
            guidance_trunc: Network time, 0 to 1000, below which there is no guidance.
            guidance_renorm: Lower bound of the factor that restores the norm; 1 turns it off.
            image_guidance_scale: Guidance by the frame before; 0 turns it off.
            flow_shift: Noise-level shift of flow-matching sampling.
            motion_flow: Motion score: mean optical flow, larger is livelier.
            seed: One for all prompts or one for each.
            num_videos_per_prompt: Videos of each prompt, all different.
            batch_size: Most samples to compute together, in all devices; bounds memory.
            on_frame: Called with (frames done, frames in all) at the start, then after each frame
                of a batch.

        Returns:
            The videos in the order of the prompts, those of one prompt next to each other.

        Raises:
            NovaError: An option or the image does not fit the model.
        """
        prompts = [prompt] if isinstance(prompt, str | int) else list(prompt)
        seeds = [seed] * len(prompts) if isinstance(seed, int) else list(seed)
        if not prompts:
            raise NovaError("no prompt given; give at least one")
        if len(seeds) != len(prompts):
            raise NovaError(f"{len(seeds)} seeds for {len(prompts)} prompts; give one for each")
        if min(num_videos_per_prompt, batch_size) < 1:
            raise NovaError("num_videos_per_prompt and batch_size must be at least 1")
        frames = self._latent_frames(self.frames if num_frames is None else num_frames)
        sampling = _override(
            self.sampling,
            num_inference_steps=num_inference_steps,
            num_diffusion_steps=num_diffusion_steps,
            flow_shift=flow_shift,
            guidance=_override(
                self.sampling.guidance,
                scale=guidance_scale,
                min_scale=min_guidance_scale,
                trunc=guidance_trunc,
                renorm=guidance_renorm,
                image_scale=image_guidance_scale,
            ),
        )
        first = None if image is None else self._first_latent(image)
        flow = self.motion_flow if motion_flow is None else motion_flow

        copies = range(num_videos_per_prompt)
        samples = [(text, s, n) for text, s in zip(prompts, seeds, strict=True) for n in copies]
        batches = _batches(samples, batch_size, len(self._devices))
        videos: list[np.ndarray] = []

        def report(frame: int) -> None:
            if on_frame is not None:
                on_frame(len(videos) * frames + frame, len(batches) * frames)

        report(0)
        for batch in batches:
            texts, batch_seeds, numbers = zip(*batch, strict=True)
            seeded = [jax.random.key(seed) for seed in batch_seeds]
            keys = jax.vmap(jax.random.fold_in)(jnp.stack(seeded), jnp.asarray(numbers))
            without = [negative_prompt] * len(batch)
            mesh, model = self._on_devices(min(len(batch), len(self._devices)))
            conditions, negative, keys, image_latent = jax.device_put(
                (
                    self._conditions(texts, flow),
                    self._conditions(without, flow) if negative_prompt else None,
                    keys,
                    None if first is None else jnp.repeat(first, len(batch), axis=0),
                ),
                batch_sharding(mesh),
            )
            latents = generate(
                model,
                self.schedule,
                conditions,
                frames=frames,
                config=sampling,
                keys=keys,
                negative=negative,
                image_latent=image_latent,
                on_frame=report,
            )
            videos.append(np.asarray(to_uint8(self.codec.decode(latents))))
        return Videos(np.concatenate(videos)[: len(samples)], self.fps)

    def _latent_frames(self, num_frames: int) -> int:
        if num_frames < 1:
            raise NovaError(f"{num_frames} frames asked for; a video has at least 1")
        if num_frames > 1 and not self.config.is_video:
            raise NovaError(f"an image model cannot make {num_frames} frames; ask for 1")
        frames = self.codec.latent_frames(num_frames)
        if (fitting := self.codec.pixel_frames(frames)) != num_frames:
            raise NovaError(f"this model cannot make {num_frames} frames; ask for {fitting}")
        return frames

    def _first_latent(self, image: np.ndarray) -> jax.Array:
        pixels = to_float(media.fit_image(image, self.size))[None, None]
        return jnp.asarray(self.codec.encode(pixels))[:, 0]

    def _conditions(self, prompts: Sequence[Any], flow: float) -> Conditions:
        """Conditions of a batch; an image model takes no motion."""
        motion: dict[str, jax.Array] = {}
        if self.config.is_video:
            rows = jnp.ones(len(prompts))
            motion = {"flow": flow * rows, "fps": self.fps * rows}
        if self.text_encoder is None:
            return Conditions(label=jnp.asarray(prompts, jnp.int32), **motion)
        text, length = self.text_encoder.encode(prompts, self.config.text_length or 0)
        return Conditions(text=jnp.asarray(text), text_length=jnp.asarray(length), **motion)

    def _on_devices(self, count: int) -> tuple[Mesh, Nova]:
        """The model, whole on each of the first `count` devices."""
        if count not in self._placed:
            mesh = make_mesh(self._devices[:count])
            self._placed[count] = mesh, jax.device_put(self._state, replicated(mesh))
        mesh, state = self._placed[count]
        return mesh, nnx.merge(self._graph, state)


Config = TypeVar("Config", SamplingConfig, GuidanceConfig)
Sample = TypeVar("Sample")


def _override(config: Config, **options: Any) -> Config:
    """The options that are given, on top of a config."""
    return dataclasses.replace(config, **{k: v for k, v in options.items() if v is not None})


def _batches(samples: list[Sample], most: int, devices: int) -> list[list[Sample]]:
    """Splits samples into batches of one size that devices share evenly; the last sample pads."""
    count = -(-len(samples) // most)
    size = -(-len(samples) // count)
    if size > devices:
        size += -size % devices
    padded = samples + samples[-1:] * (count * size - len(samples))
    return [padded[start : start + size] for start in range(0, len(padded), size)]

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
import functools
import os
from collections.abc import Generator, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from tqdm import tqdm

from nova_jax import call, saving
from nova_jax.arguments import (
    check_devices,
    check_dtype,
    check_frames,
    check_mesh,
    check_param_dtype,
)
from nova_jax.autoencoders.interface import VideoCodec
from nova_jax.autoencoders.pixels import to_uint8
from nova_jax.budget import Parameters, check_memory
from nova_jax.checkpoints.hub import ASSETS
from nova_jax.checkpoints.open import Checkpoint, Weights, load_frozen_parts, open_checkpoint
from nova_jax.checkpoints.run import Step
from nova_jax.config import Count, FrameRate, MotionScore, convert
from nova_jax.distributed.memory import device_bytes
from nova_jax.distributed.mesh import MeshLayout, batch_sharding
from nova_jax.errors import NovaError
from nova_jax.models.nova import Conditions, Nova
from nova_jax.models.quantization import quantize
from nova_jax.placement import Placement
from nova_jax.request import Batch, FirstFrames, Output, Prompt, Request
from nova_jax.sampling.options import SamplingConfig, with_options
from nova_jax.sampling.schedules import Schedule
from nova_jax.sampling.video import generate
from nova_jax.session import Session
from nova_jax.session_file import fingerprint
from nova_jax.text.conditions import conditions_of
from nova_jax.text.interface import TextEncoder

# The model of moving digits that comes with the package.
SHIPPED = ASSETS / "digits_t2v"


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
        unroll: Blocks per iteration of the loops over depth; on a CPU 16 takes a twentieth off the
            time of a large model, and compiles thrice as long.
        origin: What it was opened from, which a saved pipeline says of its data and training.
        offload: Whether codec and text encoder wait in the host's memory and are on a device only
            while they are used.

    Raises:
        NovaError: A number is of another type or out of range, see `nova_jax.config`.
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
        mesh: MeshLayout | None = None,
        devices: Sequence[jax.Device] | None = None,
        unroll: int = 1,
        origin: Checkpoint | None = None,
        offload: bool = False,
    ) -> None:
        self.origin, self.offloaded = origin, convert(bool, offload, "offload")
        if self.offloaded:
            codec, text_encoder = codec.offloaded(), text_encoder and text_encoder.offloaded()
        self.schedule, self.codec, self.text_encoder = schedule, codec, text_encoder
        self.config, self.frames = model.config, convert(Count, frames, "frames")
        self.sampling = convert(SamplingConfig, sampling, "sampling")
        self.motion_flow = convert(MotionScore, motion_flow, "motion_flow")
        self.fps = convert(FrameRate, fps, "fps")
        unroll = convert(Count, unroll, "unroll")
        self.placement = Placement(model.unrolled(unroll), mesh, check_devices(devices))

    @classmethod
    def from_pretrained(
        cls,
        source: str | os.PathLike[str],
        *,
        weights: Weights = "ema",
        step: Step = "latest",
        dtype: jax.typing.DTypeLike = jnp.float32,
        param_dtype: jax.typing.DTypeLike | Literal["int8"] | None = None,
        mesh: MeshLayout | None = None,
        devices: Sequence[jax.Device] | None = None,
        unroll: int = 1,
        offload: bool = False,
    ) -> NovaPipeline:
        """Loads a checkpoint of any kind, such as `BAAI/nova-d48w1024-osp480`.

        Unless told otherwise a model trained here samples as its config says, and a released one
        as the release does: 64 autoregressive steps of 25 diffusion steps, guidance 5, and a
        picture (`max_latent_length=1`).

        Args:
            source: Directory of a released model or its id on the Hugging Face hub, model
                directory, or work directory of a training run; see `nova_jax.checkpoints.open`.
            weights: Of a training run, averaged or current parameters.
            step: Of a training run, which of its checkpoints: "latest", "best" or a number.
            dtype: Type of the computation, and of the parameters of frozen parts: float32,
                bfloat16 or float16; norms and softmax are float32.
            param_dtype: Type that the transformer's parameters are kept in, by default `dtype`;
                "int8" is `dtype` but for the matrices of blocks, see
                `nova_jax.models.quantization`.
            mesh: Devices to put the parameters on, see `nova_jax.distributed.mesh`; by default
                the first device, and copies on others when there are samples for them.
            devices: See the class.
            unroll: See the class.
            offload: See the class, and docs/performance.md.

        Raises:
            NovaError: It cannot be found or downloaded, something in it is missing, unknown,
                damaged or of another shape, or an argument is out of range.
        """
        mesh, devices = check_mesh(mesh), check_devices(devices)
        dtype = check_dtype(dtype, "dtype")
        kept = check_param_dtype(param_dtype, dtype)
        unroll = convert(Count, unroll, "unroll")
        checkpoint = open_checkpoint(source, weights=weights, step=step)
        options: dict[str, Any] = {"dtype": dtype, "mesh": mesh}
        offload, frozen = convert(bool, offload, "offload"), None
        if offload:  # before the transformer is on the device
            config = checkpoint.model_config()
            frozen = load_frozen_parts(checkpoint, config, offload=True, **options)
        read = dtype if kept == "int8" else kept
        model, schedule = checkpoint.load_transformer(param_dtype=read, **options)
        model = quantize(model) if kept == "int8" else model
        codec, text_encoder = frozen or load_frozen_parts(checkpoint, model.config, **options)
        placed: dict[str, Any] = {"mesh": mesh, "devices": devices, "unroll": unroll}
        placed |= vars(checkpoint.defaults()) | {"origin": checkpoint, "offload": offload}
        return cls(model, schedule, codec, text_encoder, **placed)

    @classmethod
    def from_checkpoint(
        cls, source: str | os.PathLike[str] = SHIPPED, **options: Any
    ) -> NovaPipeline:
        """`from_pretrained`, by default of the model that comes with the package."""
        return cls.from_pretrained(source, **options)

    @property
    def model(self) -> Nova:
        """The transformer, where its parameters were loaded to."""
        return self.placement.model

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of what is generated, in pixels."""
        height, width = self.config.latent_size
        return height * self.codec.stride, width * self.codec.stride

    def resized(self, height: int, width: int) -> NovaPipeline:
        """The same pipeline, on the same parameters, for another size in pixels.

        Sizes far from those of the training look it.

        Raises:
            NovaError: A token does not fit the size.
        """
        height, width = convert(Count, height, "height"), convert(Count, width, "width")
        stride = self.codec.stride
        unit, latent_size = stride * self.config.patch_size, (height // stride, width // stride)
        if height % stride or width % stride or not self.config.fits(latent_size):
            raise NovaError(
                f"size {height}x{width} does not fit the model; take multiples of {unit}, at least "
                f"{2 * unit}"
            )
        other = copy.copy(self)
        other.placement = self.placement.resized(latent_size)
        other.config = other.model.config
        return other

    request = call.request

    def _stream(self, request: Request) -> Generator[Output, None, None]:
        """Generates videos, or pictures where there is one frame; gives each batch when it is made.

        A sample depends on its prompt, its seed and its number among the samples of its prompt, and
        on nothing else in the call: alone, in any batch and on any number of devices it is the
        same, up to the rounding of the last bit that another batch shape may bring.

        Returns:
            The samples in the order of the prompts, those of one prompt next to each other, a batch
            at a time: only one is in memory, unless the caller keeps them.
        """
        self.check_memory(request)
        return self._run(request)

    def _generate(self, request: Request) -> Output:
        """Generates videos, or pictures where there is one frame: all that `stream` gives."""
        self.check_memory(request, returned=True)
        return Output.joined(list(self._run(request)))

    def _start(self, request: Request) -> Session:
        """Starts videos that are made frame by frame, and steered while they are.

        Of all prompts at once, whatever `batch_size` says, one sample of each unless told
        otherwise. They go on for as long as the session is asked to: `max_latent_length` (or
        `num_frames`) is how many frames its positions are for, and how many it looks back at where
        `window` does not say less.

        Returns:
            The session; nothing is drawn yet.
        """
        whole = dataclasses.replace(request, batch_size=request.count)
        self.check_memory(whole)
        return Session.of_request(self, whole)

    stream = call.asking(request, _stream)
    __call__ = call.asking(request, _generate)
    start = call.asking(request, _start)

    save_pretrained = saving.save_pretrained
    push_to_hub = saving.push_to_hub

    def resume(self, file: str | os.PathLike[str]) -> Session:
        """The session that `Session.save` wrote, see there."""
        return Session.resume(self, file)

    @functools.cached_property
    def fingerprint(self) -> str:
        """What tells the model from others, for sessions that are saved."""
        return fingerprint(self.model, self.config.to_dict())

    def _run(self, request: Request) -> Generator[Output, None, None]:
        """Encodes, generates and decodes, batch by batch."""
        place = self.placement
        batches, devices = place.batches(request)
        mesh, model = place.on_devices(devices, request.sampling.sampler)
        left, latents_only = request.count, request.output_type == "latent"
        total = len(batches) * request.frames
        desc, off = "starting (what is new is compiled first)", not request.show_progress
        with tqdm(desc=desc, unit="frame", total=total, disable=off) as bar:

            def on_frame(_: int) -> None:
                bar.set_description("generating", refresh=False)
                bar.update()

            for batch in batches:
                made = generate(
                    model,
                    self.schedule,
                    **jax.device_put(self.encode(request, batch), batch_sharding(mesh)),
                    frames=request.frames,
                    **request.painting,
                    config=request.sampling,
                    order=request.order,
                    noise=request.noise,
                    on_frame=on_frame,
                    on_step=request.on_step,
                    parallelism=place.parallelism(mesh),
                )
                latents = frames = np.array(made)[:left]  # the last sample pads a batch
                request.check_finite(batch, np.isfinite(latents), "latents")
                if not latents_only:
                    decoded = self.codec.decode(made)
                    if small := self.codec.network is None:
                        # Each operation would be a program of its own, which takes longer to load.
                        decoded = np.asarray(decoded)
                    frames = np.array(to_uint8(decoded))[:left]
                    finite = np.isfinite(decoded) if small else jnp.isfinite(decoded)
                    request.check_finite(batch, finite, "pixels")
                    frames = request.edit.put_in(frames) if request.edit else frames
                left -= len(frames)
                yield Output(latents, frames, self.fps, request.output_type)

    def check_memory(
        self, request: Request, *, returned: bool = False, overlapped: bool = False
    ) -> None:
        """Raises, before anything is compiled, if memory is short, see `nova_jax.budget`."""
        batches, ways = self.placement.batches(request)
        networks = (self.codec.network, self.text_encoder and self.text_encoder.network)
        codec, text = (device_bytes(nnx.state(part)) if part else 0 for part in networks)
        asked = (request, self.config, self.schedule, self.codec)
        check_memory(
            *asked,
            samples=-(-batches.size // ways),
            itemsize=jnp.dtype(self.model.dtype).itemsize,
            parameters=Parameters(self.placement.bytes, codec, text, self.offloaded),
            devices=self.placement.devices(ways),
            returned=returned,
            overlapped=overlapped,
        )

    def sampling_with(
        self, sampling: SamplingConfig | None = None, **options: Any
    ) -> SamplingConfig:
        """How samples are drawn: in the pipeline's own way, but for options that are not None.

        Raises:
            NovaError: An option's value makes no sense, see `nova_jax.sampling.options`.
        """
        own = self.sampling if sampling is None else convert(SamplingConfig, sampling, "sampling")
        return with_options(own, options)

    def motion_score(self, motion_flow: float | None) -> float:
        """The motion score of a request; without one, the pipeline's own."""
        own = self.motion_flow if motion_flow is None else motion_flow
        return convert(MotionScore, own, "motion_flow")

    def latent_frames(
        self, latent: int | None, pixel: int | None, first: FirstFrames | None = None
    ) -> int:
        """T, where max_latent_length or num_frames may be said, see `arguments.check_frames`."""
        own = self.frames
        return check_frames(latent, pixel, first, own=own, codec=self.codec, config=self.config)

    def encode(self, request: Request, batch: Batch) -> dict[str, Any]:
        """What the samples of a batch are made from, as `generate` takes it."""

        def conditions(prompts: Sequence[Prompt]) -> Conditions:
            return self.conditions([prompts[i] for i in batch.prompts], request.flow)

        keys = request.keys(batch)
        return {
            "conditions": conditions(request.read),
            "negative": request.negative and conditions(request.negative),
            "keys": keys,
            "given": request.first_frames(batch, keys),
        }

    def conditions(self, prompts: Sequence[Prompt], flow: float) -> Conditions:
        """Conditions of prompts, labels or text features, with a motion score."""
        return conditions_of(prompts, self.text_encoder, self.config, flow=flow, fps=self.fps)

"""What a request takes of memory, and the line that refuses what does not fit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax

from nova_jax.autoencoders.interface import VideoCodec
from nova_jax.distributed.memory import Part, check_fits, device_memory, host_memory
from nova_jax.models.config import NovaConfig
from nova_jax.request import Request
from nova_jax.sampling.memory import generation_bytes
from nova_jax.sampling.schedules import Schedule


class Parameters(NamedTuple):
    """Bytes of parameters, on one device.

    Attributes:
        transformer, codec, text_encoder: of each part.
        offloaded: whether those of the latter two are on the device only while they are used.
    """

    transformer: int
    codec: int
    text_encoder: int
    offloaded: bool


def check_memory(
    request: Request,
    config: NovaConfig,
    schedule: Schedule,
    codec: VideoCodec,
    *,
    samples: int,
    itemsize: int,
    parameters: Parameters,
    devices: Sequence[jax.Device],
    returned: bool,
    overlapped: bool,
) -> None:
    """Counts what a request takes, see `nova_jax.sampling.memory`, before anything is compiled.

    Args:
        request: for samples.
        config, schedule, codec: of the model.
        samples: of a batch, on one device.
        itemsize: bytes of a number of the computation.
        parameters: of the parts.
        devices: of this process, that take part.
        returned: whether all samples are kept to be returned, not only those of a batch.
        overlapped: whether a batch is decoded while the next one is drawn.

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
        parameters=parameters.transformer,
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
    if parameters.offloaded:
        decoding.append(Part("the autoencoder", parameters.codec, ()))
    stages = [drawing] if request.output_type == "latent" else [drawing, decoding]
    stages = [[*drawing, *decoding]] if overlapped else stages
    frozen = parameters.codec + parameters.text_encoder
    if parameters.offloaded:
        least = [*narrower, "what else is on the device"]
        stages.append([Part("the text encoder", parameters.text_encoder, least)])
    largest = max(stages, key=lambda parts: sum(part.bytes for part in parts))
    kept = parameters.transformer + frozen * (shared or not parameters.offloaded)
    on_device = [Part("parameters", kept, ()), *largest]

    # Batches, and then all of them in one array.
    sample = 4 * latents + pixels * (request.output_type != "latent")
    copies = ["num_images_per_prompt"] * (request.copies > 1)
    prompts = ["the number of prompts"] * (len(request.prompts) > 1)
    returns = Part(
        "the samples that are returned",
        2 * sample * request.count * returned,
        [*copies, *prompts, *shorter, "size"],
    )
    if shared:
        on_device = [part._replace(bytes=part.bytes * len(devices)) for part in on_device]
        check_fits(what, [*on_device, returns], host_memory(), "this machine")
        return
    remark = "load it with offload=True (--offload)" * bool(frozen and not parameters.offloaded)
    check_fits(what, on_device, device_memory(devices[0]), devices[0].device_kind, remark)
    check_fits(what, [returns], host_memory(), "this machine")

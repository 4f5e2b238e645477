"""Drawing what is missing of a suite: in batches that are always the same, and side by side.

The files of a run are cut into batches in the suite's order, whoever draws them: shard i of n has
batches i, i + n, ... All are of one size, the last one filled up, so that all are computed by one
program. A batch of which a file is missing is drawn again, and only what is missing is written. So
shards, restarts and the order of time change nothing, and another batch size no more than rounding
does. While the device draws a batch, threads decode and write the one before.

Letters in shapes: B samples, F frames, H×W pixels, T latent frames, h×w latents, C channels.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, UInt8
from tqdm import tqdm

from nova_jax import media
from nova_jax.autoencoders.pixels import to_uint8
from nova_jax.config import to_plain
from nova_jax.distributed.mesh import batch_sharding
from nova_jax.errors import NovaError
from nova_jax.pipeline import NovaPipeline
from nova_jax.rewriting.interface import Rewriter, in_other_words
from nova_jax.suites.folder import SPEED, Folder
from nova_jax.suites.interface import Item, Prompts, Suite, Target, sample_seed


@dataclasses.dataclass(frozen=True)
class Asked:
    """What a suite is drawn with.

    Attributes:
        suite, prompts: what is drawn.
        options: of `NovaPipeline.request`, such as `nova_jax.suites.presets` has them.
        seed: of the run, see `nova_jax.suites.interface.sample_seed`.
        rewriter: what makes of prompts what the model is told; None for the prompts themselves.
        rewriter_name: what tells it from others.
        checkpoint, preset: where the model and the options came from, for messages and reports.
    """

    suite: Suite
    prompts: Prompts
    options: Mapping[str, Any]
    seed: int = 0
    rewriter: Rewriter | None = None
    rewriter_name: str | None = None
    checkpoint: str = ""
    preset: str | None = None

    def beginning(self) -> dict[str, Any]:
        """What of the record of a folder is known before the model is loaded."""
        return {
            "suite": self.suite.name,
            "parts": list(self.prompts.parts),
            "prompts": self.prompts.sha256,
            "official_prompts": self.prompts.official,
            "seed": self.seed,
            "rewriter": self.rewriter_name or (None if self.rewriter is None else "unnamed"),
            "checkpoint": self.checkpoint,
            "preset": self.preset,
        }

    def record(self, pipeline: NovaPipeline) -> dict[str, Any]:
        """All that the record of a folder says, see `nova_jax.suites.folder`.

        Raises:
            NovaError: the model does not take texts, an option makes no sense, or a suite of videos
                is asked of a model of pictures.
        """
        if pipeline.config.num_classes is not None:
            raise NovaError(
                f"{self.checkpoint} takes class numbers, and prompts are texts; give another model"
            )
        if self.suite.size not in (None, pipeline.size):
            wanted, made = ("x".join(map(str, size)) for size in (self.suite.size, pipeline.size))
            raise NovaError(
                f"{self.suite.title} is of samples of {wanted} pixels, and {self.checkpoint} makes "
                f"{made}; give a model of that size"
            )
        request = pipeline.request("", **self.call())
        if self.suite.medium == "video" and request.frames == 1:
            raise NovaError(
                f"{self.suite.title} is of videos, and {self.checkpoint} makes pictures unless "
                "told otherwise; say --frames or --preset"
            )
        options = {name: value for name, value in self.options.items() if value is not None}
        return self.beginning() | {
            "model": pipeline.fingerprint,
            "sampling": to_plain(request.sampling),
            "latent_frames": request.frames,
            "size": list(pipeline.size),
            "fps": pipeline.fps,
            "motion_flow": request.flow,
            "negative_prompt": options.get("negative_prompt"),
        }

    def call(self) -> dict[str, Any]:
        """Options of the pipeline; of a suite of pictures, one frame."""
        return dict(self.options) | ({"num_frames": 1} if self.suite.medium == "picture" else {})


@dataclasses.dataclass(frozen=True)
class Drawn:
    """What was done.

    Attributes:
        files: of this shard, all of which are there now.
        new: files of them that were drawn now.
    """

    files: int
    new: int


Batch = Sequence[tuple[Item, Target]]


def cut(items: Sequence[Item], batch_size: int) -> Sequence[Batch]:
    """All files in batches of at most so many samples; a grid is in one, however large."""
    batches: list[list[tuple[Item, Target]]] = []
    room = 0
    for item in items:
        for target in item.targets:
            if not batches or room < len(target.samples):
                batches.append([])
                room = batch_size
            batches[-1].append((item, target))
            room -= len(target.samples)
    return batches


def draw(
    pipeline: NovaPipeline,
    asked: Asked,
    folder: Folder,
    *,
    batch_size: int = 32,
    show_progress: bool = True,
) -> Drawn:
    """Draws what this process's shard of a folder lacks.

    Args:
        pipeline: the model.
        asked: what is drawn.
        folder: where, and which shard; files that are there and whole stay.
        batch_size: most samples made together.
        show_progress: whether a bar shows samples per second and the time that is left.

    Raises:
        NovaError: the folder is of something else, an option makes no sense, memory is short, or
            numbers are not finite.
        OSError: the disk is full, or cannot be written to; whole files stay.
    """
    items, record = asked.prompts.items, asked.record(pipeline)
    batches = cut(items, batch_size)
    size = max(_samples(batch) for batch in batches)
    whole = pipeline.request([""] * size, batch_size=batch_size, **asked.call())
    pipeline.check_memory(whole, overlapped=True)
    folder.begin(record, (t for item in items for t in item.targets))
    told = folder.told(items, asked.seed, lambda prompts: _in_words(pipeline, asked, prompts))
    index, count = folder.shard
    mine = batches[index::count]
    targets = [target for batch in mine for _, target in batch]
    missing = {target.path for target in folder.missing(targets)}
    _write_metadata(folder, mine)
    todo = [batch for batch in mine if any(target.path in missing for _, target in batch)]
    bar = tqdm(
        desc=f"{asked.suite.name}{f', shard {index} of {count}' if count > 1 else ''}",
        unit="sample",
        total=sum(map(_samples, mine)),
        initial=sum(map(_samples, mine)) - sum(map(_samples, todo)),
        disable=not show_progress,
    )
    began, timed = 0.0, 0
    with bar, ThreadPoolExecutor(1) as finisher, ThreadPoolExecutor() as writers:
        finishing: Future[None] | None = None
        for number, batch in enumerate(todo):
            latents = _draw(pipeline, asked, told, batch, size, batch_size)
            if finishing is not None:
                finishing.result()
                bar.update(_samples(todo[number - 1]))
            wanted = [(t, t.path in missing) for _, t in batch]
            finishing = finisher.submit(_finish, pipeline, folder, latents, wanted, writers)
            # The first batch waits for compilers.
            began, timed = (began or time.monotonic()), timed + (number > 0) * _samples(batch)
        if finishing is not None:
            finishing.result()
            bar.update(_samples(todo[-1]))
    if timed:
        _note_speed(folder, timed, time.monotonic() - began, size)
    return Drawn(len(targets), len(missing))


def _in_words(pipeline: NovaPipeline, asked: Asked, prompts: Sequence[str]) -> Sequence[str]:
    """What the model is told, cut where it reads no further."""
    read = in_other_words(prompts, asked.rewriter, pipeline.text_encoder, pipeline.config)
    return prompts if read is None else read


def _samples(batch: Batch) -> int:
    return sum(len(target.samples) for _, target in batch)


def _write_metadata(folder: Folder, batches: Sequence[Batch]) -> None:
    wanted = {
        path: content for batch in batches for item, _ in batch
        for path, content in item.metadata.items()
    }  # fmt: skip
    for path, content in wanted.items():
        file = folder.path / path
        if not file.is_file() or file.read_bytes() != content:
            folder.write(path, content)


def _draw(
    pipeline: NovaPipeline,
    asked: Asked,
    told: Mapping[str, str],
    batch: Batch,
    size: int,
    batch_size: int,
) -> Float[np.ndarray, "b t h w c"]:
    """Latents of a batch; the first sample fills it up."""
    samples = [(item.prompt, number) for item, target in batch for number in target.samples]
    samples += samples[:1] * (size - len(samples))
    return pipeline(
        [told[prompt] for prompt, _ in samples],
        seed=[sample_seed(prompt, number, asked.seed) for prompt, number in samples],
        output_type="latent",
        batch_size=batch_size,
        disable_progress_bar=True,
        **asked.call(),
    ).latents


def _finish(
    pipeline: NovaPipeline,
    folder: Folder,
    latents: Float[np.ndarray, "b t h w c"],
    targets: Sequence[tuple[Target, bool]],
    writers: ThreadPoolExecutor,
) -> None:
    """Decodes a batch and writes those of its files that are wanted."""
    frames = iter(_decode(pipeline, latents))

    def write(target: Target, samples: UInt8[np.ndarray, "b F H W 3"]) -> None:
        folder.write(target.path, _encode(samples, pipeline.fps))

    writing = []
    for target, wanted in targets:
        samples = np.stack([next(frames) for _ in target.samples])
        if wanted:
            writing.append(writers.submit(write, target, samples))
    for file in writing:
        file.result()


def _decode(
    pipeline: NovaPipeline, latents: Float[np.ndarray, "b t h w c"]
) -> UInt8[np.ndarray, "b F H W 3"]:
    """Pixels, by all devices that can share them."""
    mesh, _ = pipeline.placement.shared(len(latents), pipeline.sampling.sampler)
    decoded = pipeline.codec.decode(jax.device_put(latents, batch_sharding(mesh)))
    if not bool(jnp.isfinite(decoded).all()):
        raise NovaError("pixels are not finite; compute in float32, or with less guidance")
    return np.asarray(to_uint8(decoded))


def _encode(samples: UInt8[np.ndarray, "b F H W 3"], fps: float) -> bytes:
    """A picture, a video, or a square grid of pictures."""
    if samples.shape[1] > 1:
        return media.encode_mp4(samples[0], fps)
    side = int(len(samples) ** 0.5)
    height, width = samples.shape[2:4]
    grid = samples.reshape(side, side, height, width, 3).swapaxes(1, 2)
    return media.encode_png(grid.reshape(side * height, side * width, 3))


def _note_speed(folder: Folder, samples: int, seconds: float, batch_size: int) -> None:
    """Writes down how fast all batches but the first were drawn, decoded and written."""
    device = jax.local_devices()[0].device_kind
    facts = {
        "samples": samples,
        "seconds": seconds,
        "batch_size": batch_size,
        "device": device,
        "devices": jax.local_device_count(),
    }
    folder.write(SPEED.format(*folder.shard), json.dumps(facts).encode())

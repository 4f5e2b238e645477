"""Training from a config to a finished model: the whole run, in acts, top to bottom."""

from __future__ import annotations

import dataclasses
import math
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from tqdm import tqdm

from nova_jax.checkpoints.native import RunCheckpoints, claim_workdir, save_model
from nova_jax.checkpoints.parts import codec_from_dict, text_encoder_from_dict
from nova_jax.codecs.interfaces import TextEncoder, VideoCodec
from nova_jax.codecs.pixels import to_uint8
from nova_jax.data.digits import DigitsSource
from nova_jax.data.pipeline import make_evaluation_iterator, make_iterator
from nova_jax.data.transforms import Encode
from nova_jax.distributed.mesh import check_batch_size, make_mesh, shard_batch
from nova_jax.errors import NovaError
from nova_jax.media import contact_sheet, encode_gif, encode_png, enlarge
from nova_jax.models.nova import Conditions, Nova
from nova_jax.sampling.generate import generate
from nova_jax.sampling.schedules import Schedule, schedule_from_dict
from nova_jax.training.config import TrainConfig
from nova_jax.training.evaluation import make_evaluation
from nova_jax.training.metrics import MetricWriter
from nova_jax.training.optimizer import learning_rate_schedule, make_optimizer
from nova_jax.training.state import TrainState, create_state
from nova_jax.training.step import make_train_step


@dataclasses.dataclass(frozen=True, kw_only=True)
class Parts:
    """What a run is made of besides the model, and fits together."""

    schedule: Schedule
    codec: VideoCodec
    text_encoder: TextEncoder
    text_length: int

    def encode(self, *, keep_captions: bool = False) -> Encode:
        """What turns clips into training batches."""
        return Encode(
            codec=self.codec,
            text_encoder=self.text_encoder,
            text_length=self.text_length,
            keep_captions=keep_captions,
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Result:
    """How a run ended.

    Attributes:
        step: steps done.
        finished: whether those were all; if not, the same command goes on.
        evaluation: the last evaluation's numbers.
        seconds: how long this process trained.
        parameters: size of the model.
    """

    step: int
    finished: bool
    evaluation: dict[str, float]
    seconds: float
    parameters: int


def train(config: TrainConfig, workdir: str | os.PathLike[str]) -> Result:
    """Trains, or goes on with a run that was stopped, and leaves everything in `workdir`.

    There will be: config.json, metrics.jsonl, tensorboard/, checkpoints/ (to go on from), samples/
    (videos drawn on the way) and, at the end, model/ (the averaged model, see
    `nova_jax.checkpoints.native`). A run that SIGINT or SIGTERM stops saves its state first.

    Raises:
        NovaError: if the config makes no sense, or `workdir` holds another run or a damaged one.
    """
    # 1. The parts, before anything is written: most mistakes show here.
    workdir = Path(workdir)
    parts = build_parts(config)
    mesh = make_mesh(fsdp=config.fsdp, tensor=config.tensor)
    check_batch_size("data.batch_size", config.data.batch_size, mesh)
    check_batch_size("data.image_batch_size", config.data.image_batch_size, mesh)
    learning_rate = learning_rate_schedule(config.optimizer, config.steps)
    claim_workdir(workdir, config.to_dict(), config.changeable())

    # 2. The data: an endless stream whose position is part of a checkpoint, and held-out clips.
    shard = (jax.process_index(), jax.process_count())
    source = DigitsSource(config.dataset)
    data = make_iterator(source, config.data, parts.encode(), *shard)
    clips = config.evaluation.batches * config.data.batch_size
    held_out = DigitsSource(dataclasses.replace(config.dataset, split="held_out", num_clips=clips))
    evaluation_data = [
        shard_batch(batch, mesh)
        for batch in make_evaluation_iterator(held_out, config.data, parts.encode(), *shard)
    ]

    # 3. The state, sharded from the start, and the programs that work on it.
    optimizer = make_optimizer(config.optimizer, config.steps)
    graphdef, state = create_state(
        config.model,
        optimizer,
        mesh,
        seed=config.seed,
        freeze=config.optimizer.freeze,
        dtype=config.dtype,
        remat=config.remat,
        unroll=config.unroll,
    )
    parameters = sum(math.prod(value.shape) for value in state.variables(ema=False).values())
    train_step = make_train_step(
        graphdef,
        state,
        mesh=mesh,
        schedule=parts.schedule,
        optimizer=optimizer,
        learning_rate=learning_rate,
        ema=config.ema,
        loss_repeat=config.loss_repeat,
        seed=config.seed,
    )
    evaluate = make_evaluation(
        graphdef, state, mesh=mesh, schedule=parts.schedule, loss_repeat=config.loss_repeat
    )

    # 4. Where an earlier process left off.
    checkpoints = RunCheckpoints(
        workdir,
        keep_latest=config.checkpoint.keep_latest,
        keep_best=config.checkpoint.keep_best,
    )
    start = checkpoints.latest_step() or 0
    if start:
        state = TrainState.from_trees(checkpoints.restore(start, state.trees(), data))
    writer = MetricWriter(
        workdir,
        config.to_dict(),
        first_step=start,
        tensorboard=config.logging.tensorboard,
        wandb_project=config.logging.wandb_project,
    )

    # 5. Train. The host only queues work; it waits for the device once a logging interval.
    began = time.monotonic()
    stop = min(config.steps, config.stop_at or config.steps)
    done, pending, evaluation = start, [], {}
    bar = tqdm(
        total=config.steps, initial=min(start, config.steps), unit="step", dynamic_ncols=True
    )
    with closing(checkpoints), closing(writer), bar, stop_signals() as stopping:
        while done < stop and not stopping.is_set():
            batch = next(data)
            state, metrics = train_step(state, shard_batch(batch, mesh))
            done += 1
            kind = "train_video" if batch["latents"].shape[1] > 1 else "train_image"
            pending.append((done, kind, metrics))
            leaving = done == stop or stopping.is_set()

            if done % config.logging.every == 0 or leaving:
                for step, kind, metrics in jax.device_get(pending):
                    writer.scalars(step, kind, metrics)
                bar.update(len(pending))
                bar.set_postfix(loss=f"{np.mean([m['loss'] for *_, m in pending]):.4f}")
                pending = []

            evaluated = done % config.evaluation.every == 0 or done == config.steps
            if evaluated:
                evaluation = evaluate(state.ema, state.frozen, evaluation_data)
                writer.scalars(done, "evaluation", evaluation)

            samples = config.samples
            if samples.every and samples.prompts:
                if done % samples.every == 0 or done == config.steps:
                    model = nnx.merge(graphdef, state.ema, state.frozen)
                    videos = draw_samples(model, config, parts)
                    save_samples(workdir / "samples" / f"step_{done:07d}", videos, config)
                    for index, frames in enumerate(videos):
                        writer.video(done, f"samples/{index}", frames, config.dataset.fps)

            if done % config.checkpoint.every == 0 or leaving:
                writer.flush()
                loss = evaluation["loss"] if evaluated else None
                checkpoints.save(done, state.trees(), data, loss)
        checkpoints.wait()

    # 6. The finished model.
    if done >= config.steps:
        save_model(
            workdir / "model",
            variables=state.variables(ema=True),
            config=config.to_dict(),
            step=done,
        )
    return Result(
        step=done,
        finished=done >= config.steps,
        evaluation=evaluation,
        seconds=time.monotonic() - began,
        parameters=parameters,
    )


def build_parts(config: TrainConfig) -> Parts:
    """Builds what the config only names, and checks that it fits the model.

    Raises:
        NovaError: naming the key that does not fit.
    """
    model, dataset = config.model, config.dataset
    codec = codec_from_dict(config.codec)
    text_encoder = text_encoder_from_dict(config.text_encoder)
    frames = codec.latent_frames(dataset.frames)
    facts = [
        ("latent_channels", model.latent_channels, codec.latent_channels, "codec"),
        ("latent_size", model.latent_size, tuple(s // codec.stride for s in dataset.size), "codec"),
        ("text_dim", model.text_dim, text_encoder.dim, "text_encoder"),
        ("frames", model.frames, frames, "dataset"),
    ]
    for name, value, needed, section in facts:
        if value != needed:
            raise NovaError(
                f"config.model.{name} is {value}, config.{section} gives {needed}; make them equal"
            )
    return Parts(
        schedule=schedule_from_dict(config.schedule),
        codec=codec,
        text_encoder=text_encoder,
        text_length=model.text_length or 0,
    )


def draw_samples(model: Nova, config: TrainConfig, parts: Parts) -> np.ndarray:
    """Videos of ``config.samples.prompts``, the same noise each time: uint8 [B, F, H, W, 3]."""
    samples, count = config.samples, len(config.samples.prompts)
    text, length = parts.text_encoder.encode(samples.prompts, parts.text_length)
    conditions = Conditions(
        text=jnp.asarray(text),
        text_length=jnp.asarray(length),
        flow=jnp.full(count, config.motion_flow),
        fps=jnp.full(count, config.dataset.fps),
    )
    latents = generate(
        model,
        parts.schedule,
        conditions,
        frames=config.model.frames,
        config=config.sampling,
        keys=jax.vmap(lambda i: jax.random.fold_in(jax.random.key(samples.seed), i))(
            jnp.arange(count)
        ),
    )
    return np.asarray(to_uint8(parts.codec.decode(latents)))


def save_samples(path: Path, videos: np.ndarray, config: TrainConfig) -> None:
    """Writes a sheet of all frames with the prompts, and all videos side by side as a GIF."""
    path.parent.mkdir(exist_ok=True)
    large = enlarge(videos, 96)
    sheet = contact_sheet(list(large), config.samples.prompts)
    path.with_suffix(".png").write_bytes(encode_png(sheet))
    if videos.shape[1] > 1:
        gif = encode_gif(np.concatenate(list(large), axis=2), config.dataset.fps)
        path.with_suffix(".gif").write_bytes(gif)


@contextmanager
def stop_signals() -> Iterator[threading.Event]:
    """Turns the first SIGINT or SIGTERM into an event; a second one acts as it always does."""
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event  # signals cannot be caught here
        return
    signals = (signal.SIGINT, signal.SIGTERM)
    earlier = [signal.getsignal(number) for number in signals]

    def restore() -> None:
        for number, handler in zip(signals, earlier, strict=True):
            signal.signal(number, handler)

    def stop(number: int, frame: Any) -> None:
        event.set()
        restore()

    for number in signals:
        signal.signal(number, stop)
    try:
        yield event
    finally:
        restore()

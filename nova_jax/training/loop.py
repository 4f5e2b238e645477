"""Training from a config to a finished model: the whole run, in acts, top to bottom."""

from __future__ import annotations

import dataclasses
import logging
import math
import os
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from functools import partial

import grain
import jax
import jax.numpy as jnp
import numpy as np
from etils.epath import Path
from flax.traverse_util import flatten_dict
from jax.sharding import Mesh
from tqdm import tqdm

from nova_jax.autoencoders.interface import VideoCodec
from nova_jax.autoencoders.pixels import to_uint8
from nova_jax.checkpoints.adapters import save_adapters
from nova_jax.checkpoints.model import save_model
from nova_jax.checkpoints.parts import codec_from_dict, text_encoder_from_dict
from nova_jax.checkpoints.run import RunCheckpoints, claim_workdir, has_checkpoint
from nova_jax.data.pipeline import Dataset
from nova_jax.distributed import multihost
from nova_jax.distributed.mesh import (
    SampleParallelism,
    check_batch_size,
    make_mesh,
    process_share,
    shard_batch,
)
from nova_jax.errors import NovaError
from nova_jax.media import contact_sheet, encode_gif, encode_png, enlarge
from nova_jax.models.nova import Conditions, Nova
from nova_jax.sampling.frames import generate
from nova_jax.sampling.keys import sample_key, seed_key
from nova_jax.sampling.schedules import Schedule, schedule_from_dict
from nova_jax.text.interface import TextEncoder
from nova_jax.training.config import TrainConfig
from nova_jax.training.datasets import build_dataset
from nova_jax.training.guard import NumericsGuard, Spikes, make_diagnosis
from nova_jax.training.metrics import MetricWriter
from nova_jax.training.optimizer import learning_rate_schedule, make_optimizer
from nova_jax.training.start import load_start
from nova_jax.training.state import TrainState, create_state
from nova_jax.training.step import make_train_step
from nova_jax.training.throughput import Throughput, Trace
from nova_jax.training.validation import make_evaluation

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Parts:
    """What a run is made of besides the model, and fits together."""

    schedule: Schedule
    codec: VideoCodec | None
    text_encoder: TextEncoder | None
    dataset: Dataset


@dataclasses.dataclass(frozen=True, kw_only=True)
class Result:
    """How a run ended.

    Attributes:
        step: steps done.
        finished: whether those were all; if not, the same command goes on.
        evaluation: the last evaluation's numbers.
        seconds: how long this process trained.
        parameters: size of the model.
        skipped: steps of this process that were not finite.
        speed: see `nova_jax.training.throughput.Throughput`.
    """

    step: int
    finished: bool
    evaluation: dict[str, float]
    seconds: float
    parameters: int
    skipped: int
    speed: dict[str, float]


def train(config: TrainConfig, workdir: str | os.PathLike[str]) -> Result:
    """Trains, or goes on with a run that was stopped, and leaves everything in `workdir`.

    There will be: config.json, metrics.jsonl, tensorboard/, checkpoints/ (to go on from), samples/
    (videos drawn on the way) and, at the end, model/ (the averaged model, see
    `nova_jax.checkpoints.model`), with adapters added to it, and adapters/ (these by themselves,
    see `nova_jax.checkpoints.adapters`). A run that SIGINT or SIGTERM stops saves its state first.

    Raises:
        NovaError: if the config makes no sense, or `workdir` holds another run or a damaged one.
    """
    # 1. The parts, before anything is written: most mistakes show here.
    workdir = Path(workdir)
    parts = build_parts(config)
    mesh = make_mesh(config=config.mesh)
    check_batch_size("data.batch_size", config.data.batch_size, mesh, config.clip_frames)
    check_batch_size("data.image_batch_size", config.data.image_batch_size, mesh)
    learning_rate = learning_rate_schedule(config.optimizer, config.steps)
    multihost.check_same(config.to_dict() | {"workdir": str(workdir)})
    initial = None
    if config.init is not None and not has_checkpoint(workdir):
        initial = load_start(config.init, config.model, mesh)
        if multihost.is_first():
            tqdm.write(f"{config.init.checkpoint}: {initial}")
            if initial.schedule != parts.schedule:
                tqdm.write(f"It was trained with {initial.schedule}, this run has {parts.schedule}")
    multihost.on_first(lambda: claim_workdir(workdir, config.to_dict(), config.changeable()))

    # 2. The data: an endless stream whose position is part of a checkpoint, and held-out clips.
    shard = process_share(mesh)
    data = parts.dataset.batches(config.data, *shard)
    held_out = parts.dataset.held_out(config.data, config.evaluation.batches, *shard)
    evaluation_data = [shard_batch(batch, mesh) for batch in held_out]

    # 3. The state, sharded from the start, and the programs that work on it.
    optimizer = make_optimizer(config.optimizer, config.steps)
    blueprint, state = create_state(
        config.model,
        optimizer,
        mesh,
        seed=config.seed,
        freeze=config.optimizer.freeze,
        lora=config.lora,
        start=None if initial is None else initial.variables,
        dtype=config.dtype,
        remat=config.remat,
        unroll=config.unroll,
    )
    shapes = jax.eval_shape(blueprint.variables, state.params, state.frozen)
    parameters = sum(math.prod(shape.shape) for shape in shapes.values())
    train_step = make_train_step(
        blueprint,
        state,
        mesh=mesh,
        schedule=parts.schedule,
        optimizer=optimizer,
        learning_rate=learning_rate,
        ema=config.ema,
        loss_repeat=config.loss_repeat,
        first_frame_loss=config.first_frame_loss,
        seed=config.seed,
    )
    evaluate = make_evaluation(
        blueprint, state, mesh=mesh, schedule=parts.schedule, loss_repeat=config.loss_repeat
    )

    diagnose = make_diagnosis(
        blueprint,
        mesh=mesh,
        schedule=parts.schedule,
        loss_repeat=config.loss_repeat,
        seed=config.seed,
    )
    guard, spikes = NumericsGuard(config.guard, diagnose), Spikes(config.guard.spike)
    speed = Throughput(config, mesh)
    trace = Trace(workdir / "profile", config.logging.profile)

    # 4. Where an earlier process left off.
    checkpoints = RunCheckpoints(
        workdir,
        keep_latest=config.checkpoint.keep_latest,
        keep_best=config.checkpoint.keep_best,
    )
    start = 0
    if restored := checkpoints.restore_newest(state.trees(), data):
        start, trees = restored
        state = TrainState.from_trees(trees)
    writer = MetricWriter(
        workdir,
        config.to_dict(),
        first_step=start,
        tensorboard=config.logging.tensorboard,
        wandb_project=config.logging.wandb_project,
    )

    # 5. Train. The host queues a step ahead; once a logging interval it waits for the device.
    began = time.monotonic()
    stop = min(config.steps, config.stop_at or config.steps)
    done, skipped, pending, evaluation = start, 0, [], {}
    leaving = done >= stop
    bar = tqdm(
        total=config.steps,
        initial=min(start, config.steps),
        unit="step",
        dynamic_ncols=True,
        disable=not multihost.is_first(),
    )
    with (
        checkpoints,
        closing(writer),
        bar,
        trace,
        multihost.losses_named(),
        multihost.stop_requests() as stop_requested,
    ):
        while not leaving:
            with dead_workers_named(), speed.waiting():
                batch = shard_batch(next(data), mesh)
            trace.before(done + 1)
            state, metrics = train_step(state, batch)
            done += 1
            speed.step(batch, metrics)
            trace.after(done, metrics)
            pending.append((done, batch["latents"].shape[1:4], metrics))

            if guard.watch(state, done, batch, metrics):
                skipped += sum(int(metrics["skipped"]) for *_, metrics in jax.device_get(pending))
                done, state = go_back(checkpoints, state, data)
                writer.go_back(done)
                bar.n, pending = done, []
                continue
            leaving = stop_requested(done) or done == stop

            if done % config.logging.every == 0 or leaving:
                for step, shape, metrics in jax.device_get(pending):
                    kind = "train_video" if shape[0] > 1 else "train_image"
                    of_bucket = {f"loss_{'x'.join(map(str, shape))}": metrics["loss"]}
                    writer.scalars(step, kind, metrics | of_bucket)
                    skipped += int(metrics["skipped"])
                    for name, deviations in spikes.find(kind, step, metrics):
                        writer.scalars(step, f"spike_{kind}", {name: deviations})
                bar.update(len(pending))
                bar.set_postfix(loss=f"{np.mean([m['loss'] for *_, m in pending]):.4f}")
                pending = []
                if numbers := speed.look():
                    writer.scalars(done, "speed", numbers)

            evaluated = done % config.evaluation.every == 0 or done == config.steps
            if evaluated:
                evaluation = evaluate(state.ema, state.frozen, evaluation_data)
                writer.scalars(done, "evaluation", evaluation)
                speed.restart()

            samples = config.samples
            if samples.every and samples.prompts:
                if done % samples.every == 0 or done == config.steps:
                    model = blueprint.model(state.ema, state.frozen)
                    videos = draw_samples(model, config, parts, mesh)
                    if multihost.is_first():
                        save_samples(workdir / "samples" / f"step_{done:07d}", videos, config)
                    for index, frames in enumerate(videos):
                        writer.video(done, f"samples/{index}", frames, config.dataset.fps)
                    speed.restart()

            if done % config.checkpoint.every == 0 or leaving:
                writer.flush()
                loss = evaluation["loss"] if evaluated else None
                checkpoints.save(done, state.trees(), data, loss)
                speed.restart()
        checkpoints.wait()

    # 6. The finished model.
    if done >= config.steps:
        save_model(
            workdir / "model",
            variables=blueprint.variables(state.ema, state.frozen),
            config=config.to_dict(),
            step=done,
        )
        if config.lora is not None and config.init is not None:
            flat = flatten_dict(state.ema, sep=".")
            save = partial(
                save_adapters,
                workdir / "adapters",
                adapters={name: multihost.to_host(array) for name, array in flat.items()},
                rank=config.lora.rank,
                alpha=config.lora.alpha,
                model=config.model,
                base=config.init.checkpoint,
            )
            multihost.on_first(save)
    return Result(
        step=done,
        finished=done >= config.steps,
        evaluation=evaluation,
        seconds=time.monotonic() - began,
        parameters=parameters,
        skipped=skipped,
        speed=speed.summary(),
    )


def build_parts(config: TrainConfig, *, keep_captions: bool = False) -> Parts:
    """Builds what the config only names, and checks that it fits the model.

    Args:
        config: the run.
        keep_captions: see `nova_jax.training.datasets.build_dataset`.

    Raises:
        NovaError: naming the key that does not fit.
    """
    model = config.model
    codec = None if config.codec is None else codec_from_dict(config.codec)
    encoder = config.text_encoder
    text_encoder = None if encoder is None else text_encoder_from_dict(encoder)
    dataset = build_dataset(config.dataset, model, codec, text_encoder, keep_captions=keep_captions)
    needs = dict(dataset.requirements())
    if codec is not None:
        needs["latent_channels"] = (codec.latent_channels, "codec")
    if text_encoder is not None:
        needs["text_dim"] = (text_encoder.dim, "text_encoder")
    for name, (needed, section) in needs.items():
        if (value := getattr(model, name)) != needed:
            raise NovaError(
                f"config.model.{name} is {value}, config.{section} gives {needed}; make them equal"
            )
    if config.samples.every and config.samples.prompts and (codec is None or text_encoder is None):
        missing = "codec" if codec is None else "text_encoder"
        raise NovaError(
            f"config.{missing} is missing, which config.samples.prompts need to be drawn; set it, "
            "or samples.prompts to ()"
        )
    return Parts(
        schedule=schedule_from_dict(config.schedule),
        codec=codec,
        text_encoder=text_encoder,
        dataset=dataset,
    )


def go_back(
    checkpoints: RunCheckpoints, state: TrainState, data: grain.DatasetIterator
) -> tuple[int, TrainState]:
    """Steps done and state of the last good checkpoint; the data goes on where it is.

    Raises:
        NovaError: there is none yet.
    """
    position = data.get_state()
    if (restored := checkpoints.restore_newest(state.trees(), data)) is None:
        raise NovaError(
            "the numbers are not finite and there is no checkpoint to go back to; "
            "lower optimizer.learning_rate, set optimizer.clip_norm, or look at the data"
        )
    data.set_state(position)
    logger.warning("going back to the checkpoint of step %d", restored[0])
    return restored[0], TrainState.from_trees(restored[1])


def draw_samples(model: Nova, config: TrainConfig, parts: Parts, mesh: Mesh) -> np.ndarray:
    """Videos of ``config.samples.prompts``, the same noise each time: uint8 [B, F, H, W, 3]."""
    assert parts.codec is not None and parts.text_encoder is not None  # `build_parts` has checked
    samples, count = config.samples, len(config.samples.prompts)
    text, length = parts.text_encoder.encode(samples.prompts, config.model.text_length or 0)
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
        frames=config.clip_frames,
        config=config.sampling,
        keys=jax.vmap(sample_key, (None, 0))(seed_key(samples.seed), jnp.arange(count)),
        parallelism=SampleParallelism(mesh, whole=False),
    )
    return np.asarray(to_uint8(parts.codec.decode(multihost.to_host(latents))))


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
def dead_workers_named() -> Iterator[None]:
    """Says in one line that a process which prepares batches is gone (out of memory, mostly)."""
    try:
        yield
    except RuntimeError as error:
        if "Worker process was terminated" not in str(error):  # Grain has no exception for it
            raise
        raise NovaError(
            f"a data worker is gone: {error}; is there memory enough for config.data.num_workers? "
            "The same command goes on from the last checkpoint"
        ) from error

"""Training from a config to a finished model: the whole run, in acts, top to bottom."""

from __future__ import annotations

import dataclasses
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from functools import cache, partial

import grain
import jax
import jax.numpy as jnp
import numpy as np
from etils.epath import Path
from flax.traverse_util import flatten_dict
from tqdm import tqdm

from nova_jax import drift
from nova_jax.autoencoders.interface import VideoCodec
from nova_jax.autoencoders.pixels import to_uint8
from nova_jax.checkpoints.adapters import save_adapters
from nova_jax.checkpoints.model import save_model
from nova_jax.checkpoints.parts import codec_from_dict, text_encoder_from_dict
from nova_jax.checkpoints.run import RunCheckpoints, claim_workdir, has_checkpoint
from nova_jax.data.batch import abstract_batch
from nova_jax.data.pipeline import Dataset
from nova_jax.distributed import multihost
from nova_jax.distributed.lock import hold
from nova_jax.distributed.memory import Part, check_fits, device_bytes, device_memory
from nova_jax.distributed.mesh import (
    MeshLayout,
    SampleParallelism,
    batch_sharding,
    check_batch_size,
    make_mesh,
    process_share,
    shard_batch,
)
from nova_jax.errors import NovaError
from nova_jax.files import write_whole
from nova_jax.media import contact_sheet, encode_gif, encode_png, enlarge
from nova_jax.models.nova import Conditions, Nova
from nova_jax.sampling.keys import sample_key, seed_key
from nova_jax.sampling.schedules import Schedule, schedule_from_dict
from nova_jax.sampling.video import generate
from nova_jax.text.interface import TextEncoder
from nova_jax.training.config import TrainConfig
from nova_jax.training.datasets import build_dataset
from nova_jax.training.guard import NumericsGuard
from nova_jax.training.metrics import MetricWriter, StepLog
from nova_jax.training.programs import Programs, make_programs
from nova_jax.training.start import load_initial
from nova_jax.training.state import Blueprint, TrainState
from nova_jax.training.throughput import Throughput, Trace

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
        validation: the last validation's numbers.
        seconds: how long this process trained.
        parameters: size of the model.
        skipped: steps of this process that were not finite, by what of them was not, see
            `nova_jax.training.step.not_finite`; empty if there were none.
        speed: see `nova_jax.training.throughput.Throughput`.
    """

    step: int
    finished: bool
    validation: dict[str, float]
    seconds: float
    parameters: int
    skipped: Mapping[str, int]
    speed: dict[str, float]


def train(config: TrainConfig, workdir: str | os.PathLike[str]) -> Result:
    """Trains, or goes on with a run that was stopped, and leaves everything in `workdir`.

    There will be: config.json, metrics.jsonl, tensorboard/, checkpoints/ (to go on from), samples/
    (videos drawn on the way) and, at the end, model/ (the averaged model, see
    `nova_jax.checkpoints.model`), with adapters added to it, and adapters/ (these by themselves,
    see `nova_jax.checkpoints.adapters`). A run that SIGINT or SIGTERM stops saves its state first.

    Raises:
        NovaError: if the config makes no sense, `workdir` holds another run or a damaged one or
            another process is at it, or numbers do not stay finite (see `nova_jax.training.guard`).
    """
    # 1. The parts, before anything is written: most mistakes show here.
    workdir = Path(workdir)
    parts = build_parts(config)
    mesh = make_mesh(config=config.mesh)
    programs = make_programs(config, mesh)
    check_sizes(config, programs.state, mesh)
    multihost.check_same(config.to_dict() | {"workdir": str(workdir)})
    initial = cache(partial(initial_variables, config, parts, mesh))
    with ExitStack() as held:
        multihost.on_first(lambda: held.enter_context(hold(workdir / "lock")))
        if not has_checkpoint(workdir):
            initial()
        known = (config.to_dict(), config.changeable(), config.defaults())
        multihost.on_first(lambda: claim_workdir(workdir, *known))
        return _train(config, workdir, parts, mesh, programs, initial)


def _train(
    config: TrainConfig,
    workdir: Path,
    parts: Parts,
    mesh: MeshLayout,
    programs: Programs,
    initial: Callable[[], dict[str, jax.Array]],
) -> Result:
    """The acts of `train` in a work directory that is this run's alone."""
    # 2. The data: an endless stream whose position is part of a checkpoint, and held-out clips.
    shard = process_share(mesh)
    data = parts.dataset.batches(config.data, *shard)
    clips = parts.dataset.held_out(config.data, config.validation.batches, *shard)
    held_out = [shard_batch(batch, mesh) for batch in clips]

    # 3. The state, sharded from the start: an earlier process's, where it left off, or a new one.
    keep = config.checkpoint
    checkpoints = RunCheckpoints(workdir, keep_latest=keep.keep_latest, keep_best=keep.keep_best)
    done, state = restore(checkpoints, programs.state, data) or (0, programs.create(initial()))

    # 4. Train. The host queues a step ahead; once a logging interval it waits for the device.
    writer = open_writer(workdir, config, done)
    log = StepLog(writer, done, config.steps)
    guard, speed = NumericsGuard(config.guard, programs.diagnose), Throughput(config, mesh)
    trace = Trace(workdir / "profile", config.logging.profile)
    began, stop = time.monotonic(), min(config.steps, config.stop_at or config.steps)
    leaving, validation = done >= stop, {}
    with (
        checkpoints,
        closing(writer),
        closing(log),
        trace,
        multihost.lost_processes_named(),
        multihost.stop_requests() as stop_requested,
    ):
        while not leaving:
            with dead_workers_named(), speed.waiting():
                batch = shard_batch(next(data), mesh)
            trace.before(done + 1)
            state, metrics = programs.step(state, batch)
            done += 1
            speed.step(batch, metrics)
            trace.after(done, metrics)
            log.add(done, batch, metrics)

            if guard.watch(state, done, batch, metrics):
                done, state = go_back(checkpoints, state, data)
                log.go_back(done)
                continue
            leaving, last = stop_requested(done) or done == stop, done == config.steps

            if done % config.logging.every == 0 or leaving:
                log.write()
                writer.scalars(done, "speed", speed.look())

            if validated := last or done % config.validation.every == 0:
                validation = programs.validate(state.ema, state.frozen, held_out)
                writer.scalars(done, "validation", validation)
                speed.restart()

            if config.samples.due(done, last):
                model = programs.blueprint.model(state.ema, state.frozen)
                videos = generate_samples(model, config, parts, mesh)
                save_samples(writer, workdir, done, videos, config)
                speed.restart()

            if leaving or done % config.checkpoint.every == 0:
                writer.flush()
                loss = validation["loss"] if validated else None
                checkpoints.save(done, state.trees(), data, loss)
                speed.restart()
        checkpoints.wait()

    # 5. The finished model.
    if done >= config.steps:
        save_finished(workdir, config, done, programs.blueprint, state)
    return Result(
        step=done,
        finished=done >= config.steps,
        validation=validation,
        seconds=time.monotonic() - began,
        parameters=programs.parameters,
        skipped=log.skipped,
        speed=speed.summary(),
    )


def build_parts(config: TrainConfig, *, keep_captions: bool = False) -> Parts:
    """Builds what the config only names, and checks that it fits the model.

    For `keep_captions` see `nova_jax.training.datasets.build_dataset`.

    Raises:
        NovaError: naming the key that does not fit.
    """
    model = config.model
    codec = None if config.codec is None else codec_from_dict(config.codec)
    encoder = config.text_encoder
    text_encoder = None if encoder is None else text_encoder_from_dict(encoder)
    dataset = build_dataset(config.dataset, model, codec, text_encoder, keep_captions=keep_captions)
    needs = dict(dataset.requirements())
    if (window := config.context.window) and "frames" in needs:
        frames, section = needs["frames"]
        needs["frames"] = (min(frames, window), section if frames < window else "context.window")
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
    schedule = schedule_from_dict(config.schedule)
    return Parts(schedule=schedule, codec=codec, text_encoder=text_encoder, dataset=dataset)


def check_sizes(config: TrainConfig, state: TrainState, mesh: MeshLayout) -> None:
    """Raises if devices cannot share a batch, or hold it and the state, which may be abstract."""
    check_batch_size("data.batch_size", config.data.batch_size, mesh, config.clip_frames)
    check_batch_size("data.image_batch_size", config.data.image_batch_size, mesh)
    local = mesh.mesh.local_devices
    shared = local[0].platform == "cpu"
    place = "this machine" if shared else f"a {local[0].device_kind}"
    batch = abstract_batch(
        config.model,
        size=config.data.batch_size,
        frames=config.clip_frames,
        text_dtype=config.dataset.text_dtype,
        sharding=batch_sharding(mesh),
    )
    model = "config.model's widths and depths"
    parts = [
        Part(name, device_bytes(tree) * (len(local) if shared else 1), [option])
        for name, tree, option in (
            ("parameters", (state.params, state.frozen), model),
            ("the optimizer", state.optimizer, model),
            ("the average", state.ema, model),
            ("a batch", batch, "config.data.batch_size"),
        )
    ]
    what = "training, without activations,"
    remark = "raise config.mesh.fsdp; python -m nova_jax.plan says what fits where"
    check_fits(what, parts, device_memory(local[0]), place, remark)


def initial_variables(config: TrainConfig, parts: Parts, mesh: MeshLayout) -> dict[str, jax.Array]:
    """What a run starts from instead of drawn parameters, by path; says what was taken over."""
    if config.init is None:
        return {}
    initial = load_initial(config.init, config.model, mesh)
    if multihost.is_first():
        tqdm.write(f"{config.init.checkpoint}: {initial}")
        if initial.schedule != parts.schedule:
            tqdm.write(f"It was trained with {initial.schedule}, this run has {parts.schedule}")
    return initial.variables


def open_writer(workdir: Path, config: TrainConfig, done: int) -> MetricWriter:
    """Where the numbers of steps after those that are done go, and samples."""
    return MetricWriter(
        workdir,
        config.to_dict(),
        first_step=done,
        tensorboard=config.logging.tensorboard,
        wandb_project=config.logging.wandb_project,
    )


def restore(
    checkpoints: RunCheckpoints, state: TrainState, data: grain.DatasetIterator
) -> tuple[int, TrainState] | None:
    """Steps done and state of the newest checkpoint, with the data at its position; None without.

    `state` says what arrays there are and where they lie; they may be abstract, or donated.
    """
    if (restored := checkpoints.restore_newest(state.trees(), data)) is None:
        return None
    step, trees = restored
    return step, TrainState.from_trees(trees)


def go_back(
    checkpoints: RunCheckpoints, state: TrainState, data: grain.DatasetIterator
) -> tuple[int, TrainState]:
    """Steps done and state of the last good checkpoint; the data goes on where it is.

    Raises:
        NovaError: there is none yet.
    """
    position = data.get_state()
    if (restored := restore(checkpoints, state, data)) is None:
        raise NovaError(
            "the numbers are not finite and there is no checkpoint to go back to; "
            "lower optimizer.learning_rate, set optimizer.clip_norm, or look at the data"
        )
    data.set_state(position)
    logger.warning("going back to the checkpoint of step %d", restored[0])
    return restored


def generate_samples(
    model: Nova, config: TrainConfig, parts: Parts, mesh: MeshLayout
) -> np.ndarray:
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


def save_samples(
    writer: MetricWriter, workdir: Path, step: int, videos: np.ndarray, config: TrainConfig
) -> None:
    """Leaves a sheet of all frames with the prompts, and all videos side by side as a GIF.

    How far their last frames are from their first goes to the metrics, see `nova_jax.drift`.
    """
    fps = config.dataset.fps
    for index, frames in enumerate(videos):
        writer.video(step, f"samples/{index}", frames, fps)
    if not multihost.is_first():
        return
    path = workdir / "samples" / f"step_{step:07d}"
    path.parent.mkdir(exist_ok=True)
    large = enlarge(videos, 96)
    sheet = contact_sheet(list(large), config.samples.prompts)
    write_whole(path.with_suffix(".png"), encode_png(sheet))
    if videos.shape[1] > 1:
        clips = [drift.measure(clip) for clip in videos]
        last = {name: float(np.mean([clip[name][-1] for clip in clips])) for name in clips[0]}
        writer.scalars(step, "drift", {name.replace(" ", "_"): x for name, x in last.items()})
        film = encode_gif(np.concatenate(list(large), axis=2), fps)
        write_whole(path.with_suffix(".gif"), film)


def save_finished(
    workdir: Path, config: TrainConfig, step: int, blueprint: Blueprint, state: TrainState
) -> None:
    """Leaves the averaged model, and the adapters by themselves where these were trained."""
    save_model(
        workdir / "model",
        variables=blueprint.variables(state.ema, state.frozen),
        config=config.to_dict(),
        step=step,
    )
    if config.lora is None or config.init is None:
        return
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

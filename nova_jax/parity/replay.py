"""Repeats what was recorded on the PyTorch release: training, generation, parts, pipelines."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from einops import rearrange
from flax import nnx
from flax.traverse_util import flatten_dict
from safetensors import SafetensorError

from nova_jax.autoencoders.pixels import to_float
from nova_jax.checkpoints import diffusers, rules
from nova_jax.checkpoints.open import open_checkpoint
from nova_jax.distributed.mesh import MeshLayout, make_mesh
from nova_jax.errors import NovaError
from nova_jax.models.config import NovaConfig
from nova_jax.models.embeddings import DEFAULT_FLOW
from nova_jax.models.nova import Conditions, Nova
from nova_jax.models.observe import Places, observed
from nova_jax.parity import inputs
from nova_jax.parity.compare import Arrays, Row, compare
from nova_jax.pipeline import NovaPipeline
from nova_jax.sampling.denoise import GivenNoise
from nova_jax.sampling.frames import describe
from nova_jax.sampling.keys import seed_key
from nova_jax.sampling.options import SamplingConfig
from nova_jax.sampling.order import set_sizes, to_row_major
from nova_jax.sampling.schedules import Schedule
from nova_jax.sampling.state import begin
from nova_jax.sampling.video import generate
from nova_jax.training.loss import TrainingDraws
from nova_jax.training.optimizer import (
    OptimizerConfig,
    learning_rate_schedule,
    make_optimizer,
    split_model,
)
from nova_jax.training.state import Blueprint, TrainState
from nova_jax.training.step import Trainer

# Places of our forward pass, see `nova_jax.models.observe`, and what the release calls them.
_PLACES = {
    "text_embed": "text_embed",
    "label_embed": "label_embed",
    "temporal_encoder.patch_embed": "video_encoder.patch_embed",
    "temporal_encoder.blocks": "video_encoder.blocks",
    "temporal_encoder.norm": "video_encoder",
    "temporal_encoder.mixer": "video_encoder.mixer",
    "spatial_decoder.encoder_blocks": "image_encoder.blocks",
    "spatial_decoder.decoder_blocks": "image_encoder.blocks",
    "spatial_decoder": "image_encoder",
    "diffusion_head.patch_embed": "image_decoder.patch_embed",
    "diffusion_head.condition": "image_decoder.time_cond_embed",
    "diffusion_head.blocks": "image_decoder.blocks",
    "diffusion_head.norm": "image_decoder.norm",
    "diffusion_head": "image_decoder",
}


def check_folder(directory: Path, dtype: str = "float32") -> tuple[list[Row], list[str]]:
    """Runs everything recorded in one folder, computing in `dtype`.

    Raises:
        NovaError: if the folder is not in the expected layout.
    """
    try:
        recorded = safetensors.numpy.load_file(directory / "golden.safetensors")
    except FileNotFoundError:
        raise NovaError(f"{directory}/golden.safetensors is missing; nothing to compare") from None
    except SafetensorError as error:
        raise NovaError(f"{directory}/golden.safetensors is damaged ({error})") from None
    limits = directory / "tolerance.json"
    tolerance = diffusers.read_json(limits) if limits.exists() else {}
    computed: Arrays = {}
    if (directory / "model_index.json").exists():
        pipeline = NovaPipeline.from_pretrained(directory, dtype=dtype)
        for call, arguments in diffusers.read_json(directory / "case.json")["calls"].items():
            computed |= run_pipeline(pipeline, call, arguments, recorded)
    elif (directory / "config.json").exists():
        config = diffusers.read_json(directory / "config.json")
        run = run_phi if config.get("model_type") == "phi" else run_autoencoder
        computed = run(directory, recorded, dtype)
    else:
        case = diffusers.read_json(directory / "case.json")
        model, schedule = diffusers.load_transformer(directory, dtype=dtype)
        for call, arguments in case.get("generate", {}).items():
            computed |= run_generation(model, schedule, call, arguments, recorded)
        if "train" in case:
            computed |= run_training(model, schedule, case["train"], recorded)
    return compare(str(directory), recorded, computed, tolerance)


def check_live(source: Path, dtype: str = "float32") -> tuple[list[Row], list[str]]:
    """Compares a model with the PyTorch release, module by module and as a whole."""
    from nova_jax.parity.live import record  # imports torch

    checkpoint = open_checkpoint(source)
    if checkpoint.kind != "released":
        raise NovaError(f"{source} is not in the released layout; convert it first")
    directory = Path(checkpoint.directory)
    arguments, recorded = record(directory)
    pipeline = NovaPipeline.from_pretrained(directory, dtype=dtype)
    computed = run_pipeline(pipeline, "live", arguments, recorded, first=True)
    computed |= run_autoencoder(directory / "vae", recorded, dtype)
    if "in.input_ids" in recorded:
        computed |= run_phi(directory / "text_encoder", recorded, dtype)
    return compare(str(directory), recorded, computed, {})


def run_autoencoder(directory: Path, recorded: Arrays, dtype: str) -> Arrays:
    """Encodes the recorded pixels, and decodes the recorded latents."""
    codec = diffusers.load_autoencoder(directory, dtype=dtype)
    results: Arrays = {}
    for name, pixels in recorded.items():
        if not name.endswith(".in.pixels"):
            continue
        case = name.removesuffix(".in.pixels")
        x = inputs.videos(pixels)
        decoded = codec.decode(inputs.videos(recorded[f"{case}.latents"]))
        computed = {"moments": codec.moments(x), "latents": codec.encode(x), "decoded": decoded}
        for result, value in computed.items():
            value = np.moveaxis(np.asarray(value), -1, 1)
            results[f"{case}.{result}"] = value if pixels.ndim == 5 else value[:, :, 0]
    return results


def run_phi(directory: Path, recorded: Arrays, dtype: str) -> Arrays:
    """Encodes the recorded tokens."""
    model = diffusers.load_language_model(directory, dtype=dtype)
    tokens = jnp.asarray(recorded["in.input_ids"], jnp.int32)
    states = nnx.jit(lambda model: model(tokens).astype(jnp.float32))(model)
    return {"last_hidden_state": np.asarray(states)}


def run_pipeline(
    pipeline: NovaPipeline,
    call: str,
    arguments: Mapping[str, Any],
    recorded: Arrays,
    *,
    first: bool = False,
) -> Arrays:
    """Repeats a recorded call, whose arguments have the same names here, with its randomness.

    With `first` also the outputs of the three stages at their first call.
    """
    sampling_config = inputs.sampling_config(arguments)
    noise = inputs.noise(pipeline.config, pipeline.schedule, sampling_config, call, recorded)
    options = dict(arguments, order=noise.order, noise=noise)
    if (image := recorded.get(f"{call}.in.image")) is not None:
        mean, deviation = pipeline.codec.posterior(to_float(image)[None, None])
        options["latents"] = mean + deviation * inputs.videos(recorded[f"{call}.in.vae_noise"])
    pixels = recorded.get(f"{call}.pixels")
    output = pipeline(**options, output_type="latent" if pixels is None else "np")
    results = {"latents": np.moveaxis(output.latents, -1, 1)}
    if pixels is not None:
        results["pixels"] = output.frames if pixels.ndim == 5 else output.frames[:, 0]
    if first:
        outputs = first_calls(
            pipeline.model,
            pipeline.schedule,
            pipeline.conditions(arguments["prompt"], pipeline.motion_flow),
            output.latents.shape[1],
            sampling_config,
            None,
            noise,
        )
        results |= {name: np.asarray(value) for name, value in outputs.items()}
    return {f"{call}.{name}": value for name, value in results.items()}


def run_generation(
    model: Nova, schedule: Schedule, call: str, arguments: Mapping[str, Any], recorded: Arrays
) -> Arrays:
    """Repeats a recorded generation: its latents and the outputs of each stage's first call."""
    inputs.check_arguments(call, arguments, inputs.GENERATION_ARGUMENTS)
    config, batch = model.config, arguments["batch"]
    flow = arguments.get("motion_flow", DEFAULT_FLOW)
    conditions = inputs.conditions(config, call, arguments, recorded, flow=flow)
    options = inputs.sampling_config(arguments)
    noise = inputs.noise(config, schedule, options, call, recorded)
    given = recorded[f"{call}.in.image_latent"] if arguments.get("image_latent") else None
    image = None if given is None else inputs.channels_last(given)
    frames = arguments["max_latent_length"]
    latents = generate(
        model,
        schedule,
        conditions,
        frames=frames,
        config=options,
        keys=jax.vmap(seed_key)(jnp.arange(batch)),  # order and noise are the recorded ones
        given=None if image is None else image[:, None],
        order=noise.order,
        noise=noise,
    )
    results = {
        "latents": np.moveaxis(np.asarray(latents), -1, 1),
        "num_preds": set_sizes(config.num_tokens, options.num_inference_steps),
        **first_calls(model, schedule, conditions, frames, options, image, noise),
    }
    return {f"{call}.{name}": np.asarray(value) for name, value in results.items()}


def first_calls(
    model: Nova,
    schedule: Schedule,
    conditions: Conditions,
    frames: int,
    options: SamplingConfig,
    image: jax.Array | None,
    noise: GivenNoise,
) -> dict[str, jax.Array]:
    """Outputs of the three stages at their first call, guidance passes stacked on the batch."""
    config, guidance, order = model.config, options.guidance, noise.order
    count = int(set_sizes(config.num_tokens, options.num_inference_steps)[0])
    steps = schedule.sampling_steps(options.num_diffusion_steps, options.flow_shift)

    @nnx.jit
    def run(model: Nova) -> dict[str, jax.Array]:
        passes, batch = guidance.passes, order.shape[0] * guidance.passes
        keys = jax.vmap(seed_key)(jnp.zeros(len(order), jnp.int32))  # nothing is drawn from them
        start = functools.partial(begin, config, conditions, None, keys, slots=frames)
        indicators = describe(model, start(), guidance)
        outputs = {"first.video_encoder": indicators}
        if image is not None:  # frame 0 is given, so the first frame drawn is frame 1
            indicators = describe(model, start(image[:, None]), guidance)
        orders = jnp.concatenate([order] * passes)
        none_visible = jnp.zeros((batch, 0, config.token_dim))
        features = model.spatial_decoder(none_visible, 0, orders, indicators)
        outputs["first.image_encoder"] = to_row_major(features, orders)
        x = noise.initial(0, 0)
        head = model.diffusion_head
        condition = head.feature_embed(features[:, :count])
        condition = condition + head.embed_step(jnp.asarray(steps.time[:1]))[None]
        # With guidance cut off from the first step on, only the conditional pass is run.
        if passes > 1 and steps.time[0] < guidance.trunc:
            passes, condition = 1, condition[: order.shape[0]]
        x = jnp.concatenate([x] * passes)
        predictions = head(x[:, :count], condition).astype(jnp.float32)
        outputs["first.image_decoder"] = to_row_major(
            jnp.concatenate([predictions, x[:, count:]], axis=1), orders[: x.shape[0]]
        )
        return outputs

    return run(model)


def run_training(
    model: Nova,
    schedule: Schedule,
    arguments: Mapping[str, Any],
    recorded: Arrays,
    mesh: MeshLayout | None = None,
) -> Arrays:
    """Repeats the recorded training steps: losses, masks, gradients, parameters, activations.

    They run on a mesh that the model lies on, by default of the first device.
    """
    inputs.check_arguments("train", arguments, inputs.TRAINING_ARGUMENTS)
    config = model.config
    flow = arguments.get("motion_flow")
    conditions = inputs.conditions(config, "train", arguments, recorded, flow=flow)
    batch = {"latents": inputs.videos(recorded["train.in.latents"])}
    batch |= {name: value for name, value in vars(conditions).items() if value is not None}
    options = OptimizerConfig(
        learning_rate=arguments["lr"],
        b1=arguments["betas"][0],
        b2=arguments["betas"][1],
        eps=arguments.get("eps", 1e-8),
        weight_decay=arguments["weight_decay"],
    )
    optimizer = make_optimizer(options, arguments["steps"])
    graph, params, frozen = split_model(model, config)
    state = TrainState(jnp.zeros((), jnp.int32), params, frozen, optimizer.init(params), params)
    trainer = Trainer(
        blueprint=Blueprint(graph),
        mesh=make_mesh(jax.devices()[:1]) if mesh is None else mesh,
        schedule=schedule,
        optimizer=optimizer,
        learning_rate=learning_rate_schedule(options, arguments["steps"]),
    )
    train_step = jax.jit(observed(trainer.step, look=lambda x: x))
    results: Arrays = {}
    for step in range(arguments["steps"]):
        name = f"train.step{step}"
        draws = inputs.draws(config, name, arguments["loss_repeat"], recorded)
        (state, metrics, parts, gradients), places = train_step(state, batch, draws)
        if step == 0:
            acts = _activations(places, config, draws)
            # The release embeds all tokens before it takes the visible ones.
            tokens = rearrange(model.tokens(batch["latents"]), "b t n p -> (b t) n p")
            embed: Any = nnx.jit(lambda model, tokens: model.spatial_decoder.patch_embed(tokens))
            acts["image_encoder.patch_embed"] = np.asarray(embed(model, tokens))
            results |= {f"train.act.{key}": value for key, value in acts.items()}
        hidden = jnp.broadcast_to(parts.weight[None, :, None], (*draws.order.shape, 1))
        results[f"{name}.mask"] = np.asarray(to_row_major(hidden, draws.order))
        results[f"{name}.loss"] = np.asarray(metrics["loss"])
        results[f"{name}.loss_t2i"] = np.asarray(metrics["loss_first"])
        results[f"{name}.loss_i2i"] = np.asarray(metrics["loss_rest"])
        for key, value in rules.to_released(config, flatten_dict(gradients)):
            results[f"{name}.grad.{key}"] = value
            results[f"{name}.grad_norm.{key}"] = _norm(value)
        for key, value in rules.to_released(config, flatten_dict(state.params)):
            results[f"{name}.param_norm.{key}"] = _norm(value)
    return results


def _activations(places: Places, config: NovaConfig, draws: TrainingDraws) -> Arrays:
    """What places of the forward pass gave, by released names and as the release lays it out.

    The spatial decoder has tokens in reveal order, and pads those that its first half sees to a
    fixed number; so has the diffusion head, with noisy copies on an axis of their own. The release
    pads nothing, has only the visible tokens in reveal order, and counts copies as frames.
    """
    indicators, half = config.indicator_tokens, config.spatial_decoder_size.depth // 2
    frames, inverse = np.arange(len(draws.order))[:, None], np.argsort(draws.order, axis=1)
    results: Arrays = {}
    for place, value in places.items():
        stack, _, index = place.rpartition(".")
        x = np.asarray(value)
        if stack == "spatial_decoder.encoder_blocks":
            x = x[:, : indicators + int(draws.num_visible)]
        elif stack == "spatial_decoder.decoder_blocks":
            rows = x[:, indicators:][frames, inverse]
            x, index = np.concatenate([x[:, :indicators], rows], axis=1), str(half + int(index))
        elif place == "spatial_decoder" or place.startswith("diffusion_head"):
            x = rearrange(x[..., frames, inverse, :], "... f n d -> (... f) n d")
        if place in _PLACES:
            results[_PLACES[place]] = x
        elif stack in _PLACES:
            results[f"{_PLACES[stack]}.{index}"] = x
    return results


def _norm(array: np.ndarray) -> np.ndarray:
    return np.asarray(np.linalg.norm(array.astype(np.float64)))


def check(
    directories: Sequence[str | Path],
    on_folder: Callable[[str], None] = lambda folder: None,
    *,
    live: bool = False,
    dtype: str = "float32",
) -> tuple[list[Row], list[str]]:
    """Runs all folders; `on_folder` is called before each.

    In another type than float32 no tolerance holds but that results are numbers.
    """
    rows: list[Row] = []
    missing: list[str] = []
    with jax.default_matmul_precision("highest"):
        for directory in directories:
            on_folder(str(directory))
            run = check_live if live else check_folder
            new_rows, new_missing = run(Path(directory), dtype)
            free: dict[str, Any] = {"tolerance": math.inf, "differing": 0.0}
            if dtype != "float32":
                new_rows = [dataclasses.replace(row, **free) for row in new_rows]
            rows += new_rows
            missing += [f"{directory}/{name}" for name in new_missing]
    return rows, missing

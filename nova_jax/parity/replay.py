"""Repeats what was recorded on the PyTorch release: training, generation, parts, pipelines."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import safetensors.numpy
from einops import rearrange, repeat
from flax import nnx
from flax.traverse_util import flatten_dict
from safetensors import SafetensorError

from nova_jax.autoencoders.pixels import to_float
from nova_jax.checkpoints import diffusers, rules
from nova_jax.checkpoints.open import open_checkpoint
from nova_jax.errors import NovaError
from nova_jax.models.embeddings import DEFAULT_FLOW
from nova_jax.models.nova import Conditions, Nova
from nova_jax.parity.compare import Arrays, Row, compare
from nova_jax.pipeline import NovaPipeline
from nova_jax.sampling import frames as sampling
from nova_jax.sampling.denoise import GivenNoise
from nova_jax.sampling.guidance import GuidanceConfig
from nova_jax.sampling.order import set_sizes, to_reveal_order, to_row_major
from nova_jax.sampling.schedules import Schedule
from nova_jax.training.loss import TrainingDraws, training_loss
from nova_jax.training.optimizer import OptimizerConfig, make_optimizer, split_model

# Arguments of a recorded generation, by their names in the release.
_CALL_ARGUMENTS = {
    "batch",
    "max_latent_length",
    "num_inference_steps",
    "num_diffusion_steps",
    "guidance_scale",
    "min_guidance_scale",
    "guidance_trunc",
    "guidance_renorm",
    "image_guidance_scale",
    "spatiotemporal_guidance_scale",  # accepted by the release, and without effect
    "motion_flow",
    "fps",
    "flow_shift",
    "image_latent",
}


_TRAIN_ARGUMENTS = {
    "batch",
    "frames",
    "loss_repeat",
    "lr",
    "betas",
    "eps",
    "weight_decay",
    "motion_flow",
    "fps",
    "steps",
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
    recording = record(directory)
    pipeline = NovaPipeline.from_pretrained(directory, dtype=dtype)
    computed = run_pipeline(pipeline, "live", recording.arguments, recording.call, first=True)
    computed |= run_autoencoder(directory / "vae", recording.autoencoder, dtype)
    if recording.text_encoder:
        computed |= run_phi(directory / "text_encoder", recording.text_encoder, dtype)
    recorded = recording.call | recording.autoencoder | recording.text_encoder
    return compare(str(directory), recorded, computed, {})


def run_autoencoder(directory: Path, recorded: Arrays, dtype: str) -> Arrays:
    """Encodes the recorded pixels, and decodes the recorded latents."""
    codec = diffusers.load_autoencoder(directory, dtype=dtype)
    results: Arrays = {}
    for name, pixels in recorded.items():
        if not name.endswith(".in.pixels"):
            continue
        case = name.removesuffix(".in.pixels")
        x = _videos(pixels)
        latents = recorded[f"{case}.latents"]
        computed = {
            "moments": codec.moments(x),
            "latents": codec.encode(x),
            "decoded": codec.decode(_videos(latents)),
        }
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
    config = pipeline.config
    options = dict(arguments)
    steps = len(set_sizes(config.num_tokens, arguments["num_inference_steps"]))
    schedule = pipeline.schedule.sampling_steps(
        arguments["num_diffusion_steps"], arguments.get("flow_shift")
    )
    order = jnp.asarray(recorded[f"{call}.in.order"], jnp.int32)
    step_noise = recorded.get(f"{call}.in.step_noise")
    options["order"] = order
    options["noise"] = GivenNoise(
        images=_channels_last(recorded[f"{call}.in.noise"]),
        step_images=None if step_noise is None else _channels_last(step_noise),
        order=order,
        steps=steps,
        draws=schedule.noise_draws,
        patch=config.patch_size,
    )
    if (image := recorded.get(f"{call}.in.image")) is not None:
        mean, deviation = pipeline.codec.posterior(to_float(image)[None, None])
        options["latents"] = mean + deviation * _videos(recorded[f"{call}.in.vae_noise"])
    pixels = recorded.get(f"{call}.pixels")
    output = pipeline(**options, output_type="latent" if pixels is None else "np")
    results = {"latents": np.moveaxis(output.latents, -1, 1)}
    if pixels is not None:
        results["pixels"] = output.frames if pixels.ndim == 5 else output.frames[:, 0]
    if first:
        sampling_config = sampling.SamplingConfig(
            num_inference_steps=arguments["num_inference_steps"],
            num_diffusion_steps=arguments["num_diffusion_steps"],
            guidance=GuidanceConfig(scale=arguments["guidance_scale"]),
        )
        outputs = first_calls(
            pipeline.model,
            pipeline.schedule,
            pipeline.conditions(arguments["prompt"], pipeline.motion_flow),
            output.latents.shape[1],
            sampling_config,
            None,
            order,
            options["noise"],
        )
        results |= {name: np.asarray(value) for name, value in outputs.items()}
    return {f"{call}.{name}": value for name, value in results.items()}


def _videos(x: np.ndarray) -> jax.Array:
    """[B, C, H, W] or [B, C, T, H, W] as [B, T, H, W, C]."""
    return jnp.asarray(np.moveaxis(x[:, :, None] if x.ndim == 4 else x, 1, -1))


def run_generation(
    model: Nova, schedule: Schedule, call: str, arguments: Mapping[str, Any], recorded: Arrays
) -> Arrays:
    """Repeats a recorded generation: its latents and the outputs of each stage's first call."""
    _check_arguments(call, arguments, _CALL_ARGUMENTS)
    config, batch = model.config, arguments["batch"]
    conditions = _conditions(model, f"{call}.in", batch, recorded)
    if config.is_video and arguments.get("motion_flow", DEFAULT_FLOW) is not None:
        flow, fps = arguments.get("motion_flow", DEFAULT_FLOW), arguments.get("fps")
        conditions = dataclasses.replace(
            conditions, flow=_per_sample(flow, batch), fps=_per_sample(fps, batch)
        )
    options = sampling.SamplingConfig(
        num_inference_steps=arguments["num_inference_steps"],
        num_diffusion_steps=arguments["num_diffusion_steps"],
        guidance=GuidanceConfig(
            scale=arguments.get("guidance_scale", 1.0),
            min_scale=arguments.get("min_guidance_scale"),
            trunc=arguments.get("guidance_trunc") or 0.0,
            renorm=arguments.get("guidance_renorm", 1.0),
            image_scale=arguments.get("image_guidance_scale"),
        ),
        flow_shift=arguments.get("flow_shift"),
    )
    sizes = set_sizes(config.num_tokens, options.num_inference_steps)
    order = jnp.asarray(recorded[f"{call}.in.order"], jnp.int32)
    step_noise = recorded.get(f"{call}.in.step_noise")
    steps = schedule.sampling_steps(options.num_diffusion_steps, options.flow_shift)
    noise = GivenNoise(
        images=_channels_last(recorded[f"{call}.in.noise"]),
        step_images=None if step_noise is None else _channels_last(step_noise),
        order=order,
        steps=len(sizes),
        draws=steps.noise_draws,
        patch=config.patch_size,
    )
    image = None
    if arguments.get("image_latent"):
        image = _channels_last(recorded[f"{call}.in.image_latent"])
    frames = arguments["max_latent_length"]
    latents = sampling.generate(
        model,
        schedule,
        conditions,
        frames=frames,
        config=options,
        keys=jax.random.split(jax.random.key(0), batch),
        given=None if image is None else image[:, None],
        order=order,
        noise=noise,
    )
    results = {
        "latents": np.moveaxis(np.asarray(latents), -1, 1),
        "num_preds": sizes,
        **first_calls(model, schedule, conditions, frames, options, image, order, noise),
    }
    return {f"{call}.{name}": np.asarray(value) for name, value in results.items()}


def first_calls(
    model: Nova,
    schedule: Schedule,
    conditions: Conditions,
    frames: int,
    options: sampling.SamplingConfig,
    image: jax.Array | None,
    order: jax.Array,
    noise: GivenNoise,
) -> dict[str, jax.Array]:
    """Outputs of the three stages at their first call, guidance passes stacked on the batch."""
    config, guidance = model.config, options.guidance
    stacked = sampling.stack_passes(
        conditions, sampling.unconditional(conditions, config), guidance
    )
    count = int(set_sizes(config.num_tokens, options.num_inference_steps)[0])
    steps = schedule.sampling_steps(options.num_diffusion_steps, options.flow_shift)

    @nnx.jit
    def run(model: Nova) -> dict[str, jax.Array]:
        passes = guidance.passes
        encoder_options: dict[str, Any] = {"guidance": guidance, "frames": frames}
        batch, length = order.shape[0] * passes, model.embed_conditions(stacked).shape[1]
        cache = model.temporal_encoder.empty_cache(batch, frames, length)
        indicators, cache = sampling.begin(model, stacked, cache, **encoder_options)
        outputs = {"first.video_encoder": indicators}
        if image is not None:  # frame 0 is given, so the first frame drawn is frame 1
            indicators, _ = sampling.advance(
                model, image, indicators, jnp.asarray(1), cache, **encoder_options
            )
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
    model: Nova, schedule: Schedule, arguments: Mapping[str, Any], recorded: Arrays
) -> Arrays:
    """Repeats the recorded training steps: losses, masks, gradients, parameters, activations."""
    _check_arguments("train", arguments, _TRAIN_ARGUMENTS)
    config, batch = model.config, arguments["batch"]
    given = recorded["train.in.latents"]
    given = given[:, :, None] if given.ndim == 4 else given
    latents = jnp.asarray(rearrange(given, "b c t h w -> b t h w c"))
    conditions = _conditions(model, "train.in", batch, recorded)
    if config.is_video and arguments.get("motion_flow") is not None:
        conditions = dataclasses.replace(
            conditions,
            flow=_per_sample(arguments["motion_flow"], batch),
            fps=_per_sample(arguments.get("fps"), batch),
        )
    optimizer = make_optimizer(
        OptimizerConfig(
            learning_rate=arguments["lr"],
            b1=arguments["betas"][0],
            b2=arguments["betas"][1],
            eps=arguments.get("eps", 1e-8),
            weight_decay=arguments["weight_decay"],
        ),
        arguments["steps"],
    )
    graph, params, frozen = split_model(model, config)
    state = optimizer.init(params)

    @jax.jit
    def train_step(params: Any, state: Any, draws: TrainingDraws) -> tuple[Any, ...]:
        def loss(params: Any) -> Any:
            model = nnx.merge(graph, params, frozen)
            return training_loss(model, schedule, latents, conditions, draws)

        (_, parts), gradients = jax.value_and_grad(loss, has_aux=True)(params)
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state, gradients, parts

    results: Arrays = {}
    for step in range(arguments["steps"]):
        name = f"train.step{step}"
        draws = _draws(model, name, arguments["loss_repeat"], recorded)
        if step == 0:
            initial = nnx.merge(graph, params, frozen)
            acts = activations(initial, schedule, latents, conditions, draws)
            results |= {f"train.act.{key}": value for key, value in acts.items()}
        params, state, gradients, parts = train_step(params, state, draws)
        hidden = jnp.broadcast_to(parts.weight[None, :, None], (*draws.order.shape, 1))
        results[f"{name}.mask"] = np.asarray(to_row_major(hidden, draws.order))
        results[f"{name}.loss"] = np.asarray(parts.loss)
        results[f"{name}.loss_t2i"] = np.asarray(parts.first)
        results[f"{name}.loss_i2i"] = np.asarray(parts.rest)
        for key, value in _released(config, gradients).items():
            results[f"{name}.grad.{key}"] = value
            results[f"{name}.grad_norm.{key}"] = _norm(value)
        for key, value in _released(config, params).items():
            results[f"{name}.param_norm.{key}"] = _norm(value)
    return results


def activations(
    model: Nova,
    schedule: Schedule,
    latents: jax.Array,
    conditions: Conditions,
    draws: TrainingDraws,
) -> Arrays:
    """Outputs of modules and of every block in a training forward pass, by released names.

    The blocks run one by one here, on the inputs that the real forward pass gives them.
    """
    config = model.config
    batch, frames = latents.shape[:2]
    visible = int(draws.num_visible)

    @nnx.jit
    def run(model: Nova) -> dict[str, jax.Array]:
        out: dict[str, jax.Array] = {}
        # Temporal encoder.
        encoder, condition = model.temporal_encoder, model.embed_conditions(conditions)
        length = condition.shape[1]
        out["text_embed" if config.text_dim else "label_embed"] = condition[:, : config.text_length]
        if frames > 1:
            out["video_encoder.patch_embed"] = encoder.embed_frames(latents[:, :-1])
        x = encoder.sequence(latents, condition)
        rotary, mask = encoder.rotary(frames, length), encoder.mask(frames, length)
        x = _blocks(out, "video_encoder", encoder.blocks, 0, x, rotary, mask)
        features = encoder.norm(x[:, length:])
        out["video_encoder"] = features
        features = rearrange(features, "b (t m) d -> b t m d", t=frames)
        indicators = encoder.mix(features)
        if encoder.mixer is not None and frames > 1:
            out["video_encoder.mixer"] = indicators[:, 1:]
        # Spatial decoder, on exactly the visible tokens.
        decoder, order = model.spatial_decoder, draws.order
        indicators = rearrange(indicators, "b t m d -> (b t) m d")
        m, rotary = indicators.shape[1], decoder.rotary(order)
        tokens = rearrange(model.tokens(latents), "b t n p -> (b t) n p")
        out["image_encoder.patch_embed"] = decoder.patch_embed(tokens)
        tokens = to_reveal_order(tokens, order)
        seen = decoder.embed_visible(tokens[:, :visible], order)
        x = jnp.concatenate([indicators, seen], axis=1)
        seen_rotary = None if rotary is None else rotary[:, : m + visible]
        x = _blocks(out, "image_encoder", decoder.encoder_blocks, 0, x, seen_rotary, None)
        x = jnp.concatenate([x, decoder.mask_tokens(order)[:, visible:]], axis=1)
        half = decoder.encoder_blocks.depth
        late: dict[str, jax.Array] = {}
        x = _blocks(late, "image_encoder", decoder.decoder_blocks, half, x, rotary, None)
        for name, value in late.items():  # to the release's row-major order
            rows = to_row_major(value[:, m:], order)
            out[name] = jnp.concatenate([value[:, :m], rows], axis=1)
        features = decoder.norm(x[:, m:])
        out["image_encoder"] = to_row_major(features, order)
        # Diffusion head, on row-major tokens, copies outermost.
        head, table = model.diffusion_head, schedule.training_table()
        tokens = rearrange(model.tokens(latents), "b t n p -> (b t) n p")
        index = draws.timestep_index
        columns = (table.signal, table.noise, table.time)
        signal, spread, time = (jnp.asarray(column)[index] for column in columns)
        x = signal[..., None] * tokens[None] + spread[..., None] * draws.noise
        x = head.patch_embed(x)
        out["image_decoder.patch_embed"] = x
        z = repeat(out["image_encoder"], "f n d -> r f n d", r=index.shape[0])
        condition = head.feature_embed(z) + head.embed_step(time)
        out["image_decoder.time_cond_embed"] = condition
        silu = jax.nn.silu(condition)
        x = _blocks(out, "image_decoder", head.blocks, 0, x, silu)
        scale, shift = jnp.split(head.final_modulation(silu), 2, axis=-1)
        out["image_decoder.norm"] = head.final_norm(x) * (1 + scale) + shift
        out["image_decoder"] = head.out(out["image_decoder.norm"])
        for name, value in out.items():
            if name.startswith("image_decoder"):
                out[name] = rearrange(value, "r f n d -> (r f) n d")
        return out

    return {name: np.asarray(value) for name, value in run(model).items()}


def _blocks(
    out: dict[str, jax.Array], stage: str, stack: Any, first: int, x: Any, *shared: Any
) -> jax.Array:
    for i, block in enumerate(stack.unstacked(), start=first):
        x = out[f"{stage}.blocks.{i}"] = block(x, *shared)
    return x


def _check_arguments(call: str, arguments: Mapping[str, Any], known: Iterable[str]) -> None:
    if unknown := sorted(set(arguments) - set(known)):
        raise NovaError(f"case.json: {call} has the unknown argument {unknown[0]!r}")


def _channels_last(array: np.ndarray) -> jax.Array:
    """[..., C, h, w] to [..., h, w, C]."""
    return jnp.asarray(np.moveaxis(array, -3, -1))


def _per_sample(value: float | Sequence[float] | None, batch: int) -> jax.Array | None:
    if value is None:
        return None
    return jnp.broadcast_to(jnp.asarray(value, jnp.float32), (batch,))


def _conditions(model: Nova, prefix: str, batch: int, recorded: Arrays) -> Conditions:
    """Text or class conditions; prompts are recorded unpadded."""
    config = model.config
    if config.text_dim is None:
        return Conditions(label=jnp.asarray(recorded[f"{prefix}.labels"], jnp.int32))
    assert config.text_length is not None
    text = np.zeros((batch, config.text_length, config.text_dim), np.float32)
    length = np.zeros(batch, np.int32)
    for i in range(batch):
        prompt = recorded[f"{prefix}.text.{i}"][: config.text_length]
        length[i] = len(prompt)
        text[i, : len(prompt)] = prompt
    return Conditions(text=jnp.asarray(text), text_length=jnp.asarray(length))


def _draws(model: Nova, step: str, repeats: int, recorded: Arrays) -> TrainingDraws:
    tokens = model.config.num_tokens
    order = np.argsort(recorded[f"{step}.in.mask_uniform"][..., 0], axis=1, kind="stable")
    ratio = float(recorded[f"{step}.in.mask_ratio"][0])
    visible = int(np.round((1 - ratio) * tokens))
    noise = rearrange(recorded[f"{step}.in.noise"], "(r f) n p -> r f n p", r=repeats)
    index = rearrange(recorded[f"{step}.in.timestep_index"], "(r f) n -> r f n", r=repeats)
    return TrainingDraws(
        order=jnp.asarray(order, jnp.int32),
        num_visible=jnp.asarray(visible, jnp.int32),
        noise=jnp.asarray(noise),
        timestep_index=jnp.asarray(index, jnp.int32),
    )


def _norm(array: np.ndarray) -> np.ndarray:
    return np.asarray(np.linalg.norm(array.astype(np.float64)))


def _released(config: Any, variables: Any) -> Arrays:
    """Our variables, a nested dict, under released names."""
    return dict(rules.to_released(config, flatten_dict(variables)))


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
            if dtype != "float32":
                new_rows = [
                    dataclasses.replace(row, tolerance=math.inf, differing=0.0) for row in new_rows
                ]
            rows += new_rows
            missing += [f"{directory}/{name}" for name in new_missing]
    return rows, missing

"""What a user gives to a pipeline, of whatever kind, as the pipeline takes it.

Letters as in `nova_jax.pipeline`; g latent frames are given. Single numbers and choices are the
business of `nova_jax.config.convert`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int, Key

from nova_jax.autoencoders.interface import VideoCodec
from nova_jax.config import Count, Range, Seed, convert, shown
from nova_jax.distributed.mesh import MeshLayout
from nova_jax.errors import NovaError
from nova_jax.models.config import NovaConfig
from nova_jax.request import FirstFrames, Prompt
from nova_jax.sampling.denoise import NoiseSource
from nova_jax.sampling.keys import seed_key

#: Types that a model can compute in.
DType = Literal["float32", "bfloat16", "float16"]
#: Of the transformer's parameters; the last one is of the matrices of blocks alone.
ParamDType = Literal["float32", "bfloat16", "float16", "int8"]


def check_dtype(value: Any, name: str) -> DType:
    """The name of a type of floats, which may be given by it or as NumPy and JAX have it.

    Raises:
        NovaError: there is no such type, or it is none to compute in.
    """
    return convert(DType, _type_name(value), name)


def check_param_dtype(value: Any, dtype: DType) -> ParamDType:
    """The same of the type that the transformer's parameters are kept in, by default `dtype`.

    Raises:
        NovaError: see `check_dtype`; "int8" is one, too.
    """
    return dtype if value is None else convert(ParamDType, _type_name(value), "param_dtype")


def _type_name(value: Any) -> Any:
    """The name of what is a type, and anything else as it is, to be refused by `convert`."""
    with contextlib.suppress(TypeError, ValueError):
        return value if value is None else jnp.dtype(value).name
    return value


def check_mesh(mesh: Any) -> MeshLayout | None:
    """What `nova_jax.distributed.mesh.make_mesh` gives, or nothing.

    Raises:
        NovaError: it is something else.
    """
    if mesh is None or isinstance(mesh, MeshLayout):
        return mesh
    raise NovaError(f"mesh is {shown(mesh)}; make one with nova_jax.distributed.mesh.make_mesh")


def check_devices(devices: Any) -> list[jax.Device]:
    """The devices to spread samples over, by default all of this process.

    Raises:
        NovaError: there are none, or they are something else.
    """
    given = jax.local_devices() if devices is None else _listed(devices)
    if given and all(isinstance(device, jax.Device) for device in given):
        return given
    raise NovaError(f"devices is {shown(devices)}; give some of jax.devices()")


def check_prompts(
    prompts: Any, embeds: Sequence[np.ndarray] | None, what: str, config: NovaConfig
) -> list[Prompt]:
    """One or several prompts or text features, of a kind that the model takes.

    Raises:
        NovaError: there are none, of both kinds, or of the wrong one.
    """
    given = [] if prompts is None else _listed(prompts)
    if given and embeds is not None:
        raise NovaError(f"a {what} and its embeddings are given; give one of them")
    if not given and (embeds is None or (isinstance(embeds, Sequence) and not embeds)):
        raise NovaError(f"no {what} given; give at least one")
    if embeds is None:
        return [_check_prompt(prompt, what, config) for prompt in given]
    try:
        rows = [check_numbers(embed, f"{what} embeddings") for embed in embeds]
    except TypeError:
        raise NovaError(f"{what} embeddings are {shown(embeds)}; give a list of arrays") from None
    for embed in rows:
        if embed.ndim != 2 or embed.shape[1] != config.text_dim:
            raise NovaError(
                f"{what} embeddings have shape {list(embed.shape)}; "
                f"this model takes [rows, {config.text_dim}]"
            )
    return rows


def _check_prompt(prompt: Any, what: str, config: NovaConfig) -> Prompt:
    if config.num_classes is not None:
        label = Annotated[int, Range(0, config.num_classes - 1)]
        return convert(label, prompt, f"{what}, a class number,")
    if not isinstance(prompt, str):
        raise NovaError(f"{what} {shown(prompt)}: this model takes text")
    try:
        prompt.encode()
    except UnicodeEncodeError:
        raise NovaError(f"{what} {shown(prompt)} is no text; write it in UTF-8") from None
    return prompt


def check_negative(
    prompts: Any, embeds: Sequence[np.ndarray] | None, count: int, config: NovaConfig
) -> list[Prompt] | None:
    """A negative prompt for each of so many prompts; None where there is none.

    Raises:
        NovaError: as `check_prompts`, or there are some, but not as many.
    """
    if embeds is None and (prompts is None or (isinstance(prompts, Sequence) and not prompts)):
        return None
    negative = check_prompts(prompts, embeds, "negative prompt", config)
    return _for_each(negative, count, "negative prompts")


def check_seeds(seed: int | Sequence[int], key: Any, count: int) -> list[Key[jax.Array, ""]]:
    """The key of the seed of each of so many prompts.

    Raises:
        NovaError: one is no seed or no key, or there are several, but not as many.
    """
    if key is None:
        seeds = [convert(Seed, each, "seed") for each in _listed(seed)]
        return [seed_key(each) for each in _for_each(seeds, count, "seeds")]
    typed = isinstance(key, jax.Array) and jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
    if not typed or key.shape:
        raise NovaError(f"key is {shown(key)}; make one by jax.random.key(seed)")
    return [key] * count


def check_frames(
    max_latent_length: Any,
    num_frames: Any,
    first: FirstFrames | None,
    *,
    own: int,
    codec: VideoCodec,
    config: NovaConfig,
) -> int:
    """Latent frames, the given first ones among them.

    Unless their number or that of frames is said, there are `own`; where as many are given, so many
    more, but for models whose own is a picture; where frames are painted anew, just these.

    Raises:
        NovaError: both are said, the model cannot make so many, or nothing is left to draw.
    """
    if max_latent_length is not None and num_frames is not None:
        raise NovaError("max_latent_length and num_frames are given; give one of them")
    given = first.mean.shape[1] if first else 0
    edited = first is not None and first.edit is not None
    frames = given if edited else own + given * (given >= own > 1)
    if max_latent_length is not None:
        frames = convert(Count, max_latent_length, "max_latent_length")
    if num_frames is not None:
        num_frames = convert(Count, num_frames, "num_frames")
        frames = codec.latent_frames(num_frames)
        if (fitting := codec.pixel_frames(frames)) != num_frames:
            raise NovaError(f"this model cannot make {num_frames} frames; ask for {fitting}")
    if frames > 1 and not config.is_video:
        raise NovaError(f"an image model cannot make {frames} frames; ask for 1")
    if given > frames or (given == frames and not edited):
        raise NovaError(
            f"{given} latent frames are given and {frames} asked for; nothing is "
            "left to generate; ask for more, or say by a mask what is painted anew"
        )
    return frames


def check_order(order: Any, count: int, config: NovaConfig) -> Int[jax.Array, "b n"] | None:
    """Reveal orders of all samples, if there are any.

    Raises:
        NovaError: they are not of this model.
    """
    if order is None:
        return None
    shape, given = (count, config.num_tokens), np.asarray(order)
    if given.shape != shape or (np.sort(given) != np.arange(shape[1])).any():
        raise NovaError(
            f"order is {shown(order)}; it must be {list(shape)}, a permutation of the tokens in "
            "each row"
        )
    return jnp.asarray(given, jnp.int32)


def check_noise(noise: Any) -> NoiseSource | None:
    """A source of noise, if there is any.

    Raises:
        NovaError: it is something else.
    """
    if noise is not None and not isinstance(noise, NoiseSource):
        raise NovaError(f"noise is {shown(noise)}; give a source, as in nova_jax.sampling.denoise")
    return noise


def _listed(values: Any) -> list[Any]:
    """One or several values as a list."""
    if isinstance(values, np.ndarray):
        return list(np.atleast_1d(values))
    several = isinstance(values, Sequence) and not isinstance(values, str | bytes)
    return list(values) if several else [values]


def _for_each(values: list[Any], count: int, what: str) -> list[Any]:
    """The one value for each of so many prompts, or all of them."""
    if len(values) not in (1, count):
        raise NovaError(f"{len(values)} {what} for {count} prompts; give one, or one for each")
    return values * count if len(values) == 1 else values


def check_numbers(values: Any, what: str) -> Float[np.ndarray, "*_"]:
    """Real and finite numbers, as float32.

    Raises:
        NovaError: they are something else.
    """
    try:
        given = np.asarray(values)
    except (TypeError, ValueError):
        given = np.asarray(None)
    if not any(jnp.issubdtype(given.dtype, kind) for kind in (jnp.floating, jnp.integer)):
        raise NovaError(f"{what} are {shown(values)}; they must be an array of real numbers")
    with np.errstate(over="ignore"):
        numbers = given.astype(np.float32)
    if not np.isfinite(numbers).all():
        raise NovaError(f"{what} are not all finite in float32; leave out nan and inf")
    return numbers

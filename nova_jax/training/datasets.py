"""The registry of datasets: what ``config.dataset.type`` can be, and how each is built."""

import dataclasses
from collections.abc import Callable

from nova_jax.autoencoders.interface import VideoCodec
from nova_jax.data.latents import LatentsConfig, LatentsDataset
from nova_jax.data.pipeline import ClipDataset, ClipSource, Dataset
from nova_jax.data.raw import RawConfig, RawSource
from nova_jax.data.synthetic import SyntheticConfig, SyntheticDataset
from nova_jax.data.transforms import Encode
from nova_jax.digits.clips import DigitsConfig, DigitsSource
from nova_jax.digits.scenes import ScenesConfig, ScenesSource
from nova_jax.errors import NovaError
from nova_jax.models.config import NovaConfig
from nova_jax.text.interface import TextEncoder

#: Told apart by their field `type`; without one, a config means the first.
DatasetConfig = DigitsConfig | ScenesConfig | SyntheticConfig | LatentsConfig | RawConfig


def build_dataset(
    config: DatasetConfig,
    model: NovaConfig,
    codec: VideoCodec | None,
    text_encoder: TextEncoder | None,
    *,
    keep_captions: bool = False,
) -> Dataset:
    """Builds the dataset of a run.

    Args:
      config: which one.
      model: what it trains.
      codec, text_encoder: of the run; a dataset that brings latents and features needs neither.
      keep_captions: batches also have "caption" and "dropped", for people to read, where there are
        captions.

    Raises:
      NovaError: it needs a codec or a text encoder, and there is none.
    """
    match config:
        case SyntheticConfig():
            return SyntheticDataset(config, model)
        case LatentsConfig():
            return LatentsDataset(config, model, codec, text_encoder, keep_captions=keep_captions)
    if codec is None or text_encoder is None:
        missing = "codec" if codec is None else "text_encoder"
        raise NovaError(
            f"config.{missing} is missing; dataset {config.type} is of pixels and words"
        )
    source: ClipSource
    held_out: Callable[[int], ClipSource]
    match config:
        case DigitsConfig():
            source = DigitsSource(config)
            held_out = lambda count: DigitsSource(  # noqa: E731
                dataclasses.replace(config, split="held_out", num_clips=count)
            )
        case ScenesConfig():
            source = ScenesSource(config)
            held_out = lambda count: ScenesSource(  # noqa: E731
                dataclasses.replace(config, split="held_out", num_scenes=count)
            )
        case RawConfig():
            source = RawSource(config)
            held_out = lambda count: RawSource(config, count)  # noqa: E731
    return ClipDataset(
        source,
        held_out,
        Encode(
            codec=codec,
            text_encoder=text_encoder,
            text_length=model.text_length or 0,
            keep_captions=keep_captions,
        ),
        {
            "latent_size": (tuple(side // codec.stride for side in config.size), "codec"),
            "frames": (codec.latent_frames(config.frames), "dataset"),
        },
    )

"""The tables of codecs: what can be named, and what stands behind the name.

One of your own is written in a file beside this one and entered here. If it is arithmetic alone, it
is a frozen dataclass of its settings behind `interface.VideoCodec`, with its name as `type`. If it
has parameters, it is a `convolution.Autoencoder` with a dataclass of what its ``config.json`` says,
and its modules are named as the tensors in its files. Loading, preparing, training, generating and
exporting need nothing else.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from nova_jax.autoencoders.cogvideox import AutoencoderCogVideoXConfig, AutoencoderKLCogVideoX
from nova_jax.autoencoders.dct import DCTCodec
from nova_jax.autoencoders.interface import VideoCodec
from nova_jax.autoencoders.kl import AutoencoderKL, AutoencoderKLConfig
from nova_jax.autoencoders.ltx import AutoencoderKLLTXVideo, AutoencoderLTXConfig
from nova_jax.autoencoders.pixels import PixelCodec


class Registered(NamedTuple):
    """An autoencoder: the dataclass of its sizes, and ``network(config, dtype=, rngs=)``."""

    config: type[Any]
    network: type[Any]


#: Codecs without parameters, by the ``type`` that a recipe calls them.
CODECS: dict[str, type[VideoCodec]] = {codec.type: codec for codec in (PixelCodec, DCTCodec)}
#: Networks, by the ``_class_name`` in ``vae/config.json`` of the released layout.
AUTOENCODERS: dict[str, Registered] = {
    "AutoencoderKL": Registered(AutoencoderKLConfig, AutoencoderKL),
    "AutoencoderKLOpenSora": Registered(AutoencoderKLConfig, AutoencoderKL),
    "AutoencoderKLCogVideoX": Registered(AutoencoderCogVideoXConfig, AutoencoderKLCogVideoX),
    "AutoencoderKLLTXVideo": Registered(AutoencoderLTXConfig, AutoencoderKLLTXVideo),
}

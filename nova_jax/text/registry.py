"""The tables of text encoders: what can be named, and what stands behind the name.

One of your own is written in a file beside this one and entered here. If it has no parameters, it
is a frozen dataclass of its settings behind `interface.TextEncoder`, with its name as `type`. If it
is a language model, it is a network with a dataclass of what its ``config.json`` says; the names of
its tensors are entered in `nova_jax.checkpoints.rules`. Loading, preparing, training, generating
and exporting need nothing else.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from nova_jax.text.hashed_words import HashedTextEncoder
from nova_jax.text.interface import TextEncoder
from nova_jax.text.phi import Phi, PhiConfig
from nova_jax.text.phi_encoder import PhiTextEncoder


class Registered(NamedTuple):
    """A language model: the dataclass of its sizes, ``network(config, dtype=, rngs=)``, and the
    encoder of that network and of the tokenizer in a directory."""

    config: type[Any]
    network: type[Any]
    load: Callable[[Any, Path], TextEncoder]


#: Encoders without parameters, by the ``type`` that a recipe calls them.
TEXT_ENCODERS: dict[str, type[TextEncoder]] = {HashedTextEncoder.type: HashedTextEncoder}
#: Language models, by the ``model_type`` in ``text_encoder/config.json`` of the released layout.
LANGUAGE_MODELS: dict[str, Registered] = {"phi": Registered(PhiConfig, Phi, PhiTextEncoder.load)}

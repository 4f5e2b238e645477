"""Phi as a text encoder: prompts to the last hidden states of their tokens."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from nova_jax.errors import NovaError
from nova_jax.text.interface import Tokens
from nova_jax.text.phi import Phi


class PhiTextEncoder:
    """A Phi model with its tokenizer, behind `nova_jax.text.interface.TextEncoder`.

    Args:
        model: with its parameters.
        tokenizer: text to token ids, as transformers has it.
        batch_size: prompts computed together; fewer are padded to a power of two.
        source: directory of the released model that it was loaded from, if it was.
        offload: whether parameters wait in the host's memory, and are where they were, on one
            device or split, only while prompts are encoded.
    """

    def __init__(
        self,
        model: Phi,
        tokenizer: Any,
        *,
        batch_size: int = 8,
        source: Path | None = None,
        offload: bool = False,
    ):
        self.tokenizer, self.batch_size, self._config = tokenizer, batch_size, model.config
        self.source = source
        self._graph, self._state = nnx.split(model)
        self._places = None
        if offload:
            self._places = jax.tree.map(lambda leaf: leaf.sharding, self._state)
            self._state = jax.device_get(self._state)

    @classmethod
    def load(cls, model: Phi, directory: Path) -> PhiTextEncoder:
        """Adds the tokenizer in a directory to the model, without running code of its own.

        Raises:
            NovaError: it is missing or damaged.
        """
        from transformers import AutoTokenizer  # takes seconds to import

        if not directory.is_dir():
            raise NovaError(f"{directory} is missing; is this a model in the released layout?")
        try:
            tokenizer = AutoTokenizer.from_pretrained(
                str(directory), local_files_only=True, trust_remote_code=False
            )
        except Exception as error:  # transformers has no one exception for it
            reason = str(error).strip().splitlines()[0]
            raise NovaError(f"{directory} is no tokenizer ({reason}); fetch it again") from error
        return cls(model, tokenizer, source=directory.parent)

    @property
    def network(self) -> Phi:
        """The model, with its parameters."""
        return nnx.merge(self._graph, self._state)

    def offloaded(self) -> PhiTextEncoder:
        """The same with parameters that wait in the host's memory."""
        if self._places is not None:
            return self
        facts: dict[str, Any] = {"batch_size": self.batch_size, "source": self.source}
        return PhiTextEncoder(self.network, self.tokenizer, **facts, offload=True)

    @property
    def dim(self) -> int:
        """d."""
        return self._config.hidden_size

    @property
    def tokens(self) -> Tokens:
        """Ids of the tokenizer."""
        return Tokens("tokenizer", "int32", tokenizer=self.tokenizer.backend_tokenizer.to_str())

    def features(self, network: Phi, tokens: Int[jax.Array, "b L"]) -> Float[jax.Array, "b L d"]:
        """The last hidden states."""
        return network(tokens).astype(jnp.float32)

    def count(self, prompt: str) -> int:
        """Tokens of a prompt."""
        return len(self.tokenizer(prompt).input_ids)

    def encode(
        self, prompts: Sequence[str], length: int
    ) -> tuple[Float[np.ndarray, "b {length} d"], Int[np.ndarray, " b"]]:
        """Features and lengths; see `TextEncoder.encode`."""
        tokens = [list(self.tokenizer(text).input_ids)[:length] for text in prompts]
        features = np.zeros((len(prompts), length, self.dim), np.float32)
        lengths = np.array([len(row) for row in tokens], np.int32)
        state = self._state if self._places is None else jax.device_put(self._state, self._places)
        for start in range(0, len(tokens), self.batch_size):
            rows = tokens[start : start + self.batch_size]
            # What stands after a prompt does not reach it, the model is causal: any id will do.
            size = 1 << (len(rows) - 1).bit_length()
            width = min(length, 1 << (max(map(len, rows), default=0) - 1).bit_length())
            ids = np.zeros((size, width), np.int32)
            for row, sequence in zip(ids, rows, strict=False):
                row[: len(sequence)] = sequence
            states = np.asarray(_run(self._graph, state, ids), np.float32)
            for i, sequence in enumerate(rows):
                features[start + i, : len(sequence)] = states[i, : len(sequence)]
        return features, lengths


@functools.partial(jax.jit, static_argnames="graph")
def _run(graph: nnx.GraphDef, state: nnx.State, tokens: Int[Array, "b l"]) -> Float[Array, "b l d"]:
    return nnx.merge(graph, state)(tokens).astype(jnp.float32)

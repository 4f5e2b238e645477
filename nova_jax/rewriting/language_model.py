"""Prompts rewritten by a language model, each once: answers are kept on disk."""

from __future__ import annotations

import gc
import hashlib
import json
import logging
import os
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from nova_jax.checkpoints.hub import is_on_hub, locate
from nova_jax.config import Seed, convert
from nova_jax.files import cache_folder
from nova_jax.rewriting.cache import Cache
from nova_jax.rewriting.chat import MOST_TOKENS, Chat
from nova_jax.rewriting.cleaning import clean
from nova_jax.rewriting.instructions import VIDEO

logger = logging.getLogger(__name__)

#: Of a model and its tokenizer; nothing that would have to be run or unpickled.
FILES = ("*.json", "*.txt", "*.model", "*.jinja", "*.safetensors")
# Of cached answers; raised when they are made in another way.
_FORMAT = 1


class LanguageModelRewriter:
    """A `nova_jax.rewriting.interface.Rewriter` by an instruct model that transformers can load.

    Each prompt is answered by itself, so that an answer depends on neither other prompts nor their
    number. An answer that is empty or does not end is none, and the prompt stays as it is; the same
    if the model fails on one prompt. How many stay is said, and counted in `kept`.

    Args:
        source: the model's directory, or its id on the Hugging Face hub, OWNER/NAME or
            OWNER/NAME@REVISION.
        instructions: what the model is told to make of a prompt, see
            `nova_jax.rewriting.instructions`.
        seed: None for greedy answers, a number for sampled ones.
        cache: file of answers, by default one in the user's folder of caches.
        device: see `nova_jax.rewriting.chat.Chat`.

    Attributes:
        model: the id and commit of a model on the hub; of a directory the checksum of its files.
        kept: of all prompts so far, how many stay as they are, by reason.

    Raises:
        NovaError: there is no such model, or the cache cannot be written. What is wrong with the
            model itself is said when the first prompt has to be answered.
    """

    def __init__(
        self,
        source: str,
        *,
        instructions: str = VIDEO,
        seed: int | None = None,
        cache: str | os.PathLike[str] | None = None,
        device: str | None = None,
    ) -> None:
        self.instructions = instructions
        self.seed = None if seed is None else convert(Seed, seed, "seed")
        self._directory, self._device = Path(locate(source, files=FILES)), device
        repository, on_hub = source.partition("@")[0], is_on_hub(source)
        # The hub's cache has a folder for each commit.
        commit = f"{repository}@{self._directory.name}"
        self.model = commit if on_hub else fingerprint(self._directory)
        self.kept: Counter[str] = Counter()
        self._cache = Cache(Path(cache or cache_folder() / "rewritten.jsonl"))
        self._chat: Chat | None = None

    def __call__(self, prompts: Sequence[str]) -> list[str]:
        """Prompts in other words.

        Raises:
            NovaError: torch is not installed, or the model cannot be loaded.
        """
        keys = {prompt: self._key(prompt) for prompt in prompts}
        answers = {prompt: self._cache.get(key) for prompt, key in keys.items()}
        missing = [prompt for prompt, answer in answers.items() if answer is None]
        for prompt in tqdm(missing, "rewriting", unit="prompt", disable=not missing):
            answers[prompt] = self._answer(prompt, keys[prompt])
        found: Any = [answers[prompt] for prompt in prompts]
        kept = Counter(answer.get("failure") for answer in found if not answer.get("rewritten"))
        self.kept += kept
        if kept:
            reasons = ", ".join(f"{count} {reason}" for reason, count in kept.items())
            logger.warning(
                "%d of %d prompts stay as they are: %s", kept.total(), len(found), reasons
            )
        return [a.get("rewritten") or prompt for a, prompt in zip(found, prompts, strict=True)]

    def close(self) -> None:
        """Frees the model's memory; it is loaded again when it is needed."""
        if self._chat is not None:
            self._chat = None
            gc.collect()
            sys.modules["torch"].cuda.empty_cache()

    def _key(self, prompt: str) -> str:
        parts = [_FORMAT, self.model, self.instructions, self.seed, prompt]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    def _answer(self, prompt: str, key: str) -> Any:
        """The model's answer, which may be another process's; what fails now may not fail again."""
        if self._chat is None:
            self._chat = Chat(self._directory, self._device)
        seed = None if self.seed is None else int(key[:8], 16)
        about = {"model": self.model, "seed": self.seed, "prompt": prompt}
        try:
            answer = self._chat.answer(self.instructions, prompt, seed)
        except Exception as error:  # whatever a model raises, such as a lack of memory
            reason = f"failed ({type(error).__name__}: {' '.join(str(error).split())[:80]})"
            return about | {"rewritten": None, "failure": reason}
        text = clean(answer or "")
        ended = f"longer than {MOST_TOKENS} tokens" if answer is None else "empty"
        failure = None if text else ended
        return self._cache.add(key, about | {"rewritten": text or None, "failure": failure})


def fingerprint(directory: Path) -> str:
    """SHA-256 of the names and contents of a model's files."""
    digest = hashlib.sha256()
    for path in sorted({path for pattern in FILES for path in directory.glob(pattern)}):
        with open(path, "rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
        digest.update(f"{path.name}\0{content}\n".encode())
    return digest.hexdigest()

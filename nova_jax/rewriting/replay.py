"""Rewritten prompts out of a file: our own, NOVA's and VBench's.

    {"prompt": ..., "rewritten": ...}                .jsonl, one a line; or a list of them, .json
    [{"prompt": ..., "dense_prompt": ...}, ...]      evaluations/*/prompts.json of NOVA
    all_dimension.txt,PATH/all_dimension_longer.txt  prompts/ of VBench: two files, line by line

The last two as in baaivision/NOVA at 2cd254a and Vchitect/VBench at 45e79ec.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from nova_jax.config import shown
from nova_jax.errors import NovaError
from nova_jax.rewriting.interface import Rewriter

logger = logging.getLogger(__name__)

# What the other words are called, beside "prompt".
_NAMES = ("rewritten", "dense_prompt")


class Replay:
    """A `Rewriter` that says what it was given.

    Args:
        texts: other words by prompt.
        source: where they are from, for messages.
    """

    def __init__(self, texts: Mapping[str, str], source: str = "the rewriter") -> None:
        self.texts, self.source = dict(texts), source

    def __call__(self, prompts: Sequence[str]) -> list[str]:
        """Prompts in other words.

        Raises:
            NovaError: there are none of a prompt.
        """
        missing = [prompt for prompt in prompts if prompt not in self.texts]
        if missing:
            raise NovaError(
                f"{self.source} has no other words for {len(missing)} of {len(prompts)} prompts, "
                f"the first is {shown(missing[0])}; add them"
            )
        return [self.texts[prompt] for prompt in prompts]

    @classmethod
    def of(cls, rewriter: Rewriter, prompts: Sequence[str], source: str) -> Replay:
        """What a rewriter says now, for later."""
        return cls(dict(zip(prompts, rewriter(prompts), strict=True)), source)

    @classmethod
    def read(cls, name: str) -> Replay:
        """Reads a file, or two text files with a comma between, see the top.

        Of a prompt that is there several times the first other words hold, as the first samples
        with that name do.

        Raises:
            NovaError: it cannot be read, or is none of these.
        """
        pairs = list(_pairs(name))
        texts: dict[str, str] = {}
        for prompt, text in pairs:
            texts.setdefault(prompt, text)
        several = {prompt for prompt, text in pairs if texts[prompt] != text}
        if several:
            logger.warning(
                "%s has several other words for %d prompts, such as %s; the first hold",
                *(name, len(several), shown(min(several))),
            )
        if not texts:
            raise NovaError(f"{name} holds no prompt; give prompts with other words for them")
        return cls(texts, name)

    def lines(self) -> bytes:
        """The contents of a file that `read` reads."""
        pairs = [{"prompt": prompt, "rewritten": text} for prompt, text in self.texts.items()]
        return "".join(json.dumps(pair, ensure_ascii=False) + "\n" for pair in pairs).encode()


def _pairs(name: str) -> Iterable[tuple[str, str]]:
    """Prompts and other words, in the order of a file."""
    first, comma, second = name.partition(",")
    if comma and not Path(name).exists():
        one, other = (_text(each).rstrip("\n").split("\n") for each in (first, second))
        if len(one) != len(other):
            raise NovaError(
                f"{first} has {len(one)} lines and {second} {len(other)}; give files whose lines "
                "belong together"
            )
        # A line with nothing in it says nothing anew.
        return [(p.strip(), t.strip() or p.strip()) for p, t in zip(one, other, strict=True)]
    text = _text(name)
    try:
        lines = name.endswith(".jsonl")
        entries = [json.loads(line) for line in text.split("\n") if line.strip()] if lines else None
        entries = json.loads(text) if entries is None else entries
    except (ValueError, RecursionError) as error:
        raise NovaError(
            f"{name} is no JSON ({error}); give .json, .jsonl, or PROMPTS.txt,REWRITTEN.txt"
        ) from error
    if not isinstance(entries, list):
        raise NovaError(f"{name} is no list; give one of prompts with other words for them")
    return [_pair(entry, f"entry {i} of {name}") for i, entry in enumerate(entries, 1)]


def _pair(entry: Any, where: str) -> tuple[str, str]:
    prompt = entry.get("prompt") if isinstance(entry, dict) else None
    text = next((entry[n] for n in _NAMES if n in entry), 0) if isinstance(prompt, str) else 0
    if not isinstance(text, str | None):
        raise NovaError(f'{where} is {shown(entry)}; write {{"prompt": "...", "rewritten": "..."}}')
    return str(prompt), (text or "").strip() or str(prompt)


def _text(name: str) -> str:
    try:
        return Path(name).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise NovaError(f"{name} cannot be read ({error}); give a file of prompts") from error

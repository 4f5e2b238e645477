"""What a rewriter is, and what becomes of its answers.

Released models are trained on long captions and follow a short prompt less well than the same one
in a hundred words (NOVA, arXiv 2412.14169, rows "+ Rewriter"). A sample keeps the name of its own
prompt; the model reads the other one.
"""

from __future__ import annotations

import bisect
import logging
import re
from collections.abc import Callable, Sequence
from typing import Any

from nova_jax.config import shown
from nova_jax.errors import NovaError
from nova_jax.models.config import NovaConfig
from nova_jax.text.interface import TextEncoder

logger = logging.getLogger(__name__)

#: Gives each of several prompts in other words, in their order.
Rewriter = Callable[[Sequence[str]], list[str]]


def in_other_words(
    prompts: Sequence[Any],
    rewriter: Rewriter | None,
    encoder: TextEncoder | None,
    config: NovaConfig,
) -> list[str] | None:
    """What a model reads in place of prompts.

    A prompt whose answer is blank stays as it is. An answer that is longer than the model reads is
    cut, at the end of a sentence where one ends in its second half. Both are counted and said.

    Args:
        prompts: texts.
        rewriter: see `Rewriter`; without one there are no other words.
        encoder: of the model; answers are counted in its rows.
        config: the model's, which says how many rows it reads of a prompt.

    Raises:
        NovaError: the rewriter is none, it gives something else than a text for each prompt, or
            prompts are no texts.
    """
    if rewriter is None:
        return None
    if not callable(rewriter):
        raise NovaError(f"rewriter is {shown(rewriter)}; give a function of a list of prompts")
    length = config.text_length
    if encoder is None or length is None or not all(isinstance(p, str) for p in prompts):
        raise NovaError("a rewriter takes texts; leave it away for class numbers and embeddings")
    answers: Any = rewriter(list(prompts))
    texts = isinstance(answers, Sequence) and all(isinstance(answer, str) for answer in answers)
    if not texts or isinstance(answers, str) or len(answers) != len(prompts):
        raise NovaError(
            f"the rewriter gave {shown(answers)} for {len(prompts)} prompts; it must give a list "
            "of one text for each"
        )
    blank = [not answer.strip() for answer in answers]
    said = [p if empty else a for p, a, empty in zip(prompts, answers, blank, strict=True)]
    fitting = [
        text if text == prompt else cut(text, encoder, length)
        for prompt, text in zip(prompts, said, strict=True)
    ]
    shortened = sum(a != b for a, b in zip(said, fitting, strict=True))
    if any(blank):
        logger.warning("%d of %d prompts stay as they are: no answer", sum(blank), len(blank))
    if shortened:
        logger.warning(
            "%d of %d rewritten prompts are cut: the model reads %d tokens of a prompt",
            *(shortened, len(said), length),
        )
    return fitting


def cut(text: str, encoder: TextEncoder, length: int) -> str:
    """As many words of a text as fit so many rows, without the sentence that does not end in them.

    That sentence stays, as far as it fits, if it is more than half of what does.
    """
    if encoder.count(text) <= length:
        return text
    words = text.split()
    rows = lambda count: encoder.count(" ".join(words[:count]))  # noqa: E731
    most = bisect.bisect_right(range(1, len(words) + 1), length, key=rows)
    fitting = " ".join(words[:most])
    whole = re.match(r".*[.!?](?=\s|$)", fitting)
    return whole[0] if whole and 2 * len(whole[0]) >= len(fitting) else fitting

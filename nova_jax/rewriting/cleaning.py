"""The prompt in a language model's answer: one line, without what was written around it."""

from __future__ import annotations

import re

_THOUGHTS = re.compile(r"<think>.*?(</think>|$)", re.DOTALL)
_FENCE = re.compile(r"^\s*```.*$", re.MULTILINE)
# At the start of a line: a heading, a quotation, a bullet or a number.
_MARKS = re.compile(r"^\s*(#{1,6}\s+|>\s+|[-*•]\s+|\d{1,2}[.)]\s+)+", re.MULTILINE)
_EMPHASIS = re.compile(r"(\*\*|__|`|(?<!\w)[*_](?=\w)|(?<=[\w.,!?])[*_](?!\w))")
_YES = r"(sure( thing)?|certainly|of course|absolutely|okay|ok)"
# "Certainly!"; what begins with "Certainly, a dog" stays.
_INTERJECTION = re.compile(rf"^\s*{_YES}\s*[!.:]\s+", re.IGNORECASE)
# "Sure, here is the rewritten prompt:", "Rewritten prompt:".
_OPENING = re.compile(
    rf"^\s*({_YES},?\s+)?(here(['’]s|\s+is|\s+are)\b[^:\n]{{0,100}}:|"
    r"(the\s+)?((re-?written|revised|enhanced|improved|expanded|detailed|new|final|video|image|"
    r"picture|text)\s+){0,3}(prompt|description|caption|version|paragraph|answer|output)\s*:)\s*",
    re.IGNORECASE,
)
# A paragraph of its own after the prompt.
_REMARK = re.compile(r"^\s*\(?(note|explanation|this (prompt|description|version))\b", re.I)
_QUOTES = {'"': '"', "'": "'", "“": "”", "‘": "’", "«": "»", "「": "」"}


def clean(answer: str) -> str:
    """The prompt that an answer holds; empty if it holds none."""
    text = _FENCE.sub("", _THOUGHTS.sub("", answer)).strip()
    text = _EMPHASIS.sub("", _MARKS.sub("", text))
    text = _OPENING.sub("", _INTERJECTION.sub("", text), count=1)
    paragraphs = [part for part in re.split(r"\n\s*\n", text) if part.strip()]
    while len(paragraphs) > 1 and _REMARK.match(paragraphs[-1]):
        paragraphs.pop()
    line = " ".join(" ".join(paragraphs).split())
    while len(line) > 1 and _QUOTES.get(line[0]) == line[-1] and line[-1] not in line[1:-1]:
        line = line[1:-1].strip()
    return line

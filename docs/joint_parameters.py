"""Docstrings that describe several parameters at once, "query, key, value: of one type", apart.

An extension of griffe, which reads docstrings for mkdocstrings and knows one name an entry only:
each name is given the entry of all.
"""

import re
from typing import Any

import griffe

SECTION = re.compile(r"(\s*)(?:Args|Attributes):")
ENTRY = re.compile(r"(\s+)(\*{0,2}\w+(?:, \*{0,2}\w+)+): ")


def apart(text: str) -> str:
    """The docstring with an entry for each name.

    Args:
        text: a docstring without the indentation of its code.
    """
    lines: list[str] = []
    entries: list[list[str]] = []  # of the joint entry at hand, an entry a name
    section = depth = None
    for line in text.splitlines():
        indent = len(line) - len(line.lstrip())
        if entries and line.strip() and indent > depth:
            for entry in entries:
                entry.append(line)
            continue
        lines += [part for entry in entries for part in entry]
        entries = []
        if match := SECTION.fullmatch(line):
            section = len(match[1])
        elif line.strip() and section is not None and indent <= section:
            section = None
        match = ENTRY.match(line)
        if section is not None and match:
            depth = indent
            rest = line[match.end() :]
            entries = [[f"{match[1]}{name}: {rest}"] for name in match[2].split(", ")]
        else:
            lines.append(line)
    return "\n".join(lines + [part for entry in entries for part in entry])


class JointParameters(griffe.Extension):
    """Rewrites docstrings as they are found."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Of any module, class, function or attribute."""
        if obj.docstring is not None:
            obj.docstring.value = apart(obj.docstring.value)

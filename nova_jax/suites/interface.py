"""What a suite of prompts is: items, the files that they become, and where its scores come from.

A suite is a class with the attributes of `Suite`; `nova_jax.suites.registry` has them by name.
Whatever is common to all suites (drawing, going on after a stop, reports) asks nothing else.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, Protocol

Medium = Literal["picture", "video"]


@dataclasses.dataclass(frozen=True)
class Target:
    """A file to be drawn.

    Attributes:
        path: below the folder of the run, with "/"; its suffix is .png or .mp4.
        samples: which samples of its item it shows; several are the tiles of a square grid, row by
            row.
    """

    path: str
    samples: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Item:
    """A prompt and what becomes of it.

    Attributes:
        prompt: as the suite has it; files are named after it whatever the model is told, and no
            two items have the same.
        targets: the files that its samples become.
        metadata: files that scorers want beside those, by path.
    """

    prompt: str
    targets: tuple[Target, ...]
    metadata: Mapping[str, bytes] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Prompts:
    """The items of a run.

    Attributes:
        items: in the suite's order.
        parts: which of the suite's parts they are.
        sha256: of the prompt files that they were read from.
        official: whether those are of the version that is known here.
    """

    items: Sequence[Item]
    parts: tuple[str, ...]
    sha256: str
    official: bool = True


@dataclasses.dataclass(frozen=True)
class Scores:
    """What a suite's scorer found.

    Attributes:
        values: by column of the tables in `nova_jax.suites.paper`, as those print them.
        missing: what is not there, or not of all samples, in words; totals over it are left out.
        notes: what a reader of the values should know.
    """

    values: Mapping[str, float]
    missing: Sequence[str] = ()
    notes: Sequence[str] = ()


class Suite(Protocol):
    """A benchmark.

    Attributes:
        name: as the command line has it.
        title: for people.
        source: repository and commit that layout, counts and formulas were read in.
        medium: what is drawn.
        size: height and width of samples in pixels; None for any.
        parts: tasks, categories or dimensions that can be drawn by themselves.
    """

    name: str
    title: str
    source: str
    medium: Medium
    size: tuple[int, int] | None
    parts: tuple[str, ...]

    def prompts(self, folder: Path | None, parts: Sequence[str], *, verify: bool) -> Prompts:
        """Reads the prompts of some parts.

        Args:
            folder: a clone of the suite's repository; None for a suite that has its own prompts.
            parts: of the suite's.
            verify: refuse files of another count or checksum than those of `source`.

        Raises:
            NovaError: naming the file that is missing, damaged or of another version.
        """
        ...

    def scoring(self, out: Path, prompts: Prompts, size: tuple[int, int]) -> str:
        """What to do with a folder that is complete: the scorer's commands, or what it found.

        Args:
            out: the folder of the run.
            prompts: that it holds files of.
            size: height and width of a sample in pixels.
        """
        ...

    def results(self, folder: Path) -> list[Path]:
        """The files in a folder, or below it, that this suite's scorer has written there."""
        ...

    def reads(self, file: Path) -> bool:
        """Whether a file is named as this suite's scorer names its results."""
        ...

    def scores(self, files: Sequence[Path], prompts: Path | None) -> Scores:
        """Reads results.

        Args:
            files: that `reads` is true of, all of one model.
            prompts: a clone of the suite's repository, for what needs it.

        Raises:
            NovaError: naming a file that is damaged, or two that say different things.
        """
        ...


def sample_seed(prompt: str, sample: int, seed: int = 0) -> int:
    """The seed of one sample, from 0 to 2³² − 1: that of `NovaPipeline` for this prompt alone.

    The first four bytes, big-endian, of the SHA-256 of "SEED\\nSAMPLE\\nPROMPT" in UTF-8. Nothing
    else counts: not where the prompt stands in the suite, nor what it was rewritten to.

    Args:
        prompt: as the suite has it.
        sample: its number among those of the prompt, from 0.
        seed: of the run.
    """
    text = f"{seed}\n{sample}\n{prompt}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")

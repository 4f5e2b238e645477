"""What somebody has made, as files that can be downloaded, for as long as the page is open."""

from __future__ import annotations

import dataclasses
import shutil
import uuid
from collections.abc import Sequence
from pathlib import Path

from nova_jax import media
from nova_jax.app.jobs import Take
from nova_jax.errors import NovaError

#: Takes of one person that are kept.
KEPT = 24


@dataclasses.dataclass(frozen=True, eq=False)
class Item:
    """A finished video or picture and its files.

    Attributes:
        take: what was made.
        files: to be downloaded, in a folder whose name nobody guesses: what was made, and what it
            was made from.
        preview: of them, a picture or a GIF.
    """

    take: Take
    files: tuple[Path, ...]
    preview: Path

    @classmethod
    def save(cls, take: Take, place: Path, fps: float) -> Item:
        """Writes the files of a take into a new folder in `place`."""
        folder, clip = place / uuid.uuid4().hex, media.enlarge(take.clip)
        name = folder / take.recipe.name
        files = [media.save_clip(name, clip, fps)]
        if len(clip) > 1 and fps <= media.GIF_CLOCK:
            files.append(media.save_clip(name, clip, fps, gif=True))
        preview = files[-1] if len(clip) > 1 else files[0]
        files += [media.save(folder / file, data) for file, data in take.files.values()]
        return cls(take, tuple(files), preview)

    def delete(self) -> None:
        """Deletes the files."""
        shutil.rmtree(self.preview.parent, ignore_errors=True)


class Shelf:
    """What one person has made, the newest first; only the last `KEPT` are there."""

    def __init__(self) -> None:
        self.items: list[Item] = []
        self._chosen: Item | None = None

    def add(self, items: Sequence[Item]) -> None:
        """Puts new ones in front and chooses the first of them."""
        kept, self._chosen = [*items, *self.items], items[0]
        self.items, late = kept[:KEPT], kept[KEPT:]
        for item in late:
            item.delete()

    def choose(self, index: int) -> Item:
        """Chooses one."""
        self._chosen = self.items[index]
        return self._chosen

    @property
    def chosen(self) -> Item:
        """The one that was chosen last.

        Raises:
            NovaError: there is none.
        """
        if self._chosen not in self.items:
            raise NovaError("you have made nothing yet; draw a picture or a video first")
        assert self._chosen is not None
        return self._chosen

    def previews(self) -> list[tuple[str, str]]:
        """Files and captions for a gallery."""
        return [(str(item.preview), item.take.recipe.title) for item in self.items]

    def clear(self) -> None:
        """Deletes everything."""
        for item in self.items:
            item.delete()
        self.items = []

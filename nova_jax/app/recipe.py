"""What was asked of the app, as a command and as Python that make the same files.

Everything that is drawn in the app is drawn in a pool of so many rows, by the programs of one that
is watched; `rows` and `play` say the same to the command and to the library. Parts of pictures are
painted anew by a call.
"""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Mapping
from typing import Any

from nova_jax import media
from nova_jax.live import Cue


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What makes a video or a picture.

    Attributes:
        cues: prompts and seeds, the first one from frame 0 on.
        frames: pixel frames that were asked for.
        options: of the call, those that are not the model's own.
        given: names of files by what they are: image, mask, video.
        model: what names the model, as flags of `nova_jax.generate`; those that were given.
        rows: of the pool; None for a call.
        stopped: latent frames after which somebody stopped it; None for nobody.
        takes_text: whether prompts are texts, and not class labels.
    """

    cues: tuple[Cue, ...]
    frames: int
    options: Mapping[str, Any]
    given: Mapping[str, str]
    model: Mapping[str, Any]
    rows: int | None = None
    stopped: int | None = None
    takes_text: bool = True

    @property
    def prompt(self) -> str:
        """The first one."""
        return self.cues[0].prompt

    @property
    def seed(self) -> int:
        """The first one."""
        return self.cues[0].seed or 0

    @property
    def name(self) -> str:
        """Of its files, as `nova_jax.generate` names them, without suffix."""
        return media.sample_name(self.prompt, self.seed)

    @property
    def title(self) -> str:
        """What it shows, for a caption."""
        return " → ".join(f"{cue.prompt} · seed {cue.seed}" for cue in self.cues)

    def command(self) -> str:
        """The command that writes the same file."""
        first, *later = self.cues
        flags = dict(self.model)
        if later:
            starts = [f"0:{first.prompt}"]
            starts += [f"{cue.frame}@{cue.seed}:{cue.prompt}" for cue in later]
            flags["prompt_schedule"] = ";".join(starts)
        else:
            flags["prompt"] = first.prompt
        flags |= {"seed": self.seed, **self.given}
        if self.rows is not None:
            flags |= {"frames": self.frames, **self.options, "rows": self.rows}
        else:
            flags |= self.options
        if self.stopped is not None:
            flags["stop_after"] = self.stopped
        given = (f"--{name}={shlex.quote(str(value))}" for name, value in flags.items())
        return " ".join(["python -m nova_jax.generate", *given])

    def python(self) -> str:
        """The program that writes the same file."""
        media_of = {"image": "read_image", "video": "read_video"}
        asked = {name: f"media.{media_of[name]}({file!r})" for name, file in self.given.items()
                 if name in media_of}  # fmt: skip
        if "mask" in self.given:
            asked["mask"] = f"media.read_image({self.given['mask']!r}).max(-1)"
        asked = {"seed": str(self.seed)} | asked
        prompt = repr(self.prompt) if self.takes_text else self.prompt
        if self.rows is not None:
            asked["num_frames"] = str(self.frames)
        asked |= {name: repr(value) for name, value in self.options.items()}
        call = ", ".join([prompt, *(f"{name}={value}" for name, value in asked.items())])
        save = f"media.save_clip(Path({self.name!r}), media.enlarge(frames), pipeline.fps)"
        lines = ["from pathlib import Path", ""]
        if self.rows is None:
            return "\n".join(
                [
                    *lines,
                    "from nova_jax import media",
                    "from nova_jax.pipeline import NovaPipeline",
                    "",
                    f"pipeline = {self._load()}",
                    f"frames = pipeline({call}).frames[0]",
                    save,
                ]
            )
        last = "session.frames" if self.stopped is None else str(self.stopped)
        cues = f", {list(self.cues[1:])!r}" if self.cues[1:] else ""
        return "\n".join(
            [
                *lines,
                "import numpy as np",
                "",
                "from nova_jax import media",
                f"from nova_jax.live import {'Cue, ' if cues else ''}play",
                "from nova_jax.pipeline import NovaPipeline",
                "",
                f"pipeline = {self._load()}",
                f"session = pipeline.start({call})",
                f"clips = play(session, {last} - session.frame{cues}, rows={self.rows})",
                "frames = np.concatenate(list(clips), axis=1)[0]",
                save,
            ]
        )

    def _load(self) -> str:
        """What loads the model."""
        options = {name: value for name, value in self.model.items() if name != "size"}
        checkpoint = options.pop("checkpoint", None)
        given = [] if checkpoint is None else [repr(checkpoint)]
        given += [f"{name}={value!r}" for name, value in options.items()]
        made = "from_checkpoint" if checkpoint is None else "from_pretrained"
        size = self.model.get("size")
        resized = "" if size is None else f".resized({', '.join(size.split('x'))})"
        return f"NovaPipeline.{made}({', '.join(given)}){resized}"

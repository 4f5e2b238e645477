"""Generates videos and pictures from prompts.

    python -m nova_jax.generate --prompt="a red seven moves slowly to the left"
    python -m nova_jax.generate --checkpoint=DIR --prompt_file=prompts.txt --out=DIR --gif
    python -m nova_jax.generate --video=cut.mp4 --frames=16 --prompt="a blue seven moves up"
    python -m nova_jax.generate --image=seven.png --mask=hole.png --prompt="a red four"
    python -m nova_jax.generate --stream --prompt_schedule="0:a red seven;8:a blue seven"
    python -m nova_jax.generate --export=digits.zip

Writes one MP4 for each prompt and seed (a PNG where there is one frame) and prints their paths, a
batch as soon as it is made; nothing that exists is overwritten. Small videos are enlarged by a
whole factor for viewing.
With --stream, --prompt_schedule, --save_session, --resume_session, --stop_after or --rows all
prompts are one session, see docs/sessions.md.
With --export nothing is generated; docs/export.md has what is written and how it is run.
"""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from absl import flags
from jaxtyping import UInt8
from tqdm import tqdm

from nova_jax import cli, media
from nova_jax.config import Count, FrameRate, MotionScore, Range, Seed
from nova_jax.errors import NovaError
from nova_jax.files import new_output, output_folder
from nova_jax.live import ClipFile, Cue, play, read_schedule
from nova_jax.pipeline import NovaPipeline
from nova_jax.request import Output
from nova_jax.sampling.options import OPTIONS
from nova_jax.session import Session
from nova_jax.shared_flags import ModelFlags, RewriterFlags

MODEL = ModelFlags()
PROMPT = flags.DEFINE_multi_string("prompt", [], "What to show; may be given several times.")
PROMPT_FILE = flags.DEFINE_string("prompt_file", None, "Text file with one prompt a line.")
NEGATIVE = flags.DEFINE_string("negative_prompt", None, "What to stay away from.")
IMAGE = flags.DEFINE_string("image", None, "Picture that becomes the first frame.")
VIDEO = flags.DEFINE_string(
    "video", None, "Video, or directory of PNG frames, that goes on in what is made."
)
MASK = flags.DEFINE_string(
    "mask",
    None,
    "Picture, white where --image or --video is painted anew; a video or directory of PNG frames "
    "has one for each frame.",
)
OUTPAINT = flags.DEFINE_string(
    "outpaint", None, "TOP,RIGHT,BOTTOM,LEFT: pixels to paint around --image or --video."
)
FRAMES = cli.define("frames", Count, None, "Frames of a video; 1 makes a picture.")
SEED = cli.define("seed", Seed, 0, "Same seed and prompt, same video.")
COPIES = cli.define("num_images_per_prompt", Count, 1, "Samples of each.")
BATCH_SIZE = cli.define(
    "batch_size", Count, None, "Most videos made together, 32 by default; 1 in an export."
)
OUT = flags.DEFINE_string("out", "output", "Where to write.")
GIF = flags.DEFINE_bool("gif", False, "Write GIFs, not MP4s.")
FPS = cli.define(
    "fps", FrameRate, None, "Frames per second of the files; the model's own by default."
)
UPSCALE = cli.define(
    "upscale",
    Annotated[int, Range(1, media.LARGEST)],
    192,
    "Enlarge by a whole factor to at least this short side; 1: no.",
)
SCHEDULE = flags.DEFINE_string(
    "prompt_schedule",
    None,
    '"0:a red seven;16:a blue seven": prompts, and the latent frames they hold from; "16@7:a blue '
    'seven" draws what follows with seed 7.',
)
STREAM = flags.DEFINE_bool(
    "stream", False, "Write frames as they come; a killed run leaves a file that plays."
)
SAVE = flags.DEFINE_string(
    "save_session", None, "File to save the session to at its end, also if that comes early."
)
RESUME = flags.DEFINE_string(
    "resume_session",
    None,
    "Saved session to go on with; --max_latent_length says how many latent frames follow, --prompt "
    "and --seed change it.",
)
STOP_AFTER = cli.define(
    "stop_after", Count, None, "Latent frames after which a session is stopped, before --frames."
)
ROWS = cli.define(
    "rows",
    Count,
    None,
    "Draw in a pool of so many rows, as the app does: the last bit of a sample depends on it.",
)
EXPORT = flags.DEFINE_string(
    "export", None, "Write programs that generate without this package to this .zip file instead."
)
REWRITER = RewriterFlags()
# What an export has no place for: it is given when the programs are run.
LATER = (
    *(PROMPT, PROMPT_FILE, NEGATIVE, IMAGE, VIDEO, MASK, OUTPAINT, SEED, COPIES),
    *(OUT, GIF, FPS, UPSCALE, SCHEDULE, STREAM, SAVE, RESUME, STOP_AFTER, ROWS),
    *REWRITER.all,
)
# What makes a request a session, and what a session that goes on has already.
SESSION = (SCHEDULE, STREAM, SAVE, RESUME, STOP_AFTER, ROWS)
RESUMED = (PROMPT_FILE, NEGATIVE, IMAGE, VIDEO, MASK, OUTPAINT, FRAMES, COPIES)


# Options of a call, by their names there; the checkpoint's defaults if not given.
CALL = {
    "max_latent_length": cli.define(
        "max_latent_length", Count, None, "Latent frames, in place of --frames."
    ),
    "motion_flow": cli.define(
        "motion_flow", MotionScore, None, "Motion score: larger is livelier."
    ),
    **{name: cli.define(name, option.kind, None, option.help) for name, option in OPTIONS.items()},
}


def main() -> None:
    """Reads the prompts, loads the model, generates and writes; or exports."""
    options: dict[str, Any] = {name: flag.value for name, flag in CALL.items()}
    if EXPORT.value is not None:
        from nova_jax.export import destination, export  # has programs' formats with it

        if name := cli.present(*LATER):
            raise NovaError(
                f"--{name} has no place in an export, whose programs take prompts and seeds when "
                "they run; leave it away"
            )
        destination(EXPORT.value)  # says before anything is loaded what is wrong with it
        files = export(
            MODEL.load(),
            EXPORT.value,
            batch_size=BATCH_SIZE.value or 1,
            num_frames=FRAMES.value,
            **options,
        )
        print(*files, sep="\n")
        return
    prompts, cues = _prompts()
    given = _given()
    out, saved = output_folder(OUT.value), SAVE.value and new_output(SAVE.value)
    live = any(flag.value for flag in SESSION)
    if live and (name := cli.present(BATCH_SIZE)):
        raise NovaError(f"--{name} has no place in a session; leave it away")
    if STREAM.value and GIF.value:
        raise NovaError("--gif has no place beside --stream, whose file grows; leave one away")
    pipeline = MODEL.load()
    fps = FPS.value or pipeline.fps
    if GIF.value and fps > media.GIF_CLOCK:
        raise NovaError(f"a GIF has at most {media.GIF_CLOCK} frames a second, not --fps={fps:g}")
    said = [*prompts, *(cue.prompt for cue in cues)]
    if (name := cli.present(*REWRITER.all)) and not (said and pipeline.config.num_classes is None):
        raise NovaError(f"--{name} has no prompt in words to rewrite; leave it away")
    frames = pipeline.latent_frames(options["max_latent_length"], FRAMES.value)
    rewriter = REWRITER.rewrite(said, video=live or frames > 1)
    if rewriter is not None:
        print(media.save(out / "rewritten.jsonl", rewriter.lines()), flush=True)
    asked: dict[str, Any] = {
        "rewriter": rewriter,
        "prompt": prompts if pipeline.config.num_classes is None else _labels(prompts),
        "negative_prompt": NEGATIVE.value,
        "num_frames": FRAMES.value,
        "seed": SEED.value,
        "num_images_per_prompt": COPIES.value,
        **given,
        **options,
    }
    if not live:
        _write(pipeline.stream(**asked, batch_size=BATCH_SIZE.value or 32), prompts, out, fps)
    elif RESUME.value is None:
        _play(pipeline.start(**asked), cues, out, fps, saved)
    else:
        _play(_resume(pipeline, asked), cues, out, fps, saved)


def _write(made: Generator[Output, None, None], prompts: list[str], out: Path, fps: float) -> None:
    """Writes clips as they are made."""
    clips = (clip for videos in made for clip in videos.frames)
    with contextlib.closing(made):  # its bar ends before an error is told
        for index, clip in enumerate(clips):
            prompt, copy = prompts[index // COPIES.value], index % COPIES.value
            clip = media.enlarge(clip, UPSCALE.value)
            file = media.save_clip(out / _name(prompt, copy), clip, fps, gif=GIF.value)
            with tqdm.external_write_mode():  # the bar makes room
                print(file, flush=True)


def _resume(pipeline: NovaPipeline, asked: dict[str, Any]) -> Session:
    """The saved session, with the prompt and the seed that are asked for.

    Raises:
        NovaError: it has already what a flag says.
    """
    options = (flag for name, flag in CALL.items() if name != "max_latent_length")
    if given := cli.present(*RESUMED, *options):
        raise NovaError(f"--{given} has no place in a session that goes on; leave it away")
    session = pipeline.resume(RESUME.value)
    session.rewriter = asked["rewriter"]
    if asked["prompt"]:
        session.prompt(asked["prompt"])
    if SEED.present:
        session.reseed(SEED.value)
    session.frames = session.frame + pipeline.latent_frames(asked["max_latent_length"], None)
    return session


def _play(session: Session, cues: list[Cue], out: Path, fps: float, saved: Path | None) -> None:
    """Draws what was asked for of a session and writes it.

    The session is saved at its end, also where that comes early: nothing that was drawn is lost.
    """
    assert session.frames is not None
    first, last = session.frame, min(session.frames, STOP_AFTER.value or session.frames)
    if last <= first:
        raise NovaError(f"--stop_after={last} is in what is given, {first} latent frames; go on")
    frames = play(session, last - first, cues, rows=ROWS.value)
    try:
        _write_session(session, frames, out, fps)
    finally:
        if saved is not None and session.frame > first:
            session.save(saved)
            print(saved, flush=True)


def _write_session(
    session: Session, frames: Iterator[UInt8[np.ndarray, "b F H W 3"]], out: Path, fps: float
) -> None:
    """Writes the clip of each sample, as its frames come or at their end."""
    names = [_name(str(p or "session"), i % COPIES.value) for i, p in enumerate(session.prompts)]
    clips = (media.enlarge(clips, UPSCALE.value) for clips in frames)
    if not STREAM.value:
        for name, clip in zip(names, np.concatenate(list(clips), axis=1), strict=True):
            print(media.save_clip(out / name, clip, fps, gif=GIF.value), flush=True)
        return
    with contextlib.ExitStack() as stack:
        files = [stack.enter_context(ClipFile(out / f"{name}.mp4", fps)) for name in names]
        print(*(file.path for file in files), sep="\n", flush=True)
        for part in clips:
            for file, clip in zip(files, part, strict=True):
                file.write(clip)


def _name(prompt: str, copy: int) -> str:
    """Of a file, without suffix."""
    return media.sample_name(prompt, SEED.value, copy)


def _prompts() -> tuple[list[str], list[Cue]]:
    """The prompts that a request begins with, and those that follow.

    Raises:
        NovaError: there are none, which only a session that goes on needs not, or both kinds.
    """
    prompts = [*PROMPT.value, *(_read_prompts(PROMPT_FILE.value) if PROMPT_FILE.value else [])]
    cues = read_schedule(SCHEDULE.value) if SCHEDULE.value else []
    if cues and prompts:
        raise NovaError("--prompt and --prompt_schedule are given; write the prompt as 0:PROMPT")
    if RESUME.value is not None:
        return prompts, cues
    if cues:
        first, *cues = cues
        if first.frame:
            raise NovaError(f"--prompt_schedule begins at frame {first.frame}; begin with 0:PROMPT")
        if first.seed is not None:
            raise NovaError(f"--prompt_schedule begins with a seed; give it as --seed={first.seed}")
        prompts = [first.prompt]
    if not prompts:
        raise NovaError('nothing to generate; give --prompt="..." or --prompt_file=FILE')
    return prompts, cues


def _given() -> dict[str, Any]:
    """What videos begin with, and what of it is painted anew."""
    given: dict[str, Any] = {
        "image": IMAGE.value and media.read_image(IMAGE.value),
        "video": None if VIDEO.value is None else media.read_video(VIDEO.value),
    }
    if MASK.value is not None:
        path = Path(MASK.value)
        several = path.is_dir() or path.suffix.lower() in media.VIDEOS
        mask = media.read_video(path) if several else media.read_image(path)[None]
        given["mask"] = mask.max(-1)
    if OUTPAINT.value is not None:
        margins = [margin.strip() for margin in OUTPAINT.value.split(",")]
        if not all(margin.isdecimal() for margin in margins):
            raise NovaError(f"--outpaint={OUTPAINT.value} is not TOP,RIGHT,BOTTOM,LEFT in pixels")
        given["outpaint"] = [int(margin) for margin in margins]
    return given


def _labels(prompts: list[str]) -> list[int]:
    try:
        return [int(prompt) for prompt in prompts]
    except ValueError as error:
        raise NovaError(f"this model takes class numbers as prompts ({error})") from error


def _read_prompts(path: str) -> list[str]:
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise NovaError(f"prompt file {path} cannot be read ({error}); give a text file") from error
    prompts = [line.strip() for line in lines if line.strip()]
    if not prompts:
        raise NovaError(f"prompt file {path} holds no prompt; write one a line")
    return prompts


if __name__ == "__main__":
    cli.run(main)

"""Generates videos and pictures from prompts.

    python -m nova_jax.generate --prompt="a red seven moves slowly to the left"
    python -m nova_jax.generate --checkpoint=DIR --prompt_file=prompts.txt --out=DIR --gif
    python -m nova_jax.generate --export=digits.zip

Writes one MP4 for each prompt and seed (a PNG where there is one frame) and prints their paths, a
batch as soon as it is made; nothing that exists is overwritten. Small videos are enlarged by a
whole factor for viewing.
With --export nothing is generated; docs/export.md has what is written and how it is run.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Annotated, Any

from absl import flags
from tqdm import tqdm

from nova_jax import cli, media
from nova_jax.arguments import DType
from nova_jax.config import Count, FrameRate, MotionScore, Range, Seed
from nova_jax.errors import NovaError
from nova_jax.export import destination, export
from nova_jax.files import output_folder
from nova_jax.pipeline import SHIPPED, NovaPipeline
from nova_jax.sampling.options import OPTIONS

CHECKPOINT = flags.DEFINE_string(
    "checkpoint",
    str(SHIPPED),
    "Model directory, --workdir of a training run, or a released model: its directory or its id on "
    "the Hugging Face hub.",
)
WEIGHTS = flags.DEFINE_enum(
    "weights", "ema", ["ema", "raw"], "Of a training run: averaged or raw parameters."
)
PROMPT = flags.DEFINE_multi_string("prompt", [], "What to show; may be given several times.")
PROMPT_FILE = flags.DEFINE_string("prompt_file", None, "Text file with one prompt a line.")
NEGATIVE = flags.DEFINE_string("negative_prompt", None, "What to stay away from.")
IMAGE = flags.DEFINE_string("image", None, "Picture that becomes the first frame.")
SIZE = flags.DEFINE_string("size", None, "HEIGHTxWIDTH in pixels; the model's own by default.")
FRAMES = cli.define("frames", Count, None, "Frames of a video; 1 makes a picture.")
SEED = cli.define("seed", Seed, 0, "Same seed and prompt, same video.")
COPIES = cli.define("num_images_per_prompt", Count, 1, "Samples of each.")
DTYPE = cli.define(
    "dtype",
    DType,
    "float32",
    "Type of the computation and of the parameters; bfloat16 takes half the memory.",
)
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
UNROLL = cli.define(
    "unroll",
    Count,
    1,
    "Blocks per iteration over depth; on a CPU 16 is faster and compiles longer.",
)
EXPORT = flags.DEFINE_string(
    "export", None, "Write programs that generate without this package to this .zip file instead."
)
# What an export has no place for: it is given when the programs are run.
LATER = (PROMPT, PROMPT_FILE, NEGATIVE, IMAGE, SEED, COPIES, OUT, GIF, FPS, UPSCALE)


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
        if given := next((flag.name for flag in LATER if flag.present), None):
            raise NovaError(
                f"--{given} has no place in an export, whose programs take prompts and seeds when "
                "they run; leave it away"
            )
        destination(EXPORT.value)  # says before anything is loaded what is wrong with it
        files = export(
            _load(CHECKPOINT.value),
            EXPORT.value,
            batch_size=BATCH_SIZE.value or 1,
            num_frames=FRAMES.value,
            **options,
        )
        print(*files, sep="\n")
        return
    prompts = [*PROMPT.value, *(_read_prompts(PROMPT_FILE.value) if PROMPT_FILE.value else [])]
    if not prompts:
        raise NovaError('nothing to generate; give --prompt="..." or --prompt_file=FILE')
    image = media.read_image(IMAGE.value) if IMAGE.value else None
    out = output_folder(OUT.value)
    pipeline = _load(CHECKPOINT.value)
    fps = FPS.value or pipeline.fps
    if GIF.value and fps > media.GIF_CLOCK:
        raise NovaError(f"a GIF has at most {media.GIF_CLOCK} frames a second, not --fps={fps:g}")
    made = pipeline.stream(
        prompts if pipeline.config.num_classes is None else _labels(prompts),
        negative_prompt=NEGATIVE.value,
        image=image,
        num_frames=FRAMES.value,
        seed=SEED.value,
        num_images_per_prompt=COPIES.value,
        batch_size=BATCH_SIZE.value or 32,
        **options,
    )
    clips = (clip for videos in made for clip in videos.frames)
    with contextlib.closing(made):  # its bar ends before an error is told
        for index, clip in enumerate(clips):
            prompt, copy = prompts[index // COPIES.value], index % COPIES.value
            name = f"{media.file_name(prompt)}_seed{SEED.value}{f'_{copy}' if copy else ''}"
            clip = media.enlarge(clip, UPSCALE.value)
            file = media.save_clip(out / name, clip, fps, gif=GIF.value)
            with tqdm.external_write_mode():  # the bar makes room
                print(file, flush=True)


def _load(source: str) -> NovaPipeline:
    """Loads whatever --checkpoint names."""
    pipeline = NovaPipeline.from_pretrained(
        source, weights=WEIGHTS.value, dtype=DTYPE.value, unroll=UNROLL.value
    )
    if SIZE.value is None:
        return pipeline
    height, x, width = SIZE.value.partition("x")
    if not (x and height.isdecimal() and width.isdecimal()):
        raise NovaError(f"--size={SIZE.value} is not HEIGHTxWIDTH, such as 480x768")
    return pipeline.resized(int(height), int(width))


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

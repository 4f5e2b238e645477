"""Trains a small model on moving digits, then generates from it: `make demo`.

    python -m nova_jax.demo --out=demo_output [--config.steps=500]

Run again, it goes on where it stopped, and when the model is trained it generates anew.
"""

from __future__ import annotations

from absl import flags, logging

from nova_jax import cli, media
from nova_jax.files import output_folder
from nova_jax.pipeline import NovaPipeline
from nova_jax.training.config import TrainConfig
from nova_jax.training.loop import train

CONFIG = cli.define_config("Recipe, digits_t2v:demo by default; --config.key=value changes it.")
OUT = flags.DEFINE_string("out", "demo_output", "Where everything goes.")

PROMPTS = (
    "a red seven drifts slowly to the left",
    "the digit 3 in blue moves up and bounces",
    "a green zero races quickly to the lower right corner",
    "a yellow number 5 glides gently downward",
    "a handwritten 2 in cyan goes quickly up and to the left",
    "magenta eight, right and back",
    "an orange four moves slowly diagonally up right",
    "the number 9, white, moves fast to the right",
)


def main() -> None:
    """Trains, generates and says where the pictures are."""
    logging.set_verbosity(logging.ERROR)  # Orbax explains itself at length
    config, out = TrainConfig.from_dict(CONFIG.value.to_dict()), output_folder(OUT.value)
    print(f"1. Training {config.steps} steps on moving digits, rendered on the fly ...")
    result = train(config, out / "run")
    if not result.finished:
        print("Stopped; the same command goes on from here.")
        return

    print(f"2. Generating {len(PROMPTS)} videos ...")
    pipeline = NovaPipeline.from_checkpoint(out / "run" / "model")
    videos = pipeline(PROMPTS)
    clips = media.enlarge(videos.frames)
    sheet = media.contact_sheet(media.enlarge(videos.frames, 96), PROMPTS)
    written = [media.save(out / "videos.png", media.encode_png(sheet))]
    for prompt, clip in zip(PROMPTS, clips, strict=True):
        written.append(media.save_clip(out / media.file_name(prompt), clip, videos.fps))

    print("3. Done. Look at")
    for path in written:
        print(f"     {path.absolute()}")
    model = out / "run" / "model"
    print(f'   Your own: python -m nova_jax.generate --checkpoint={model} --prompt="..."')
    print(f"   Scores:   python -m nova_jax.evaluate --checkpoint={model}")


if __name__ == "__main__":
    cli.run(main, config="digits_t2v:demo")

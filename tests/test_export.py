"""Exported generation: the script in docs/export.md gives the same videos without this package."""

import json
import re
import resource
import subprocess
import sys
import zipfile
from pathlib import Path

import jax
import numpy as np
import pytest
import safetensors
from PIL import Image, ImageSequence

from nova_jax.errors import NovaError
from nova_jax.export import PLATFORMS, destination, export, write
from nova_jax.pipeline import NovaPipeline

DOCUMENT = Path(__file__).parents[1] / "docs" / "export.md"
RELEASED = Path(__file__).parent / "golden" / "pipeline_t2v"
FEW = {"num_inference_steps": 1, "num_diffusion_steps": 2}


@pytest.fixture(scope="module")
def script() -> tuple[str, str]:
    """The documented script, and what takes the place of its `tokens` with a tokenizer."""
    whole, tokens = re.findall(r"```python.*?\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
    assert len([line for line in whole.splitlines() if line]) <= 20
    return whole, tokens


def run(script: str, folder: Path, *arguments: str) -> np.ndarray:
    """The frames that the script writes, from a process that cannot import this package."""
    (folder / "run.py").write_text(script)
    without = "import runpy, sys; sys.modules['nova_jax'] = None; runpy.run_path('run.py')"
    # Frames of this kind of file are exact.
    command = [sys.executable, "-c", without, *arguments, "video.png"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    with Image.open(folder / "video.png") as video:
        return np.stack([np.asarray(x.convert("RGB")) for x in ImageSequence.Iterator(video)])


def assert_same(video: np.ndarray, expected: np.ndarray) -> None:
    difference = np.abs(video.astype(int) - expected)
    assert video.shape == expected.shape
    assert difference.max() <= 1 and (difference > 0).mean() < 1e-3


@pytest.fixture(scope="module")
def exported(untrained, tmp_path_factory) -> tuple[NovaPipeline, Path]:
    pipeline = NovaPipeline.from_checkpoint(untrained, devices=jax.devices()[:1])
    return pipeline, export(pipeline, tmp_path_factory.mktemp("export") / "small.zip")[0]


def test_the_documented_script_makes_the_same_video(exported, script):
    pipeline, file = exported
    prompt = "a Red seven, moves left!"
    video = run(script[0], file.parent, "small.zip", prompt, "5")
    assert_same(video, pipeline(prompt, seed=5).frames[0])


def test_it_says_what_it_takes_and_gives(exported):
    pipeline, file = exported
    with zipfile.ZipFile(file) as archive:
        about = json.loads(archive.read("about.json"))
        programs = {
            name: jax.export.deserialize(bytearray(archive.read(name)))
            for name in about["programs"]
        }
    with safetensors.safe_open(file.with_suffix(".safetensors"), "np") as weights:
        names = set(weights.keys())
    assert names == {name for p in about["programs"].values() for name in p["weights"]}
    for name, program in programs.items():
        described = about["programs"][name]
        assert program.platforms == PLATFORMS
        # Nothing that the program does not use.
        assert len(program.module_kept_var_idx) == len(program.in_avals)
        (weights, *_), inputs = jax.tree.unflatten(program.in_tree, program.in_avals)
        assert set(weights) == set(described["weights"])
        for key, given in described["inputs"].items():
            assert (str(inputs[key].dtype), [*inputs[key].shape]) == (
                given["dtype"],
                given["shape"],
            )
    assert about["programs"]["generate"]["output"] == {"dtype": "uint8", "shape": [1, 3, 16, 16, 3]}
    assert about["fps"] == 6.0 and about["latent_frames"] == 3
    assert about["programs"]["generate"]["inputs"]["motion_flow"]["default"] == 1.5


def test_all_inputs_of_a_released_model(script, tmp_path):
    """With its tokenizer, text encoder and autoencoder; two videos at a time."""
    pipeline = NovaPipeline.from_pretrained(RELEASED)
    options = FEW | {"guidance_renorm": 0.5, "max_latent_length": 1}
    export(pipeline, tmp_path / "m.zip", batch_size=2, **options)
    whole, tokens = script
    whole = re.sub(r"def tokens\(.*?\n\n", lambda _: tokens + "\n", whole, flags=re.DOTALL)
    # The second prompt is the negative one.
    whole = whole.replace("seed=int(seed)", "seed=int(seed), motion_flow=3.0, **negative")
    negative = 'negative = {"negative_text": text["text"][::-1], "negative_length": 2}\n'
    whole = whole.replace("first, *rest", negative + "first, *rest")
    video = run(whole, tmp_path, "m.zip", "a red seven", "4")
    features, lengths = pipeline.text_encoder.encode(["a red seven"], 16)
    expected = pipeline(
        "a red seven",
        seed=4,
        motion_flow=3.0,
        negative_prompt_embeds=[features[0, :2]],
        **options,
    )
    assert_same(video, expected.frames[0])


def test_a_disk_that_fills_up_leaves_nothing(tmp_path):
    files, weights = destination(tmp_path / "new" / "a.zip"), {"w": np.zeros(5000, np.uint8)}
    usual = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, usual[1]))  # the second file has no room
    try:
        with pytest.raises(Exception, match="File too large"):
            write(files, {"about.json": "{}"}, weights)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, usual)
    assert not list((tmp_path / "new").iterdir())
    write(files, {"about.json": "{}"}, weights)
    assert sorted((tmp_path / "new").iterdir()) == sorted(files)


def test_a_class_conditional_model(save_untrained, tmp_path):
    changes = dict(frames=1, text_dim=None, text_length=None, num_classes=10, mixer_rank=None)
    pipeline = NovaPipeline.from_checkpoint(save_untrained(tmp_path / "classes", **changes))
    file, beside = export(pipeline, tmp_path / "new" / "c.zip", batch_size=2, **FEW)
    weights = safetensors.numpy.load_file(beside)
    with zipfile.ZipFile(file) as archive:
        assert sorted(archive.namelist()) == ["about.json", "generate"]
        program = jax.export.deserialize(bytearray(archive.read("generate")))

    def pictures(labels: list[int], seeds: list[int]) -> np.ndarray:
        return np.asarray(program.call(weights, label=np.int32(labels), seed=np.uint32(seeds)))

    one, other = pictures([3, 4], [1, 1])
    assert one.shape == (1, 16, 16, 3) and np.abs(one.astype(int) - other).max() > 4
    np.testing.assert_array_equal(pictures([4, 3], [1, 1]), [other, one])
    assert np.abs(pictures([3, 4], [2, 1])[0].astype(int) - one).max() > 4


def test_what_cannot_be_written_is_said_before_anything_is_done(exported, tmp_path):
    pipeline, file = exported
    for name, message in {
        file: "small.zip exists already; choose another name",
        tmp_path / "model.bin": "would be a zip archive; name it model.bin.zip",
    }.items():
        with pytest.raises(NovaError, match=message):
            export(pipeline, name)
    (tmp_path / "a.safetensors").touch()
    with pytest.raises(NovaError, match=r"a\.safetensors exists already"):
        export(pipeline, tmp_path / "a.zip")
    with pytest.raises(NovaError, match="file is 0; it must be a path"):
        export(pipeline, 0)
    for options, message in [
        ({"sampler": "pallas"}, 'sampler "pallas" is for the machine it runs on'),
        ({"num_frames": 0}, "num_frames is 0; it must be at least 1"),
        ({"guidance_renorm": 3}, "guidance_renorm is 3; it must be at least 0"),
        ({"batch_size": 1.5}, "batch_size is 1.5; it must be int"),
        ({"motion_flow": np.nan}, "motion_flow is nan; it must be finite"),
        ({"num_frames": 2**31 - 1}, "for the videos; H200 has .* GB; lower batch_size"),
    ]:
        with pytest.raises(NovaError, match=message):
            export(pipeline, tmp_path / "b.zip", **options)
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]

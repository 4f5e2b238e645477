"""What a name is: every kind of checkpoint, names that lead nowhere, and names on the hub."""

import dataclasses
import json
import math
import shutil
import zipfile
from pathlib import Path
from typing import ClassVar

import grain
import huggingface_hub
import jax
import numpy as np
import pytest
from flax import nnx
from flax.traverse_util import flatten_dict
from safetensors.numpy import load_file

from nova_jax.autoencoders import registry as codecs
from nova_jax.autoencoders.pixels import PixelCodec
from nova_jax.checkpoints import rules
from nova_jax.checkpoints.open import Defaults, open_checkpoint
from nova_jax.checkpoints.run import RunCheckpoints, claim_workdir
from nova_jax.errors import NovaError
from nova_jax.export import export
from nova_jax.pipeline import SHIPPED, NovaPipeline
from nova_jax.prepare.encoders import load_encoders
from nova_jax.text import registry as text_encoders
from nova_jax.text.hashed_words import HashedTextEncoder

RELEASED = Path(__file__).parent.parent / "golden" / "pipeline_t2v"


@pytest.fixture
def offline(monkeypatch):
    """Looking at the hub is a failure."""
    monkeypatch.setattr(
        huggingface_hub, "snapshot_download", lambda *_, **__: pytest.fail("the hub is asked")
    )


@pytest.fixture
def asked(monkeypatch) -> list[tuple[str, list[str]]]:
    """What the hub is asked for; it has the released model, without weights of the autoencoder."""
    questions = []

    def download(name: str, revision: str | None, allow_patterns: list[str]) -> str:
        name = name if revision is None else f"{name} at {revision}"
        questions.append((name, [p for p in allow_patterns if p.endswith(("tensors", "bin"))]))
        return str(RELEASED)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    return questions


@pytest.fixture(scope="module")
def workdir(untrained, tmp_path_factory) -> Path:
    """A run of two steps, whose parameters are those of the model, and averages half of them."""
    directory = tmp_path_factory.mktemp("runs") / "mine"
    checkpoint = open_checkpoint(untrained)
    claim_workdir(directory, checkpoint.config)
    state = nnx.to_pure_dict(nnx.state(checkpoint.load_transformer()[0]))
    params = flatten_dict(state, sep=".")
    frozen = {"text_embed.buffer": params.pop("text_embed.buffer")}
    with RunCheckpoints(directory, keep_latest=2, keep_best=0) as checkpoints:
        for step in (1, 2):
            ema = jax.tree.map(lambda x: x / 2, params)
            trees = {"params": params, "ema": ema, "frozen": frozen}
            data = iter(grain.MapDataset.range(3).to_iter_dataset())
            checkpoints.save(step, trees, data)
    return directory


def types(model) -> set[str]:
    return {str(leaf.dtype) for leaf in jax.tree.leaves(nnx.state(model))}


def mask_token(model) -> np.ndarray:
    return np.asarray(model.spatial_decoder.mask_token.get_value())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_kind_is_known_and_loads_the_same_way(untrained, workdir, offline, dtype):
    found = [open_checkpoint(place) for place in (RELEASED, untrained, workdir)]
    assert [checkpoint.kind for checkpoint in found] == ["released", "model", "run"]
    assert [checkpoint.step for checkpoint in found] == [0, 0, 2]
    for checkpoint, place in zip(found, (RELEASED, untrained, workdir), strict=True):
        assert Path(checkpoint.directory) == place
        model, _ = checkpoint.load_transformer(dtype=dtype, param_dtype="bfloat16")
        assert model.config == checkpoint.model_config()
        assert types(model) == {"bfloat16"}
        assert model.spatial_decoder.patch_embed.dtype == dtype
        assert checkpoint.load_autoencoder().latent_channels == model.config.latent_channels
        assert checkpoint.load_text_encoder().dim == model.config.text_dim
    released, trained, run = (checkpoint.defaults() for checkpoint in found)
    assert released == Defaults() and released.sampling.guidance.scale == 5.0
    assert (trained.frames, trained.motion_flow, trained.fps) == (3, 1.5, 6.0)
    assert trained.sampling.num_diffusion_steps == 3 and run == trained


def test_a_run_has_several_models(untrained, workdir):
    whole = mask_token(open_checkpoint(untrained).load_transformer()[0])
    for weights, factor in {"raw": 1, "ema": 0.5}.items():
        checkpoint = open_checkpoint(workdir, weights=weights, step=1)
        assert checkpoint.step == 1
        found = mask_token(checkpoint.load_transformer()[0])
        np.testing.assert_array_equal(found, factor * whole)


def test_a_pipeline_opens_every_kind(untrained, workdir):
    few = dict(num_inference_steps=1, num_diffusion_steps=1, disable_progress_bar=True)
    for source in (RELEASED, untrained, workdir):
        pipeline = NovaPipeline.from_pretrained(source, dtype="bfloat16")
        assert types(pipeline.model) == {"bfloat16"}
        kept = NovaPipeline.from_pretrained(source, dtype="bfloat16", param_dtype="float32")
        assert types(kept.model) == {"float32"}
    assert pipeline("a red seven", **few).frames.shape == (1, 3, 16, 16, 3)
    shipped = NovaPipeline.from_checkpoint()
    assert shipped.config == open_checkpoint(SHIPPED).model_config()


def test_data_is_prepared_with_the_parts_of_any_kind(untrained):
    encoders = load_encoders(str(untrained), text_length=8)
    assert encoders.encoding.moments == encoders.encoding.channels == 3
    assert encoders.encoding.scale == (4.0,) * 3 and encoders.encoding.shift == (0.0,) * 3
    frames = np.full((1, 1, 8, 8, 3), 255, np.uint8)
    np.testing.assert_array_equal(encoders.start(frames), np.ones(frames.shape, np.float32))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("runs/mien", "there is no directory runs/mien; did you mean runs/mine"),
        ("run", r"there is no directory run; did you mean runs\?"),
        ("runs/mine/modle", "did you mean runs/mine/model"),
        ("runns/mine/model", r"there is no directory runns/mine/model; did you mean runs\?"),
        ("./BAAI/nova", "there is no directory ./BAAI/nova; nor one with a name like it"),
        ("../BAAI", "there is no directory ../BAAI"),
        ("~/no/nova", "there is no directory ~/no/nova"),
        ("nowhere", "a model on the Hugging Face hub is OWNER/NAME"),
        ("/no/such/place", "there is no directory /no/such/place"),
        ("runs/mine/model/config.json", "config.json is a file; give the directory"),
        ("runs", "runs is no checkpoint: it has no config.json.* and no model_index.json"),
    ],
)
def test_what_looks_local_never_reaches_the_network(name, message, offline, tmp_path, monkeypatch):
    (tmp_path / "runs" / "mine" / "model").mkdir(parents=True)
    (tmp_path / "runs" / "mine" / "model" / "config.json").touch()
    (tmp_path / "runs" / "other").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(NovaError, match=message):
        open_checkpoint(name)


def test_a_home_and_a_relative_path_are_found(untrained, tmp_path, monkeypatch, offline):
    shutil.copytree(untrained, tmp_path / "models" / "small")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    for name in ("models/small", "./models/small", "~/models/small"):
        checkpoint = open_checkpoint(name)
        assert checkpoint.kind == "model"
        assert checkpoint.load_transformer()[0].config == checkpoint.model_config()


def test_an_id_may_have_a_revision(asked):
    assert open_checkpoint("BAAI/nova-d48w1024-osp480@2cd254a").kind == "released"
    assert asked == [("BAAI/nova-d48w1024-osp480 at 2cd254a", ["*/*.safetensors"])]


def test_an_id_is_looked_up_on_the_hub_which_is_said(asked, capsys):
    assert open_checkpoint("BAAI/nova-d48w1024-osp480").kind == "released"
    assert asked == [("BAAI/nova-d48w1024-osp480", ["*/*.safetensors"])]
    said = capsys.readouterr().err
    assert said == (
        "BAAI/nova-d48w1024-osp480 is no folder here; looking on the Hugging Face hub\n"
    )


def test_only_the_part_that_is_needed_is_downloaded(asked):
    open_checkpoint("BAAI/nova", part="transformer")
    open_checkpoint("BAAI/nova", part=None)
    open_checkpoint("BAAI/nova", part="unet")  # has none in safetensors
    assert [weights for _, weights in asked] == [
        ["transformer/*.safetensors"],
        [],
        ["unet/*.safetensors"],
        ["unet/*.bin"],
    ]


def test_a_model_that_cannot_be_downloaded_is_named(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(NovaError, match="hf download nobody/nothing-at-all --local-dir"):
        open_checkpoint("nobody/nothing-at-all")


def test_a_folder_goes_before_an_owner_on_the_hub(offline, tmp_path, monkeypatch):
    (tmp_path / "BAAI").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(NovaError, match="there is no directory BAAI/nova; nor one"):
        open_checkpoint("BAAI/nova")


def test_parts_of_different_models_are_told_apart(tmp_path):
    shutil.copytree(RELEASED, tmp_path / "model")
    shutil.rmtree(tmp_path / "model" / "vae")
    shutil.copytree(RELEASED.parent / "vae_kl_shift", tmp_path / "model" / "vae")
    with pytest.raises(NovaError, match="has latent_channels 4, the autoencoder gives .*different"):
        NovaPipeline.from_pretrained(tmp_path / "model")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dataset": {"fps": "x"}}, "fps is 'x'; it must be float"),
        ({"dataset": {"fps": 0}}, "fps is 0; it must be at least 0.1 and at most 1000"),
        ({"dataset": 3}, "dataset is 3; it must be"),
        ({"motion_flow": math.nan}, r"damaged \(NaN is not finite\)"),
        (
            {"sampling": {"guidance": {"scale": 1e30}}},
            r"sampling.guidance.scale is 1e\+30; it must",
        ),
    ],
)
def test_defaults_that_make_no_sense_are_named(untrained, tmp_path, change, message):
    config = json.loads((untrained / "config.json").read_text()) | change
    (tmp_path / "params").mkdir()
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(NovaError, match=rf"config\.json.*{message}"):
        open_checkpoint(tmp_path).defaults()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Negative(PixelCodec):
    """A codec of one's own: light is dark."""

    type: ClassVar[str] = "negative"

    def decode(self, latents):
        return -super().decode(latents)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Backwards(HashedTextEncoder):
    """A text encoder of one's own: words from the last to the first."""

    type: ClassVar[str] = "backwards"

    def encode(self, prompts, length):
        return super().encode([" ".join(prompt.split()[::-1]) for prompt in prompts], length)


def test_parts_of_ones_own_are_registered_in_one_place(untrained, tmp_path, monkeypatch):
    monkeypatch.setitem(codecs.CODECS, "negative", Negative)
    monkeypatch.setitem(text_encoders.TEXT_ENCODERS, "backwards", Backwards)
    shutil.copytree(untrained, tmp_path / "model")
    path = tmp_path / "model" / "config.json"
    config = json.loads(path.read_text())
    config["codec"]["type"], config["text_encoder"]["type"] = "negative", "backwards"
    path.write_text(json.dumps(config))
    few = dict(num_inference_steps=1, num_diffusion_steps=1, num_frames=1)
    own, usual = (NovaPipeline.from_pretrained(place) for place in (path.parent, untrained))
    options = few | {"disable_progress_bar": True}
    frames = own("seven red a", **options).frames.astype(int)
    np.testing.assert_allclose(frames, 255 - usual("a red seven", **options).frames, atol=1)
    export(own, tmp_path / "own.zip", **few)
    with zipfile.ZipFile(tmp_path / "own.zip") as archive:
        assert json.loads(archive.read("about.json"))["tokens"] == {"kind": "backwards"}
        program = jax.export.deserialize(bytearray(archive.read("generate")))
    given = own.text_encoder.encode(["seven red a"], 8)
    inputs = {"text": given[0], "text_length": given[1], "motion_flow": np.float32([1.5])}
    inputs |= {"negative_text": 0 * given[0], "negative_length": 0 * given[1]}
    weights = load_file(tmp_path / "own.safetensors")
    made = program.call(weights, seed=np.uint32([0]), **inputs)
    np.testing.assert_allclose(np.asarray(made).astype(int), frames, atol=1)


def test_every_language_model_has_a_table_of_names():
    assert rules.TEXT_ENCODERS.keys() == text_encoders.LANGUAGE_MODELS.keys()


def test_models_of_the_package_have_names_unless_a_folder_has_them(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert open_checkpoint("digits_t2v").model_config().is_video
    (tmp_path / "digits_t2v").mkdir()
    with pytest.raises(NovaError, match="digits_t2v is no checkpoint"):
        open_checkpoint("digits_t2v")

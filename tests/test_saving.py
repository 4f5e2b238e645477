"""Pipelines that are saved and pushed open again with the same numbers; cards say what is so."""

import json
import shutil
from pathlib import Path

import grain
import hub
import huggingface_hub
import jax
import numpy as np
import pytest
import small
from flax import nnx
from huggingface_hub import ModelCard
from safetensors.numpy import load_file

from nova_jax.checkpoints.conversion import released_to_native
from nova_jax.checkpoints.hub import MODEL_FILES
from nova_jax.checkpoints.open import open_checkpoint
from nova_jax.checkpoints.run import RunCheckpoints, claim_workdir
from nova_jax.errors import NovaError
from nova_jax.pipeline import NovaPipeline
from nova_jax.training.config import TrainConfig

RELEASED = Path(__file__).parent / "golden" / "pipeline_t2v"
FEW = dict(
    num_inference_steps=2,
    num_diffusion_steps=2,
    max_latent_length=1,
    disable_progress_bar=True,
)
ONE = jax.devices()[:1]


def open_one(place, **options) -> NovaPipeline:
    return NovaPipeline.from_pretrained(place, devices=ONE, **options)


def numbers(pipeline: NovaPipeline) -> list[np.ndarray]:
    """Of the transformer and of the frozen parts that have some."""
    networks = (pipeline.model, pipeline.codec.network, pipeline.text_encoder.network)
    states = [nnx.state(network) for network in networks if network is not None]
    return [np.asarray(leaf) for leaf in jax.tree.leaves(states)]


def files(directory: Path) -> set[str]:
    found = (path for path in directory.rglob("*") if path.is_file())
    return {path.relative_to(directory).as_posix() for path in found}


def assert_same(one: NovaPipeline, other: NovaPipeline, *, draw: bool = True) -> None:
    """Every number and default of two pipelines is the same, and so is a picture they draw."""
    texts = [p.text_encoder.encode(["a red seven"], 8)[0] for p in (one, other)]
    np.testing.assert_array_equal(*texts)
    for name in ("config", "frames", "sampling", "motion_flow", "fps", "schedule", "size"):
        assert getattr(one, name) == getattr(other, name), name
    for a, b in zip(numbers(one), numbers(other), strict=True):
        assert a.dtype == b.dtype and a.tobytes() == b.tobytes()
    if draw:
        drawn = [p("a red seven", seed=5, **FEW).frames for p in (one, other)]
        np.testing.assert_array_equal(*drawn)


@pytest.fixture(scope="module")
def workdir(tmp_path_factory) -> Path:
    """A run of two steps, whose averages are half of its parameters, and what it has drawn."""
    place = tmp_path_factory.mktemp("run") / "mine"
    config = TrainConfig.from_dict(small.RUN | {"motion_flow": 1.25})
    claim_workdir(place, config.to_dict())
    params = small.draw_variables(config.model)
    frozen = {"text_embed.buffer": params.pop("text_embed.buffer")}
    with RunCheckpoints(place, keep_latest=1, keep_best=0) as checkpoints:
        trees = {"params": params, "ema": jax.tree.map(lambda x: x / 2, params), "frozen": frozen}
        checkpoints.save(2, trees, iter(grain.MapDataset.range(3).to_iter_dataset()))
    (place / "samples").mkdir()
    for step in (1, 2):
        shutil.copy(small_picture(), place / "samples" / f"step_{step:07}.png")
    return place


@pytest.mark.parametrize("weights", ["ema", "raw"])
def test_a_training_run_is_saved_as_it_draws(workdir, tmp_path, weights):
    run = open_one(workdir, weights=weights)
    assert run.save_pretrained(tmp_path / "saved", license="cc-by-4.0") == tmp_path / "saved"
    saved = open_one(tmp_path / "saved")
    assert_same(run, saved)
    assert (saved.origin.kind, saved.origin.step) == ("model", 2)
    assert saved.origin.config["training"]["weights"] == weights
    # And once more: nothing of the run is lost on the way.
    saved.save_pretrained(tmp_path / "again")
    config = [json.loads((tmp_path / d / "config.json").read_text()) for d in ("saved", "again")]
    assert config[0] == config[1]


def test_the_card_of_a_run_says_how_it_was_made(workdir, tmp_path):
    open_one(workdir).save_pretrained(tmp_path / "mine", license="cc-by-4.0")
    card = ModelCard.load(tmp_path / "mine" / "README.md")
    assert card.data.license == "cc-by-4.0" and card.data.pipeline_tag == "text-to-video"
    for said in (
        "# mine",
        "2 frames of 12x12 pixels from text",
        'from_pretrained("mine")',
        'pipeline("a red seven moves up", seed=0)',
        '| temporal_encoder | `"vit_d1w32"` |',
        "| motion_flow | `1.25` |",
        "| num_clips | `64` |",  # of the data
        "| optimizer.learning_rate | `0.001` |",
        "| steps | `2` |",
        '"loss_repeat": 2',  # of the whole recipe
        "![step_0000002](pictures/step_0000002.png)",
        "## Scores\n\nNone were given.",
        "## License\n\ncc-by-4.0.",
    ):
        assert said in card.text, said
    drawn = (workdir / "samples" / "step_0000002.png").read_bytes()
    assert (tmp_path / "mine" / "pictures" / "step_0000002.png").read_bytes() == drawn


def test_a_released_model_keeps_its_layout_and_defaults_of_its_own(tmp_path):
    released = open_one(RELEASED)
    released.frames, released.fps = 3, 9.0
    released.sampling = released.sampling_with(guidance_scale=2.5, num_inference_steps=3)
    released.save_pretrained(tmp_path / "saved")
    assert_same(released, open_one(tmp_path / "saved"))
    # What PyTorch users read: the same tensors by the same names, and frozen parts to the byte.
    folders = ("vae", "text_encoder", "tokenizer", "scheduler", "model_index.json")
    kept = {name for name in files(RELEASED) if name.split("/")[0] in (*folders, "transformer")}
    assert files(tmp_path / "saved") == kept | {"README.md", "nova_jax.json"}
    weights = "transformer/diffusion_pytorch_model.safetensors"
    for name in kept - {weights}:
        assert (tmp_path / "saved" / name).read_bytes() == (RELEASED / name).read_bytes(), name
    ours, theirs = (load_file(place / weights) for place in (tmp_path / "saved", RELEASED))
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        assert ours[name].tobytes() == value.astype(np.float32).tobytes()


def test_another_size_and_type_are_saved_in_the_released_layout(tmp_path):
    larger = open_one(RELEASED, param_dtype="bfloat16").resized(64, 64)
    larger.save_pretrained(tmp_path / "larger")
    assert open_checkpoint(tmp_path / "larger").kind == "released"
    assert_same(larger, open_one(tmp_path / "larger", param_dtype="bfloat16"), draw=False)


def test_a_mixture_is_saved_with_the_files_of_its_parts(tmp_path):
    """Frozen parts of two releases: no released layout has both."""
    released_to_native(RELEASED, tmp_path / "native")
    parts = tmp_path / "parts"
    shutil.copytree(RELEASED / "vae", parts / "vae")
    config = json.loads((tmp_path / "native" / "config.json").read_text())
    config["codec"]["source"] = str(parts)
    (tmp_path / "native" / "config.json").write_text(json.dumps(config))
    mixed = open_one(tmp_path / "native")
    mixed.save_pretrained(tmp_path / "saved")
    shutil.rmtree(parts)
    shutil.rmtree(tmp_path / "native")
    saved = open_one(tmp_path / "saved")
    assert saved.origin.kind == "model"
    assert_same(mixed, saved, draw=False)


def test_parts_without_known_files_are_refused(tmp_path):
    pipeline = open_one(RELEASED)
    pipeline.codec = pipeline.codec.with_network(pipeline.codec.network)
    with pytest.raises(NovaError, match="files of AutoencoderCodec are not known; open it with"):
        pipeline.save_pretrained(tmp_path / "saved")
    assert not list(tmp_path.iterdir())


def test_absolute_paths_stay_at_home(untrained, tmp_path):
    shutil.copytree(untrained, tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    config["training"] = {"init": {"checkpoint": "/home/somebody/base"}, "steps": 3}
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    open_one(tmp_path / "model").save_pretrained(tmp_path / "saved", results=[evaluated(tmp_path)])
    for file in files(tmp_path / "saved"):
        if file.endswith((".json", ".md")):
            assert "somebody" not in (tmp_path / "saved" / file).read_text(), file


def evaluated(folder: Path, **changes: object) -> Path:
    """What `nova_jax.evaluate` writes of digits, in small."""
    scores = {"digit in every frame": dict(right=1, total=2, rate=0.5, interval=[0.0945, 0.9055])}
    values = {
        "checkpoint": "/home/somebody/mine",
        "seed": 3,
        "frames": 2,
        "judges_on_real_digits": {"scores": {"all": scores}},
        "scores": {"seen": scores},
        "answers": [{}, {}],
    }
    (folder / "evaluation.json").write_text(json.dumps(values | changes))
    shutil.copy(small_picture(), folder / "evaluation.png")
    return folder


def small_picture() -> Path:
    return Path(__file__).parents[1] / "docs" / "images" / "first_frame.png"


def test_scores_have_their_intervals(untrained, tmp_path):
    pipeline = open_one(untrained)
    results = evaluated(tmp_path, fingerprint=pipeline.fingerprint)
    pipeline.save_pretrained(tmp_path / "saved", results=[results], pictures=[small_picture()])
    card = ModelCard.load(tmp_path / "saved" / "README.md")
    assert "2 prompts from seed 3, 2 frames" in card.text
    assert "|  | seen combinations | real clips |" in card.text
    assert "| digit in every frame | 50.0 [9.4, 90.5] / 2 | 50.0 [9.4, 90.5] / 2 |" in card.text
    assert "![evaluation](pictures/evaluation.png)" in card.text
    assert "![first_frame](pictures/first_frame.png)" in card.text
    # What the judges say of real clips is no score of the model.
    (entry,) = card.data.eval_results
    assert (entry.dataset_name, entry.metric_name) == (
        "moving digits, seen combinations",
        "digit in every frame",
    )
    assert entry.metric_value == 50.0
    assert entry.metric_args == {"interval_95": [9.45, 90.55], "judged": 2}
    assert (tmp_path / "saved" / "results" / "evaluation.json").is_file()


def test_a_report_of_suites_is_read(untrained, tmp_path):
    report = {
        "tables": [
            {
                "title": "GenEval",
                "columns": {"geneval.overall": "Overall"},
                "published": {},
                "found": {"mine": {"geneval.overall": 0.5}},
            }
        ],
        "scores": {"mine": {"geneval": {"values": {}, "missing": [], "notes": ["seconds: 2"]}}},
    }
    (tmp_path / "report.json").write_text(json.dumps(report))
    open_one(untrained).save_pretrained(tmp_path / "saved", results=[tmp_path / "report.json"])
    card = ModelCard.load(tmp_path / "saved" / "README.md")
    assert "|  | GenEval |\n|---|---|\n| Overall | 0.5 |" in card.text
    assert "- seconds: 2" in card.text
    (entry,) = card.data.eval_results
    assert (entry.dataset_name, entry.metric_name, entry.metric_value) == (
        "GenEval",
        "Overall",
        0.5,
    )


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"results": ["nowhere"]}, "nowhere is and has no evaluation.json and no report.json"),
        ({"results": ["other"]}, "evaluation.json is of another model, or of this one with"),
        ({"results": ["damaged"]}, "evaluation.json is damaged .*; evaluate again"),
        ({"results": ["else"]}, "evaluation.json is no result of nova_jax.evaluate; give"),
        ({"results": ["two"]}, r"report.json is of 2 models \(a, b\); report on one"),
        ({"pictures": ["no.png"]}, "picture no.png is missing or none of .png"),
        ({"license": 3}, "license is 3; it must be str"),
    ],
)
def test_what_cannot_be_told_is_named_before_anything_is_written(
    untrained, tmp_path, monkeypatch, asked, message
):
    for name in ("other", "damaged", "else", "two"):
        (tmp_path / name).mkdir()
    evaluated(tmp_path / "other", fingerprint="0")
    evaluated(tmp_path / "damaged", scores=[])
    (tmp_path / "else" / "evaluation.json").write_text("{}")
    (tmp_path / "two" / "report.json").write_text('{"tables": [], "scores": {"a": {}, "b": {}}}')
    monkeypatch.chdir(tmp_path)
    with pytest.raises(NovaError, match=message):
        open_one(untrained).save_pretrained("saved", **asked)
    assert not (tmp_path / "saved").exists()


def test_nothing_is_overwritten(untrained, tmp_path):
    (tmp_path / "mine").write_text("precious")
    with pytest.raises(NovaError, match="exists already; choose another name"):
        open_one(untrained).save_pretrained(tmp_path)
    assert (tmp_path / "mine").read_text() == "precious"


def test_a_dry_run_writes_what_would_be_uploaded_and_asks_nobody(untrained, tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda **_: pytest.fail("the hub is asked"))
    pipeline = open_one(untrained)
    place = pipeline.push_to_hub("me/mine", dry_run=tmp_path / "me")
    assert place == str(tmp_path / "me")
    assert 'from_pretrained("me/mine")' in (tmp_path / "me" / "README.md").read_text()
    assert_same(pipeline, open_one(place), draw=False)
    for wrong in ("mine", "me/mine/1", "me/mine@main", "../mine"):
        with pytest.raises(NovaError, match="is no name on the Hugging Face hub; give OWNER/NAME"):
            pipeline.push_to_hub(wrong, dry_run=tmp_path / "other")


@pytest.fixture
def local_hub(tmp_path, monkeypatch):
    with hub.serve(str(tmp_path / "cache"), monkeypatch) as served:
        yield served


# The hub's client calls httpx as it was called before, when it uploads large files in a plain way.
@pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
def test_what_is_pushed_is_opened_by_its_name(untrained, tmp_path, local_hub, monkeypatch):
    """With the real client, against a server that speaks the hub's protocol."""
    monkeypatch.chdir(tmp_path)
    pipeline = open_one(untrained)
    url = pipeline.push_to_hub("me/mine", token=hub.TOKEN, pictures=[small_picture()], message="1")
    assert url == f"{local_hub.endpoint}/me/mine/commit/{1:040x}"
    pipeline.push_to_hub("me/mine", dry_run=tmp_path / "dry", pictures=[small_picture()])
    uploaded = local_hub.files["me/mine"]
    for name in ("README.md", "config.json", "pictures/first_frame.png"):
        assert uploaded[name] == (tmp_path / "dry" / name).read_bytes()
    opened = open_one("me/mine")
    assert_same(pipeline, opened, draw=False)
    # What generation has no use for is not downloaded.
    there = files(Path(opened.origin.directory))
    assert "README.md" not in there and "pictures/first_frame.png" not in there

    # Another kind of model, to the same place: nothing of the first is left.
    uploaded["notes.txt"] = b"somebody else's"
    released = open_one(RELEASED)
    released.push_to_hub("me/mine", token=hub.TOKEN, message="2")
    assert local_hub.commits == ["1", "2"]
    released.save_pretrained(tmp_path / "released")
    assert local_hub.files["me/mine"].keys() == files(tmp_path / "released") | {"notes.txt"}
    opened = open_one("me/mine")
    assert opened.origin.kind == "released"
    assert_same(released, opened, draw=False)


def test_whoever_may_not_push_hears_so_in_a_line(untrained, local_hub):
    pipeline = open_one(untrained)
    with pytest.raises(NovaError, match=r"me/mine was not uploaded \(.*401.*run `hf auth login`"):
        pipeline.push_to_hub("me/mine", token="hf_wrong")
    assert not local_hub.files


def test_without_a_network_pushing_fails_in_a_line(untrained, local_hub, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:1")
    with pytest.raises(NovaError, match=r"me/mine was not uploaded \("):
        open_one(untrained).push_to_hub("me/mine", token=hub.TOKEN)


def test_the_patterns_cover_a_model_directory(untrained):
    """The hub's own matching finds every file that opening needs."""
    needed = files(untrained)
    found = huggingface_hub.utils.filter_repo_objects(needed, allow_patterns=list(MODEL_FILES))
    assert set(found) == needed

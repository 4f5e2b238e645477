"""Training on prepared records: every one once an epoch, the same stream whoever computes it."""

import contextlib
import dataclasses
import logging

import numpy as np
import pytest
from prepared import ENCODING, make_records
from small import VIDEO

from nova_jax.autoencoders.pixels import PixelCodec
from nova_jax.data.latents import (
    LatentsConfig,
    LatentsDataset,
    SourceConfig,
    sample_latents,
)
from nova_jax.data.pipeline import DataConfig
from nova_jax.errors import NovaError
from nova_jax.models.config import NovaConfig
from nova_jax.text.hashed_words import HashedTextEncoder

MODEL = NovaConfig.from_dict(VIDEO | dict(latent_size=(6, 6), frames=2))
CONFIG = DataConfig(
    batch_size=8, image_batch_size=8, video_fraction=1.0, prefetch=0, text_dropout=0.0
)


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    """Videos 0 to 9 and 26 to 39, pictures 10 to 25."""
    path = tmp_path_factory.mktemp("latents") / "data"
    return make_records(path, [((2, 6, 6), 10), ((1, 6, 6), 16), ((2, 6, 6), 14)])


def dataset(*directories, model=MODEL, held_out=0, weights=None, **options):
    weights = weights or [1.0] * len(directories)
    sources = tuple(
        SourceConfig(path=str(d), weight=w) for d, w in zip(directories, weights, strict=True)
    )
    return LatentsDataset(LatentsConfig(sources=sources, held_out=held_out), model, **options)


def take(data, count, config=CONFIG, *process):
    with contextlib.closing(data.batches(config, *process)) as batches:
        return [next(batches) for _ in range(count)]


def numbers(batches):
    """Which records are in batches: their latents are (n - 0.5) · 2."""
    values = np.concatenate([batch["latents"].mean((1, 2, 3, 4)) for batch in batches])
    return np.round(values / 2 + 0.5).astype(int).tolist()


def assert_same(some, others):
    for one, other in zip(some, others, strict=True):
        assert one.keys() == other.keys()
        for name, value in one.items():
            np.testing.assert_array_equal(value, other[name], err_msg=name)


def test_batches_have_the_promised_form(directory):
    (batch,) = take(dataset(directory, keep_captions=True), 1)
    assert batch["latents"].shape == (8, 2, 6, 6, 3) and batch["latents"].dtype == np.float32
    assert batch["text"].shape == (8, 8, 16) and batch["text"].dtype == np.float16
    shown = [f"record {n}" for n in numbers([batch])]
    assert [text.replace("short", "record") for text in batch["caption"]] == shown
    for n, text, length, flow, fps in zip(
        numbers([batch]), batch["text"], batch["text_length"], batch["flow"], batch["fps"],
        strict=True,
    ):  # fmt: skip
        assert (length, text[0, 0]) in ((n % 5, n if n % 5 else 0), (1, -n))
        assert (text[length:] == 0).all()
        assert flow == np.float32(n / 10) and fps == 12


def test_each_epoch_has_every_record_once_in_a_new_order(directory):
    found = numbers(take(dataset(directory), 6))
    videos = [*range(10), *range(26, 40)]
    assert sorted(found[:24]) == sorted(found[24:]) == videos
    assert found[:24] != found[24:]


def test_eight_processes_see_what_one_sees_to_the_bit(directory):
    data = dataset(directory)
    config = dataclasses.replace(CONFIG, text_dropout=0.3, flow_dropout=0.3)
    whole = take(data, 3, config)
    parts = [take(data, 3, config, index, 8) for index in range(8)]
    together = [
        {name: np.concatenate([part[step][name] for part in parts]) for name in whole[0]}
        for step in range(3)
    ]
    assert_same(together, whole)
    assert sorted(n for part in parts for n in numbers(part)) == [*range(10), *range(26, 40)]


def test_worker_processes_and_prefetching_do_not_change_the_stream(directory):
    expected = take(dataset(directory), 4)
    for changes in ({"prefetch": 3}, {"num_workers": 1, "prefetch": 1}):
        assert_same(take(dataset(directory), 4, dataclasses.replace(CONFIG, **changes)), expected)


def test_a_saved_position_continues_exactly(directory):
    config = dataclasses.replace(CONFIG, video_fraction=0.5, prefetch=2)
    batches = dataset(directory).batches(config)
    for _ in range(5):
        next(batches)
    position = batches.get_state()
    expected = [next(batches) for _ in range(4)]
    assert {batch["latents"].shape[1] for batch in expected} == {1, 2}
    fresh = dataset(directory).batches(config)
    fresh.set_state(position)
    assert_same([next(fresh) for _ in range(4)], expected)
    for iterator in (batches, fresh):
        iterator.close()


def test_pictures_are_told_the_frame_rate_of_the_run(directory):
    config = dataclasses.replace(CONFIG, video_fraction=0.0)
    batches = take(dataset(directory), 2, config)
    assert sorted(numbers(batches)) == list(range(10, 26))
    assert {float(fps) for batch in batches for fps in batch["fps"]} == {12.0}


def test_lengths_are_buckets_of_their_own_and_share_by_size(tmp_path):
    directory = make_records(tmp_path / "data", [((2, 6, 6), 8), ((3, 6, 6), 24)])
    batches = take(dataset(directory), 16)
    lengths = [batch["latents"].shape[1] for batch in batches]
    assert lengths.count(3) == 12 and lengths.count(2) == 4
    assert sorted(numbers(batches)) == sorted([*range(32)] * 4)


@pytest.mark.parametrize("weights", [(1.0, 1.0), (1.0, 3.0)])
def test_sources_are_mixed_by_weight(directory, tmp_path, weights):
    other = make_records(tmp_path / "other", [((2, 6, 6), 8)], first=100)
    found = numbers(take(dataset(directory, other, weights=weights), 24))
    if weights == (1.0, 1.0):  # an epoch of both together is an epoch of each
        assert sorted(found[:32]) == [*range(10), *range(26, 40), *range(100, 108)]
    share = sum(n >= 100 for n in found) / len(found)
    wanted = 8 * weights[1] / (24 * weights[0] + 8 * weights[1])
    assert abs(share - wanted) < 0.02
    rest = [n for n in found if n < 100][:24]
    assert sorted(rest) == [*range(10), *range(26, 40)] or weights == (1.0, 1.0)


def test_conditions_are_chosen_and_dropped_as_often_as_asked(directory):
    config = dataclasses.replace(
        CONFIG, text_dropout=0.2, flow_dropout=0.4, default_flow=99.0, short_caption_fraction=0.5
    )
    batches = take(dataset(directory, keep_captions=True), 75, config)
    dropped = np.concatenate([batch["dropped"] for batch in batches])
    assert abs(dropped.mean() - 0.2) < 0.05
    assert abs(np.mean([(batch["flow"] == 99).mean() for batch in batches]) - 0.4) < 0.06
    captions = [text for batch in batches for text in batch["caption"]]
    even = [text for text in captions if int(text.split()[1]) % 2 == 0]
    assert abs(np.mean([text.startswith("short") for text in even]) - 0.5) < 0.08
    for batch in batches:
        assert (batch["text_length"][batch["dropped"]] == 0).all()


def test_latents_are_drawn_from_their_moments():
    moments = np.zeros((1, 200, 200, 6), np.float16)
    moments[..., :3], moments[..., 3:] = 3.0, 2 * np.log(0.5)
    record = {"moments": moments, "encoding": ENCODING}
    drawn = sample_latents(record, np.random.default_rng(0))
    # z of mean 3 and deviation ½, then (z - ½) · 2.
    assert abs(drawn.mean() - 5) < 0.02 and abs(drawn.std() - 1) < 0.02
    np.testing.assert_allclose(sample_latents(record, None), 5.0)
    assert (drawn != sample_latents(record, np.random.default_rng(1))).any()


def test_held_out_records_are_not_trained_on_and_always_the_same(directory):
    data = dataset(directory, held_out=6)
    batches = list(data.held_out(CONFIG, 2))
    assert set(numbers(batches)) == set(range(34, 40))
    assert_same(batches, list(data.held_out(CONFIG, 2)))
    assert {tuple(batch["latents"].shape) for batch in batches} == {(8, 2, 6, 6, 3)}
    halves = [list(data.held_out(CONFIG, 2, index, 2)) for index in range(2)]
    assert sorted(numbers(halves[0] + halves[1])) == sorted(numbers(batches))
    assert sorted(numbers(take(data, 9))[:18]) == [*range(10), *range(26, 34)]
    everything = dataset(directory)
    assert set(numbers(everything.held_out(CONFIG, 3))) == {*range(10), *range(26, 40)}


def test_class_models_get_labels(directory):
    model = dataclasses.replace(MODEL, text_dim=None, text_length=None, num_classes=10)
    config = dataclasses.replace(CONFIG, text_dropout=0.5)
    batches = take(dataset(directory, model=model), 6, config)
    labels = np.concatenate([batch["label"] for batch in batches])
    wanted = np.array(numbers(batches)) % 10
    assert set(labels[labels != wanted]) == {10} and "text" not in batches[0]


def test_aspects_are_buckets_of_their_own_and_share_by_size(tmp_path):
    directory = make_records(tmp_path / "data", [((2, 6, 6), 8), ((2, 9, 6), 16), ((1, 6, 12), 8)])
    data = dataset(directory, held_out=0)
    batches = take(data, 9)
    sizes = [batch["latents"].shape[2:4] for batch in batches]
    assert sizes.count((9, 6)) == 6 and sizes.count((6, 6)) == 3
    assert sorted(numbers(batches)) == sorted([*range(24)] * 3)
    pictures = take(data, 2, dataclasses.replace(CONFIG, video_fraction=0.0))
    assert {batch["latents"].shape for batch in pictures} == {(8, 1, 6, 12, 3)}


@pytest.mark.parametrize(("sizes", "left"), [("all", 5), ("model", 9)])
def test_records_that_do_not_fit_are_left_out_with_a_warning(tmp_path, caplog, sizes, left):
    shapes = [((2, 6, 6), 8), ((2, 4, 8), 3), ((2, 3, 6), 2), ((2, 6, 9), 4)]
    config = LatentsConfig(
        sources=(SourceConfig(path=str(make_records(tmp_path / "data", shapes))),),
        sizes=sizes,
        held_out=0,
    )
    with caplog.at_level(logging.WARNING):
        data = LatentsDataset(config, MODEL)
    assert f"{left} records are left out" in caplog.text
    assert data.shapes == ([(2, 6, 6), (2, 6, 9)] if sizes == "all" else [(2, 6, 6)])


@pytest.mark.parametrize(
    ("model", "named"),
    [
        (
            {"latent_size": (12, 12)},
            "no records of 2 latent frames of 12x12, only clips of .*2x6x6",
        ),
        ({"frames": 3}, "no records of 3 latent frames"),
        ({"latent_channels": 4}, "latent_channels is 4, the records of .* have 3"),
        ({"text_dim": 32}, "text_dim is 32, the records of .* have 16"),
    ],
)
def test_models_that_do_not_fit_are_named(directory, model, named):
    with pytest.raises(NovaError, match=named):
        dataset(directory, model=dataclasses.replace(MODEL, **model))


def test_what_cannot_be_is_named(directory, tmp_path):
    with pytest.raises(NovaError, match="config.codec is not what .* was prepared with"):
        dataset(directory, codec=PixelCodec())
    with pytest.raises(NovaError, match="config.text_encoder is not what"):
        dataset(directory, text_encoder=HashedTextEncoder(dim=16))
    with pytest.raises(NovaError, match="held_out 24 leaves no record"):
        dataset(directory, held_out=24)
    with pytest.raises(NovaError, match="no metadata.json"):
        dataset(tmp_path)
    only = make_records(tmp_path / "videos", [((2, 6, 6), 8)])
    with pytest.raises(NovaError, match="has no pictures; set data.video_fraction to 1"):
        dataset(only).batches(dataclasses.replace(CONFIG, video_fraction=0.5))
    with pytest.raises(NovaError, match="batch_size 8 is not divisible by 3"):
        dataset(only).batches(CONFIG, 0, 3)
    with pytest.raises(NovaError, match="sources is empty"):
        LatentsConfig(sources=())
    with pytest.raises(NovaError, match="SourceConfig.weight is 0.0; it must be above 0"):
        SourceConfig(path="x", weight=0.0)

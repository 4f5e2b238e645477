"""The stream of batches: complete, resumable, and the same whoever computes it."""

import contextlib
import dataclasses
import json

import numpy as np
import pytest

from nova_jax.autoencoders.pixels import PixelCodec, to_float
from nova_jax.data.pipeline import DataConfig, make_evaluation_iterator, make_iterator
from nova_jax.data.transforms import Encode
from nova_jax.digits.captions import MAX_WORDS
from nova_jax.digits.clips import DigitsConfig, DigitsSource
from nova_jax.errors import NovaError
from nova_jax.text.hashed_words import HashedTextEncoder

SOURCE = DigitsSource(DigitsConfig(num_clips=48, frames=3))
ENCODE = Encode(
    codec=PixelCodec(),
    text_encoder=HashedTextEncoder(dim=16),
    text_length=MAX_WORDS,
    keep_captions=True,
)
CONFIG = DataConfig(batch_size=8, image_batch_size=16, prefetch=0)


def stream(config=CONFIG, *process, make=make_iterator, source=SOURCE):
    return make(source, config, ENCODE, *process)


def take(iterator, count):
    with contextlib.closing(iterator):
        return [next(iterator) for _ in range(count)]


def assert_same(some, others):
    assert len(some) == len(others)
    for one, other in zip(some, others, strict=True):
        assert one.keys() == other.keys()
        for name, value in one.items():
            np.testing.assert_array_equal(value, other[name], err_msg=name)


def clips_of(batches):
    """How often each clip of `SOURCE` is in the batches."""
    known = {
        PixelCodec().encode(to_float(clip["frames"])[None]).tobytes(): i
        for i, clip in enumerate(SOURCE)
    }
    counts = np.zeros(len(SOURCE), int)
    for batch in batches:
        for latents in batch["latents"]:
            counts[known[latents.tobytes()]] += 1
    return counts


def test_batches_have_the_promised_form():
    batches = take(stream(), 8)
    sizes = {(batch["latents"].shape, batch["text"].shape) for batch in batches}
    assert sizes == {((8, 3, 24, 24, 3), (8, 16, 16)), ((16, 1, 24, 24, 3), (16, 16, 16))}
    for batch in batches:
        assert {name: str(batch[name].dtype) for name in ("latents", "text", "flow", "fps")} == {
            "latents": "float32", "text": "float32", "flow": "float32", "fps": "float32",
        }  # fmt: skip
        assert batch["text_length"].dtype == np.int32
    without = next(make_iterator(SOURCE, CONFIG, dataclasses.replace(ENCODE, keep_captions=False)))
    assert without.keys() == {"latents", "text", "text_length", "flow", "fps"}


def test_videos_and_pictures_keep_their_ratio():
    kinds = [batch["latents"].shape[1] for batch in take(stream(), 40)]
    assert kinds.count(3) == 30 and kinds.count(1) == 10
    only = dataclasses.replace(CONFIG, video_fraction=1.0)
    assert {batch["latents"].shape[1] for batch in take(stream(only), 8)} == {3}
    none = dataclasses.replace(CONFIG, video_fraction=0.0)
    assert {batch["latents"].shape[1] for batch in take(stream(none), 8)} == {1}


@pytest.mark.parametrize("fraction", [0.0, 0.5, 1.0])
def test_pictures_come_first_where_asked(fraction):
    plain = dataclasses.replace(CONFIG, video_fraction=fraction)
    config = dataclasses.replace(plain, picture_batches_first=5)
    iterator = stream(config)
    first = [next(iterator) for _ in range(3)]
    position = iterator.get_state()
    batches = first + take(iterator, 9)
    assert {len(batch["latents"][0]) for batch in batches[:5]} == {1}
    assert_same(batches[:5], take(stream(dataclasses.replace(plain, video_fraction=0.0)), 5))
    # What follows is what would have come without them, but for the pictures already shown.
    after, usual = batches[5:], take(stream(plain), 7)
    assert [b["latents"].shape for b in after] == [b["latents"].shape for b in usual]
    videos = [[b for b in part if len(b["latents"][0]) > 1] for part in (after, usual)]
    assert_same(*videos)
    fresh = stream(config)
    fresh.set_state(position)
    assert_same(take(fresh, 9), batches[3:])


def test_each_epoch_has_every_clip_once_in_a_new_order():
    batches = take(stream(dataclasses.replace(CONFIG, video_fraction=1.0)), 12)
    assert (clips_of(batches[:6]) == 1).all() and (clips_of(batches[6:]) == 1).all()
    assert any(
        (a["latents"] != b["latents"]).any() for a, b in zip(batches[:6], batches[6:], strict=True)
    )


@pytest.mark.parametrize("processes", [1, 2, 3, 4, 8])
def test_processes_share_every_batch_without_overlap_or_gap(processes):
    config = dataclasses.replace(CONFIG, batch_size=24, image_batch_size=48)
    whole = take(stream(config), 4)
    parts = [take(stream(config, index, processes), 4) for index in range(processes)]
    for step, batch in enumerate(whole):
        assert {len(part[step]["flow"]) for part in parts} == {len(batch["flow"]) // processes}
        together = {
            name: np.concatenate([part[step][name] for part in parts])
            for name in batch.keys() - {"caption"}
        }
        # Clips, their order and the random choices: nothing depends on the number of processes.
        assert_same([together], [{name: batch[name] for name in together}])
    held_out = DigitsSource(DigitsConfig(split="held_out", num_clips=50, frames=3))
    options = dict(make=make_evaluation_iterator, source=held_out)
    parts = [list(stream(config, index, processes, **options)) for index in range(processes)]
    captions = [
        clip for step in zip(*parts, strict=True) for batch in step for clip in batch["caption"]
    ]
    assert captions == held_out.batch(range(48))["caption"]


@pytest.mark.parametrize("prefetch", [0, 3])
def test_a_saved_position_continues_exactly(prefetch):
    config = dataclasses.replace(CONFIG, prefetch=prefetch)
    iterator = stream(config)
    for _ in range(5):
        next(iterator)
    position = json.loads(json.dumps(iterator.get_state()))
    expected = take(iterator, 9)
    fresh = stream(config)
    fresh.set_state(position)
    assert fresh.get_state() == position
    assert_same(take(fresh, 9), expected)


def test_prefetching_does_not_change_the_stream():
    assert_same(take(stream(), 10), take(stream(dataclasses.replace(CONFIG, prefetch=4)), 10))


def test_worker_processes_do_not_change_the_stream():
    expected = take(stream(), 6)
    iterator = stream(dataclasses.replace(CONFIG, num_workers=1))
    first = [next(iterator) for _ in range(3)]
    position = iterator.get_state()
    iterator.close()
    # Another number of them goes on at the same place.
    fresh = stream(dataclasses.replace(CONFIG, num_workers=2))
    fresh.set_state(position)
    assert_same(first + take(fresh, 3), expected)


def test_seeds_differ():
    other = take(stream(dataclasses.replace(CONFIG, seed=1)), 1)[0]
    assert (take(stream(), 1)[0]["latents"] != other["latents"]).any()


def test_captions_are_dropped_and_shortened_as_often_as_asked():
    config = dataclasses.replace(CONFIG, text_dropout=0.25, short_caption_fraction=0.5)
    batches = take(stream(config), 100)
    dropped = np.concatenate([batch["dropped"] for batch in batches])
    lengths = np.concatenate([batch["text_length"] for batch in batches])
    np.testing.assert_array_equal(lengths == 0, dropped)
    assert abs(dropped.mean() - 0.25) < 0.05
    for batch in batches:
        assert not batch["text"][batch["dropped"]].any()
    short = {clip["short_caption"] for clip in SOURCE} | {
        clip["short_caption"] for clip in SOURCE.images()
    }
    brief = [caption in short for batch in batches for caption in batch["caption"]]
    assert abs(np.mean(brief) - 0.5) < 0.1


def test_motion_scores_give_way_as_often_as_asked():
    config = dataclasses.replace(CONFIG, flow_dropout=0.25, default_flow=9.0)
    flow = np.concatenate([batch["flow"] for batch in take(stream(config), 100)])
    assert abs((flow == 9).mean() - 0.25) < 0.05
    measured = np.concatenate([SOURCE.batch(range(48))["flow"], [0]])  # pictures score 0
    assert set(flow) - {9} <= set(measured)


def test_choices_are_drawn_anew_each_epoch():
    config = dataclasses.replace(CONFIG, video_fraction=1.0, text_dropout=0.5, batch_size=48)
    first, second = take(stream(config), 2)
    assert (first["dropped"] != second["dropped"]).any()


def test_evaluation_is_finite_in_order_and_complete():
    held_out = DigitsSource(DigitsConfig(split="held_out", num_clips=20, frames=3))
    batches = list(stream(make=make_evaluation_iterator, source=held_out))
    assert [len(batch["latents"]) for batch in batches] == [8, 8]
    captions = [caption for batch in batches for caption in batch["caption"]]
    assert captions == held_out.batch(range(16))["caption"]
    assert all((batch["text_length"] > 0).all() for batch in batches)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"batch_size": 0}, "batch_size"),
        ({"video_fraction": 1.5}, "video_fraction"),
        ({"text_dropout": -0.1}, "text_dropout"),
        ({"flow_dropout": 2.0}, "flow_dropout"),
        ({"picture_batches_first": -1}, "picture_batches_first"),
        ({"num_workers": -1}, "num_workers"),
    ],
)
def test_impossible_settings_are_named(settings, named):
    with pytest.raises(NovaError, match=named):
        DataConfig(**settings)


def test_more_workers_than_a_machine_should_start_are_refused():
    with pytest.raises(NovaError, match="num_workers is 1000000; this machine has cores for"):
        stream(dataclasses.replace(CONFIG, num_workers=1_000_000))


def test_batches_that_cannot_be_shared_or_filled_are_refused():
    with pytest.raises(NovaError, match="batch_size 8 is not divisible by 3"):
        stream(CONFIG, 0, 3)
    with pytest.raises(NovaError, match="48 clips do not fill a batch of 64"):
        stream(dataclasses.replace(CONFIG, batch_size=64), make=make_evaluation_iterator)

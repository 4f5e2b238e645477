"""Pools of sessions on a small untrained model: together each member becomes what it is alone."""

import dataclasses
from collections import defaultdict

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_pipeline import assert_same

from nova_jax.errors import NovaError
from nova_jax.pipeline import NovaPipeline
from nova_jax.pool import SessionPool
from nova_jax.sampling.denoise import GivenNoise

ONE, TWO, THREE = "a red one", "a blue two moves up", "the digit three in white"


@pytest.fixture(scope="module")
def pipeline(untrained) -> NovaPipeline:
    return NovaPipeline.from_checkpoint(untrained, devices=jax.devices()[:1])


def frames_of(session, count):
    return np.concatenate(list(session.stream(count)), axis=1)


def pooled(pool, count, videos=None):
    """The pixels of each member in so many steps, after those in `videos`."""
    videos = defaultdict(list) if videos is None else videos
    for _ in range(count):
        for session, frames in pool.frames():
            videos[session].append(frames)
    return videos


def assert_video(videos, session, expected):
    assert_same(np.concatenate(videos[session], axis=1), expected)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"image_guidance_scale": 2.0, "context_noise": 0.1},
        {"later_inference_steps": 1},
    ],
)
def test_members_become_what_they_are_alone(pipeline, options):
    options |= {"window": 3, "guidance_scale": 3.0}
    pool = SessionPool(pipeline, rows=4)
    one = pool.join(pipeline.start(ONE, seed=7, **options))
    videos = pooled(pool, 1)
    both = pool.join(pipeline.start([TWO, THREE], seed=[8, 7], **options))
    pooled(pool, 2, videos)
    late = pipeline.start(TWO, seed=9, **options)
    before = frames_of(late, 5)
    pool.join(late)
    assert pool.members == (one, both, late) and pool.free == 0
    pooled(pool, 1, videos)
    pool.leave(one)
    assert pool.free == 1
    pooled(pool, 1, videos)
    assert [session.frame for session in (one, both, late)] == [4, 4, 7]
    videos[one].append(frames_of(one, 1))  # goes on alone
    assert_video(videos, one, frames_of(pipeline.start(ONE, seed=7, **options), 5))
    alone = pipeline.start([TWO, THREE], seed=[8, 7], **options)
    assert_video(videos, both, frames_of(alone, 4))
    videos[late].insert(0, before)
    assert_video(videos, late, frames_of(pipeline.start(TWO, seed=9, **options), 7))


def test_frames_are_watched_while_they_fill(pipeline):
    seen = []
    pool = SessionPool(
        pipeline, rows=4, on_step=lambda partial, drawn: seen.append((partial, drawn))
    )
    one, both = pool.join(pipeline.start(ONE, seed=7)), pool.join(pipeline.start([TWO, THREE]))
    made = dict(pool.step())
    assert [(partial.step, partial.steps) for partial, _ in seen] == [(1, 2), (2, 2)]
    assert all(list(drawn) == [one, both] for _, drawn in seen)
    first, last = (partial for partial, _ in seen)
    assert 0 < first.revealed[0].sum() < last.revealed[0].sum() == last.revealed[0].size
    wanted = jnp.concatenate([made[one], made[both]])
    np.testing.assert_allclose(last.latents[:3], wanted, atol=1e-5)


def test_nothing_is_compiled_for_who_joins_and_leaves(pipeline, caplog):
    sessions = [pipeline.start(ONE, seed=seed) for seed in range(4)]
    pair = pipeline.start([ONE, TWO])
    pool = SessionPool(pipeline, rows=4)
    pool.join(sessions[0])
    pool.join(pair).prompt([TWO, ONE], over=1)
    pool.step(), pool.step()
    sessions[1].prompt(TWO)
    with jax.log_compiles(), caplog.at_level("WARNING"):
        pool.join(sessions[1])
        pool.step()
        pool.leave(pair)
        for session in sessions[2:]:
            pool.join(session)
            pool.step()
        for session in sessions[:3]:
            pool.leave(session)
            pool.step()
        pool.join(pair)
        pool.step()
        pool.leave(sessions[3])
        pool.leave(pair)
        assert pool.step() == []
        pool.join(pair)
        pool.step()
    assert "Compiling" not in caplog.text
    assert [session.frame for session in (*sessions, pair)] == [5, 4, 4, 5, 5]


def test_members_are_steered_between_steps(pipeline, tmp_path):
    def steered(step, pool=None):
        """A session's latents while it is steered, and those of its branch and its copy."""
        session = pipeline.start(ONE, seed=7)
        enter = pool.join if pool else lambda member: member
        enter(session)
        made = [step(session)]
        session.prompt(TWO, over=2)
        made += [step(session)]
        branch = enter(session.fork().reseed(8))
        file = tmp_path / f"{pool is None}.npz"
        session.save(file)
        if pool:
            made_of = dict(pool.step())
            made += [made_of[session], made_of[branch]]
        else:
            made += [step(session), step(branch)]
        session.prompt(THREE)
        made += [step(session)]
        return made, step(enter(pipeline.resume(file)))

    def alone(session):
        return next(session.latents())

    pool = SessionPool(pipeline, rows=3)
    together, resumed = steered(lambda session: dict(pool.step())[session], pool)
    expected, expected_resumed = steered(alone)
    for one, other in zip([*together, resumed], [*expected, expected_resumed], strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4)
    assert np.abs(together[2] - together[3]).max() > 0.1  # the branch went its own way
    np.testing.assert_allclose(resumed, together[2], atol=1e-4)


def test_devices_share_the_rows(pipeline, untrained):
    several = NovaPipeline.from_checkpoint(untrained, devices=jax.devices()[:2])
    pool = SessionPool(several, rows=4)
    one = pool.join(several.start(ONE, seed=7))
    both = pool.join(several.start([TWO, THREE], seed=8))
    videos = pooled(pool, 1)
    one.prompt(TWO)
    pooled(pool, 1, videos)
    assert [len(each.state.seen.sharding.device_set) for each in (one, both)] == [1, 2]
    videos[one].append(frames_of(one, 1))
    alone = pipeline.start(ONE, seed=7)
    first = frames_of(alone, 1)
    alone = np.concatenate([first, frames_of(alone.prompt(TWO), 2)], axis=1)
    assert_video(videos, one, alone)
    assert_video(videos, both, frames_of(pipeline.start([TWO, THREE], seed=8), 2))


def test_a_member_that_cannot_go_on_leaves_the_others_as_they_are(pipeline):
    pool = SessionPool(pipeline, rows=2)
    picture, other = (pool.join(pipeline.start(ONE, seed=s, max_latent_length=1)) for s in (1, 2))
    pool.step()
    after = other.state
    other.state = dataclasses.replace(after, frame=after.frame - 1)  # has place for one more
    with pytest.raises(NovaError, match="session of 1 latent frames has no place for more"):
        pool.step()
    assert pool.members == (other,) and picture.frame == 1 and other.frame == 0
    ((session, _),) = pool.step()
    assert session is other and other.frame == 1


def test_pixels_that_are_not_finite_are_one_members_alone(pipeline):
    pool = SessionPool(pipeline, rows=3)
    first, broken, last = (pool.join(pipeline.start(ONE, seed=seed)) for seed in (1, 2, 3))
    broken.state = dataclasses.replace(broken.state, seen=jnp.full_like(broken.state.seen, np.nan))
    broken.state = dataclasses.replace(broken.state, frame=broken.state.frame + 1)
    shown = pool.frames()
    assert [next(shown)[0], next(shown)[0]] == [first, last]
    with pytest.raises(NovaError, match="pixels are not finite"):
        next(shown)
    assert pool.members == (first, last)
    videos = pooled(pool, 1)
    assert_video(videos, last, frames_of(pipeline.start(ONE, seed=3), 2)[:, 1:])


def test_what_does_not_fit_is_refused_by_name(pipeline, untrained):
    with pytest.raises(NovaError, match="rows is 0"):
        SessionPool(pipeline, rows=0)
    pool = SessionPool(pipeline, rows=3)
    member = pool.join(pipeline.start(ONE))

    def refused(session, message):
        with pytest.raises(NovaError, match=message) as error:
            pool.join(session)
        assert "\n" not in str(error.value) and pool.members == (member,)

    refused(member, "in the pool already; join its fork")
    refused(pipeline.start([ONE, TWO, THREE]), "3 samples, and 2 of the pool's 3 rows are free")
    refused(
        pipeline.start(ONE, guidance_scale=2.0), r"drawn otherwise .*\(guidance\); join another"
    )
    refused(pipeline.start(ONE, max_latent_length=2), "2 slots for frames, the pool's have 3; join")
    other = NovaPipeline.from_checkpoint(untrained, devices=jax.devices()[:1])
    refused(other.start(ONE), "of another pipeline; join a pool of that one")
    half = pipeline.start(ONE)
    text = half.state.conditions.text.astype(jnp.bfloat16)
    conditions = dataclasses.replace(half.state.conditions, text=text)
    half.state = dataclasses.replace(half.state, conditions=conditions)
    refused(half, "conditions have other shapes or types than the pool's; join another pool")
    given = pipeline.start(ONE, noise=pipeline.start(TWO).state.noise)
    pool.leave(pool.join(given))  # noise of keys is each sample's own
    recorded = pipeline.start(ONE)
    images = jnp.zeros((1, 1, *pipeline.config.latent_size, pipeline.config.latent_channels))
    noise = GivenNoise(images, None, recorded.state.order, 1, 0, pipeline.config.patch_size)
    recorded.state = dataclasses.replace(recorded.state, noise=noise)
    refused(recorded, "given noise fills a batch of its own; stream it alone")
    with pytest.raises(NovaError, match="not in the pool; leave with one that joined"):
        pool.leave(given)

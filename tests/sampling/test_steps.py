"""A frame watched while it fills is the frame that is made unwatched."""

import asyncio

import jax
import numpy as np
import pytest

from nova_jax.errors import NovaError
from nova_jax.pipeline import NovaPipeline
from nova_jax.watch import watch

PROMPTS = ["a red one", "a blue two moves up"]
# What other programs of the same numbers may add up to over whole videos, of values about 3.
TRAJECTORY = 1e-4
OPTIONS = {"seed": 7, "num_inference_steps": 4, "num_frames": 2}


@pytest.fixture(scope="module")
def pipeline(untrained) -> NovaPipeline:
    return NovaPipeline.from_checkpoint(untrained, devices=jax.devices()[:1])


@pytest.fixture(scope="module")
def unwatched(pipeline):
    return pipeline(PROMPTS, **OPTIONS)


def test_watching_changes_nothing(pipeline, unwatched, untrained):
    seen = []
    watched = pipeline(PROMPTS, **OPTIONS, on_step=seen.append)
    np.testing.assert_allclose(watched.latents, unwatched.latents, atol=TRAJECTORY)
    assert [(p.frame, p.step) for p in seen] == [(t, k) for t in range(2) for k in range(1, 5)]
    assert {p.steps for p in seen} == {4}
    revealed = np.stack([p.revealed for p in seen[:4]]).sum(-1)
    # After step k of K, N cos(pi / 2 k / K) tokens are hidden.
    np.testing.assert_array_equal(revealed, np.array([[1, 5, 10, 16]] * 2).T)
    np.testing.assert_allclose(seen[3].latents, watched.latents[:, 0], atol=1e-6)
    two = NovaPipeline.from_checkpoint(untrained, devices=jax.devices()[:2])
    steps = []
    shared = two(PROMPTS, **OPTIONS, on_step=steps.append)
    np.testing.assert_allclose(shared.latents, unwatched.latents, atol=TRAJECTORY)
    np.testing.assert_array_equal(steps[1].revealed, seen[1].revealed)


def test_a_cache_and_fewer_steps_later_are_watched(pipeline):
    options = OPTIONS | {"feature_cache": 2, "later_inference_steps": 2, "num_frames": 3}
    seen = []
    plain = pipeline(PROMPTS, **options)
    watched = pipeline(PROMPTS, **options, on_step=seen.append)
    np.testing.assert_allclose(watched.latents, plain.latents, atol=TRAJECTORY)
    assert [(p.frame, p.steps) for p in seen] == [(0, 4)] * 4 + [(1, 2)] * 2 + [(2, 2)] * 2


def test_what_is_shown_is_gray_where_nothing_is_revealed(pipeline, unwatched):
    seen = []
    pipeline(PROMPTS, **OPTIONS, on_step=seen.append)
    first, last = seen[0].pixels(pipeline.codec), seen[3].pixels(pipeline.codec)
    assert first.shape == (2, 16, 16, 3) and first.dtype == np.uint8
    shown = np.asarray(seen[0].revealed).reshape(2, 4, 4).repeat(4, 1).repeat(4, 2)
    assert (first[~shown] == 127).all() and not (first[shown] == 127).all()
    assert np.abs(last.astype(int) - unwatched.frames[:, 0]).max() <= 1


def test_sessions_and_edits_are_watched(pipeline, unwatched):
    session = pipeline.start(PROMPTS, **OPTIONS)
    seen = session.on_step = []
    session.on_step = seen.append
    frames = list(session.latents(2))
    np.testing.assert_allclose(np.stack(frames, 1), unwatched.latents, atol=TRAJECTORY)
    assert len(seen) == 8
    seen.clear()
    mask = np.zeros((16, 16), bool)
    mask[0, 0] = True
    edit = {"video": unwatched.frames[0], "mask": mask, **OPTIONS}
    plain = pipeline(PROMPTS[0], **edit)
    watched = pipeline(PROMPTS[0], **edit, on_step=seen.append)
    np.testing.assert_allclose(watched.latents, plain.latents, atol=TRAJECTORY)
    # Twelve of sixteen are kept: only the last step draws.
    assert [(p.frame, p.step) for p in seen] == [(0, 4), (1, 4)]


def test_asynchronous_code_watches(pipeline, unwatched):
    async def run() -> list:
        return [seen async for seen in watch(pipeline, PROMPTS, **OPTIONS)]

    *steps, made = asyncio.run(run())
    np.testing.assert_allclose(made.latents, unwatched.latents, atol=TRAJECTORY)
    assert steps and all(step.latents.shape == (2, 16, 16, 3) for step in steps)
    assert [(s.frame, s.step) for s in steps] == sorted({(s.frame, s.step) for s in steps})


def test_a_call_ends_when_nobody_watches_it_any_more(pipeline):
    steps = []

    async def look_once() -> None:
        def call(prompts, on_step, **options):
            return pipeline(
                prompts, **options, on_step=lambda step: (steps.append(step), on_step(step))
            )

        looking = watch(call, PROMPTS, **OPTIONS | {"num_frames": 3})
        async for _ in looking:
            break
        await looking.aclose()

    asyncio.run(look_once())
    assert 1 <= len(steps) < 12


def test_errors_reach_who_watches(pipeline):
    async def run() -> None:
        async for _ in watch(pipeline, 3):
            pass

    with pytest.raises(NovaError, match="this model takes text"):
        asyncio.run(run())

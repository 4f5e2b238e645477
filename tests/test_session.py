"""Sessions on a small untrained model: the same video as at once, and what steering changes."""

import dataclasses
import io
import itertools
import json
import zipfile

import jax
import numpy as np
import pytest
from test_pipeline import assert_same

from nova_jax.errors import NovaError
from nova_jax.pipeline import NovaPipeline

PROMPTS = ["a red one", "a blue two moves up"]


@pytest.fixture(scope="module")
def pipeline(untrained) -> NovaPipeline:
    return NovaPipeline.from_checkpoint(untrained, devices=jax.devices()[:1])


def frames_of(session, count):
    return np.concatenate(list(session.stream(count)), axis=1)


def test_a_session_gives_the_frames_of_a_call(pipeline):
    whole = pipeline(PROMPTS, seed=7).frames
    session = pipeline.start(PROMPTS, seed=7)
    pieces = list(session.stream(2)) + list(session.stream(1))
    assert [piece.shape for piece in pieces] == [(2, 1, 16, 16, 3)] * 3
    assert_same(np.concatenate(pieces, axis=1), whole)
    assert session.frame == 3 and len(session) == 2
    # All samples are in it, however many a call would make together.
    assert (
        len(pipeline.start(PROMPTS * 20)) == 40 and len(pipeline.start(PROMPTS, batch_size=1)) == 2
    )
    # A window at least as long changes nothing.
    assert_same(frames_of(pipeline.start(PROMPTS, seed=7, window=3), 3), whole)


def test_a_session_goes_on_without_an_end_in_one_program(pipeline, caplog):
    session = pipeline.start(PROMPTS[0], seed=7)
    stream = session.stream()
    first = list(itertools.islice(stream, 4))
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(session.state.seen))
    with jax.log_compiles(), caplog.at_level("WARNING"):
        more = list(itertools.islice(stream, 20))
    assert "Compiling" not in caplog.text
    assert len(first + more) == 24 and session.frame == 24
    assert sum(leaf.nbytes for leaf in jax.tree.leaves(session.state.seen)) == size
    windowed = pipeline(PROMPTS[0], seed=7, max_latent_length=24, window=3).frames
    assert_same(np.concatenate(first + more, axis=1), windowed)


def test_a_prompt_changes_what_follows_and_nothing_before(pipeline):
    plain = frames_of(pipeline.start(PROMPTS[0], seed=7), 3)
    session = pipeline.start(PROMPTS[0], seed=7)
    before = frames_of(session, 1)
    after = frames_of(session.prompt(PROMPTS[1]), 2)
    np.testing.assert_array_equal(before, plain[:, :1])
    assert np.abs(after.astype(int) - plain[:, 1:]).mean() > 1
    # The past is seen under the new prompt: it is as if it had been given with it.
    first = np.asarray(next(pipeline.start(PROMPTS[0], seed=7).latents()))
    restarted = pipeline.start(PROMPTS[1], seed=7, latents=first[None])
    shifted = dataclasses.replace(restarted.state, drawn=restarted.state.frame)
    restarted.state = shifted  # noise goes by the frames that were drawn
    assert_same(frames_of(restarted, 2)[:, 1:], after)


def test_a_prompt_goes_over_into_another(pipeline):
    session = pipeline.start(PROMPTS[0], seed=7)
    old = np.asarray(session.state.conditions.text)
    session.prompt(PROMPTS[1], over=2)
    new = np.asarray(pipeline.conditions([PROMPTS[1]], session.flow).text)
    for share in (1 / 3, 2 / 3):
        next(session.latents())
        if share < 0.5:
            np.testing.assert_allclose(
                session.state.conditions.text, (1 - share) * old + share * new, atol=1e-6
            )
    np.testing.assert_array_equal(session.state.conditions.text, new)
    assert session.prompts == [PROMPTS[1]]


def test_branches_share_a_past_and_go_their_own_way(pipeline):
    session = pipeline.start(PROMPTS[0], seed=7)
    past = frames_of(session, 1)
    branch, other = session.fork(), session.fork().reseed(8)
    mine, same, new = (frames_of(each, 2) for each in (session, branch, other))
    np.testing.assert_array_equal(mine, same)
    assert np.abs(mine.astype(int) - new).mean() > 1
    assert past.shape[1] == 1 and session.frame == other.frame == 3


def test_a_saved_session_goes_on_elsewhere(pipeline, untrained, tmp_path):
    session = pipeline.start(PROMPTS, seed=7, guidance_scale=3.0).prompt(PROMPTS[::-1], over=2)
    frames_of(session, 1)
    session.save(tmp_path / "cut.npz")
    expected = frames_of(session, 3)
    for devices in (1, 2):
        elsewhere = NovaPipeline.from_checkpoint(untrained, devices=jax.devices()[:devices])
        resumed = elsewhere.resume(tmp_path / "cut.npz")
        assert resumed.frame == 1 and resumed.prompts == PROMPTS[::-1]
        assert resumed.sampling == session.sampling
        assert_same(frames_of(resumed, 3), expected)
    with pytest.raises(NovaError, match="exists already"):
        session.save(tmp_path / "cut.npz")


def test_what_cannot_be_gone_on_with_is_refused_by_name(pipeline, save_untrained, tmp_path):
    file = tmp_path / "cut.npz"
    pipeline.start(PROMPTS, seed=7).save(file)
    other = NovaPipeline.from_checkpoint(
        save_untrained(tmp_path / "other", diffusion_head="mlp_d2w32")
    )
    with pytest.raises(NovaError, match="cut.npz is a session of another model"):
        other.resume(file)
    with pytest.raises(NovaError, match="none.npz is no saved session"):
        pipeline.resume(tmp_path / "none.npz")
    whole = file.read_bytes()
    for name, damaged in {"short": whole[:-100], "text": b"x", "flipped": _flipped(whole)}.items():
        (tmp_path / name).write_bytes(damaged)
        with pytest.raises(NovaError, match=f"{name} is no saved session, or is damaged"):
            pipeline.resume(tmp_path / name)
    with np.load(file) as opened:
        arrays = dict(opened)
    about = json.loads(str(arrays["about"]))
    np.savez(tmp_path / "newer", **arrays | {"about": json.dumps(about | {"schema": 99})})
    with pytest.raises(NovaError, match="of format 99, this version reads 1"):
        pipeline.resume(tmp_path / "newer.npz")
    arrays["state.seen"] = arrays["state.seen"][:, :, :8]
    np.savez(tmp_path / "shape", **arrays)
    with pytest.raises(NovaError, match=r"shape.npz is damaged \(frames of shape"):
        pipeline.resume(tmp_path / "shape.npz")


def _flipped(whole: bytes) -> bytes:
    with zipfile.ZipFile(io.BytesIO(whole)) as archive:
        place = archive.getinfo("state.conditions.text.npy").header_offset + 300
    return whole[:place] + bytes([whole[place] ^ 255]) + whole[place + 1 :]


def test_impossible_wishes_are_named(pipeline):
    session = pipeline.start(PROMPTS)
    with pytest.raises(NovaError, match="3 prompts for 2 samples; give one, or one each"):
        session.prompt(["a", "b", "c"])
    with pytest.raises(NovaError, match="over is -1"):
        session.prompt("a", over=-1)
    with pytest.raises(NovaError, match="max_latent_frames is 1.5"):
        next(session.stream(1.5))
    picture = pipeline.start(PROMPTS, max_latent_length=1)
    with pytest.raises(NovaError, match="session of 1 latent frames has no place for more"):
        list(picture.stream(2))

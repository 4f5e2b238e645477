"""Pipelines and sessions that read other words than their samples are called by."""

from pathlib import Path

import jax
import numpy as np
import pytest

from nova_jax.errors import NovaError
from nova_jax.pipeline import NovaPipeline
from nova_jax.rewriting.interface import cut
from nova_jax.text.hashed_words import HashedTextEncoder

RELEASED = Path(__file__).parents[1] / "golden" / "pipeline_t2v"
LONGER = {"seven": "a red seven moves up", "four": "a blue four stands still"}
ENCODER = HashedTextEncoder(dim=4)


def rewriter(prompts):
    return [LONGER.get(prompt, "") for prompt in prompts]


@pytest.fixture(scope="module")
def pipeline(untrained) -> NovaPipeline:
    return NovaPipeline.from_checkpoint(untrained, devices=jax.devices()[:1])


def test_a_model_reads_the_other_words(pipeline, caplog):
    said = pipeline(list(LONGER), rewriter=rewriter, seed=3).frames
    assert np.array_equal(said, pipeline(list(LONGER.values()), seed=3).frames)
    assert not np.array_equal(said, pipeline(list(LONGER), seed=3).frames)
    assert not caplog.text


def test_a_request_keeps_the_prompts(pipeline):
    request = pipeline.request(["seven", "four"], rewriter=rewriter)
    assert request.prompts == ["seven", "four"] and request.read == list(LONGER.values())
    assert pipeline.request("seven").read == ["seven"]


def test_what_has_no_answer_stays_and_is_counted(pipeline, caplog):
    request = pipeline.request(["two", "seven", "one"], rewriter=rewriter)
    assert request.read == ["two", LONGER["seven"], "one"]
    assert "2 of 3 prompts stay as they are: no answer" in caplog.text


def test_what_is_too_long_is_cut_and_it_is_said(pipeline, caplog):
    """The model reads 8 words."""
    long = ["a seven. it is bright and large and red", "seven"]
    request = pipeline.request(["x", "seven"], rewriter=lambda _: long)
    assert request.read == ["a seven. it is bright and large and", "seven"]
    assert "1 of 2 rewritten prompts are cut: the model reads 8 tokens of a prompt" in caplog.text


@pytest.mark.parametrize(
    ("text", "length", "expected"),
    [
        ("one two three", 3, "one two three"),
        ("one two three", 2, "one two"),
        ("one two. three four", 3, "one two."),
        ("one. two three four five", 4, "one. two three four"),
        ("one, 2.5 meters. four", 4, "one, 2.5 meters."),
        ("one-two-three", 2, ""),
    ],
)
def test_cut(text, length, expected):
    assert cut(text, ENCODER, length) == expected
    assert ENCODER.count(expected) <= length


def test_phi_counts_its_own_tokens():
    encoder = NovaPipeline.from_pretrained(RELEASED).text_encoder
    text = "a red seven, brighter than any other. It moves"
    _, lengths = encoder.encode([text], 64)
    assert encoder.count(text) == lengths[0] > len(text.split())
    assert cut(text, encoder, encoder.count(text) - 1) == "a red seven, brighter than any other."


def test_a_session_keeps_the_prompts_and_reads_later_ones_in_other_words(pipeline, tmp_path):
    told = pipeline.start("seven", rewriter=rewriter, seed=1)
    read = pipeline.start(LONGER["seven"], seed=1)
    both = [list(session.stream(1)) for session in (told, read)]
    assert told.prompts == ["seven"]
    told.prompt("four"), read.prompt(LONGER["four"])
    assert told.prompts == ["four"]
    told.save(tmp_path / "session.npz")
    both = [one + list(s.stream(1)) for one, s in zip(both, (told, read), strict=True)]
    assert np.array_equal(*map(np.concatenate, both))
    assert pipeline.resume(tmp_path / "session.npz").prompts == ["four"]


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"rewriter": "qwen"}, "rewriter is 'qwen'; give a function"),
        ({"rewriter": lambda prompts: prompts[0]}, "gave 'seven' for 2 prompts; it must give"),
        ({"rewriter": lambda prompts: prompts[:1]}, r"gave \['seven'\] for 2 prompts"),
        ({"rewriter": lambda prompts: [1, 2]}, r"gave \[1, 2\] for 2 prompts"),
        ({"rewriter": lambda prompts: None}, "gave None for 2 prompts"),
        (
            {"rewriter": rewriter, "prompt": None, "prompt_embeds": [np.zeros((2, 16))]},
            "a rewriter takes texts; leave it away for class numbers and embeddings",
        ),
    ],
)
def test_what_is_no_rewriter_is_one_line(pipeline, asked, message):
    with pytest.raises(NovaError, match=message):
        pipeline.request(**({"prompt": ["seven", "four"]} | asked))

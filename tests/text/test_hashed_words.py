"""The embedded text encoder: stable, readable by a model, and honest about empty prompts."""

import numpy as np
import pytest

from nova_jax.checkpoints.parts import text_encoder_from_dict
from nova_jax.config import to_plain
from nova_jax.errors import NovaError
from nova_jax.text.hashed_words import HashedTextEncoder, word_vector, words

GOLDEN_SEVEN = [0.872659, -1.656226, -0.425375, -1.621128]
GOLDEN_UNICODE = [-1.570332, 1.691694]
GOLDEN_FEATURES = [1.35562, -0.87539, 0.243796, -0.818054]


def test_word_vectors_never_change():
    # Saved models depend on these numbers; computed once with hashlib and written down.
    np.testing.assert_allclose(word_vector("seven", 128)[:4], GOLDEN_SEVEN, atol=1e-6)
    np.testing.assert_allclose(word_vector("крас", 8)[:2], GOLDEN_UNICODE, atol=1e-6)
    features, _ = HashedTextEncoder(dim=128).encode(["a red seven"], 4)
    np.testing.assert_allclose(features[0, 2, :4], GOLDEN_FEATURES, atol=1e-6)


def test_entries_have_unit_variance():
    prompt = " ".join(f"word{i}" for i in range(64))
    features, _ = HashedTextEncoder(dim=128).encode([prompt], 64)
    assert abs((features**2).mean() - 1) < 0.05


def test_more_of_the_position_is_less_of_the_word():
    prompts = ["red on red", "on red on"]
    words_alone, _ = HashedTextEncoder(dim=64, position_share=0.0).encode(prompts, 3)
    np.testing.assert_array_equal(words_alone[0, 0], words_alone[0, 2])
    places_alone, _ = HashedTextEncoder(dim=64, position_share=1.0).encode(prompts, 3)
    np.testing.assert_array_equal(places_alone[0], places_alone[1])
    halves, _ = HashedTextEncoder(dim=64, position_share=0.5).encode(prompts, 3)
    np.testing.assert_allclose(halves, 0.5**0.5 * (words_alone + places_alone), atol=1e-6)


def test_prompts_are_cut_and_padded():
    features, lengths = HashedTextEncoder(dim=16).encode(["one two three four", "one", ""], 3)
    assert features.shape == (3, 3, 16) and features.dtype == np.float32
    assert lengths.dtype == np.int32
    np.testing.assert_array_equal(lengths, [3, 1, 0])
    assert not features[1, 1:].any() and not features[2].any()
    np.testing.assert_array_equal(features[0, 0], features[1, 0])


def test_case_and_punctuation_do_not_matter_and_order_does():
    encode = HashedTextEncoder(dim=32).encode
    same, _ = encode(["Blue 3, up and back!", "blue 3 UP and back"], 8)
    np.testing.assert_array_equal(same[0], same[1])
    order, _ = encode(["red on blue", "blue on red"], 8)
    assert not np.allclose(order[0, 0], order[1, 2])
    assert not np.allclose(order[0, 0], order[1, 0])


def test_any_script_and_any_text():
    assert words("Die Straße, ７ 赤い!") == ["die", "strasse", "7", "赤い"]
    _, lengths = HashedTextEncoder(dim=8).encode(["赤い 七", "🙂 !!", " \n"], 4)
    np.testing.assert_array_equal(lengths, [2, 0, 0])


def test_it_comes_back_from_its_settings():
    encoder = HashedTextEncoder(dim=64)
    assert text_encoder_from_dict(to_plain(encoder)) == encoder


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"type": "phi"}, "phi"),
        ({"type": "hashed_words", "width": 8}, "width"),
        ({"type": "hashed_words", "dim": 7}, "7"),
        ({"type": "hashed_words", "dim": "8"}, "dim"),
        ({"type": "hashed_words", "position_share": 1.5}, "position_share is 1.5"),
    ],
)
def test_bad_settings_are_named(settings, named):
    with pytest.raises(NovaError, match=named):
        text_encoder_from_dict(settings)

"""Shape annotations are true: what does not keep to them fails, in every test."""

import sys

import annotations
import jax.numpy as jnp
import pytest
from jaxtyping import Array, Float, TypeCheckError
from small import IMAGES

from nova_jax.kernels.attention import attention
from nova_jax.models.config import NovaConfig
from nova_jax.models.embeddings import sinusoid
from nova_jax.models.nova import Conditions
from nova_jax.sampling.state import unconditional


def test_arguments_of_different_lengths():
    query, key = jnp.zeros((2, 3, 4, 8)), jnp.zeros((2, 5, 4, 8))
    attention(query, key, key)
    with pytest.raises(TypeCheckError, match=r"attention\.attention(.|\n)*'value'"):
        attention(query, key, key[:, :4])


def test_argument_of_another_type():
    with pytest.raises(TypeCheckError, match="sinusoid"):
        sinusoid(jnp.arange(3))


def test_fields_of_different_lengths():
    config = NovaConfig.from_dict(IMAGES)
    text, length = jnp.zeros((2, 8, 16)), jnp.zeros(2, jnp.int32)
    unconditional(Conditions(text=text, text_length=length), config)
    with pytest.raises(TypeCheckError, match="unconditional"):
        unconditional(Conditions(text=text, text_length=length[:1]), config)


def test_result_of_another_shape():
    @annotations.checked
    def transposed(x: Float[Array, "a b"]) -> Float[Array, "a b"]:
        return x.T

    transposed(jnp.zeros((2, 2)))
    with pytest.raises(TypeCheckError, match="return value"):
        transposed(jnp.zeros((2, 3)))


def test_all_of_the_package_is_checked():
    modules = {n: m for n, m in sys.modules.items() if n.startswith("nova_jax.") and m.__file__}
    unchecked = {n for n, m in modules.items() if not isinstance(m.__loader__, annotations.Loader)}
    assert len(modules) > 20 and unchecked <= set(annotations.UNCHECKED)

"""`parity --live` where the PyTorch release is not installed; with it, see docs/released.md."""

import importlib.util

import pytest

from nova_jax.errors import NovaError
from nova_jax.parity.live import record


@pytest.mark.skipif(
    importlib.util.find_spec("diffnext") is not None, reason="the release is installed"
)
def test_without_the_release_it_says_what_to_install(tmp_path):
    with pytest.raises(NovaError, match=r"is not installed; pip install .*baaivision/NOVA"):
        record(tmp_path)

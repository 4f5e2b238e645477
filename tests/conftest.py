"""What every test runs under: strict JAX, eight CPU devices, and skips that give their reason."""

import os
import signal
from collections.abc import Callable
from pathlib import Path

# Several test processes share one GPU, where there is one.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

import annotations  # noqa: F401
import jax
import pytest
import small
from jax.experimental.compilation_cache import compilation_cache

# Programs run a few times only: compiling them is what tests wait for, up to ten times longer with
# optimizations. The second flag is gone, with what it switches off, in newer versions.
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_backend_optimization_level=0"
if jax.__version_info__ < (0, 11):
    os.environ["XLA_FLAGS"] += " --xla_cpu_use_fusion_emitters=false"
# A forgotten axis is an error here, not a silent broadcast.
jax.config.update("jax_numpy_rank_promotion", "raise")
# Sharding is tested on one machine; must be set before the first use of a device.
jax.config.update("jax_num_cpu_devices", 8)

OPTIONS = {"network": "downloads from the Internet", "slow": "takes minutes"}


def pytest_configure(config: pytest.Config) -> None:
    """What one process has compiled the others read, and later runs too."""
    # A shell that starts tests in the background has them ignore Ctrl-C, and what they start, too.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if getattr(config, "cache", None) is not None:
        jax.config.update("jax_compilation_cache_dir", str(config.cache.mkdir("programs")))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)
        jax.config.update("jax_persistent_cache_enable_xla_caches", "none")


def pytest_addoption(parser: pytest.Parser) -> None:
    for name, reason in OPTIONS.items():
        parser.addoption(f"--{name}", action="store_true", help=f"also run what {reason}")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    backend = jax.default_backend()
    for item in items:
        for name, reason in OPTIONS.items():
            if name in item.keywords and not config.getoption(f"--{name}"):
                item.add_marker(pytest.mark.skip(reason=f"{reason}; run with --{name}"))
        for platform in ("gpu", "tpu"):
            if platform in item.keywords and backend != platform:
                item.add_marker(
                    pytest.mark.skip(reason=f"needs a {platform.upper()}; this is a {backend}")
                )


def pytest_runtest_setup(item: pytest.Item) -> None:
    if "torch" in item.keywords:
        pytest.importorskip("torch", reason="compares with PyTorch, which is not installed")


@pytest.fixture(scope="session")
def save_untrained() -> Callable[..., Path]:
    """`small.save_untrained`."""
    return small.save_untrained


@pytest.fixture(scope="session")
def untrained(save_untrained, tmp_path_factory) -> Path:
    """The directory of a small text-to-video model, 3 frames of 16x16 pixels."""
    return save_untrained(tmp_path_factory.mktemp("untrained") / "model")


@pytest.fixture
def no_program_cache():
    """For programs of devices that are not here: the cache could keep them and not read them."""
    directory = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", None)
    compilation_cache.reset_cache()
    yield
    jax.config.update("jax_compilation_cache_dir", directory)
    compilation_cache.reset_cache()


@pytest.fixture(scope="module", autouse=True)
def forget_programs():
    """Frees a module's compiled programs: those of all together have more memory maps than Linux
    allows a process (vm.max_map_count), and the compiler then crashes."""
    yield
    jax.clear_caches()

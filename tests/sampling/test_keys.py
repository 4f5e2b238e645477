"""Random keys: derived in one file, all different. That they stay the same is in test_saved.py."""

import ast
from pathlib import Path

import jax
import jax.numpy as jnp

import nova_jax
from nova_jax.sampling import keys

PACKAGE = Path(nova_jax.__file__).parent
DERIVATIONS = {"jax.random.fold_in", "jax.random.key", "jax.random.PRNGKey"}


def test_keys_are_derived_in_one_file():
    derived = {
        path.relative_to(PACKAGE).as_posix()
        for path in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute) and ast.unparse(node) in DERIVATIONS
    }
    # Adapters begin with random parameters.
    assert derived == {"sampling/keys.py", "training/lora.py"}


def test_keys_of_all_purposes_differ():
    samples = jnp.stack(
        [keys.sample_key(keys.seed_key(seed), copy) for seed in (0, 1) for copy in (0, 1)]
    )
    noise = keys.noise_keys(samples)
    found = [samples, keys.order_keys(samples), noise, keys.image_keys(samples)]
    places = [(0, 0, -1), (0, 0, 0), (0, 1, -1), (1, 0, -1)]
    found += [jax.vmap(lambda key, at=at: keys.noise_key(key, *at))(noise) for at in places]
    found += [jnp.stack([keys.training_key(seed, step) for seed in (0, 1) for step in (2, 3)])]
    data = jax.random.key_data(jnp.concatenate(found))
    assert len({tuple(row) for row in data.tolist()}) == len(data) == 4 * 9

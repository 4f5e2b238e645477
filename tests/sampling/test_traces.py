"""Traced programs that are kept: which are the same, and what becomes of damaged ones."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nova_jax.sampling import traces

TRACED = []


@functools.partial(jax.jit, static_argnums=0, static_argnames="power")
def program(shift, values, *, power):
    """What is raised and shifted, twice; it notes that it is traced."""
    TRACED.append(values["x"].shape)
    raised = values["x"] ** power + shift
    return {"raised": raised, "keys": values["keys"]}, raised.sum()


@pytest.fixture
def folder(tmp_path):
    """Where programs are kept, those of this process being forgotten."""
    forget()
    traces.keep(tmp_path / "traces")
    yield tmp_path / "traces"
    traces.keep(None)
    forget()


def forget():
    """As another process begins."""
    traces._program.cache_clear()
    jax.clear_caches()
    TRACED.clear()


def run(shift=1.0, power=3, size=4, dtype=jnp.float32):
    values = {"x": jnp.arange(size, dtype=dtype), "keys": jax.random.split(jax.random.key(0), 2)}
    like = {"raised": values["x"], "keys": values["keys"]}, values["x"][0]
    return traces.run(program, shift, {"power": power}, (values,), like)


def test_another_process_does_not_trace(folder):
    first, total = run()
    assert TRACED == [(4,)]
    forget()
    again, same = run()
    assert not TRACED
    np.testing.assert_array_equal(again["raised"], [1, 2, 9, 28])
    np.testing.assert_array_equal(again["raised"], first["raised"])
    np.testing.assert_array_equal(*(jax.random.key_data(x["keys"]) for x in (again, first)))
    assert total == same == 40


@pytest.mark.parametrize(
    "change", [{"shift": 2.0}, {"power": 2}, {"size": 5}, {"dtype": jnp.int32}], ids=str
)
def test_another_program_is_another(folder, change):
    run()
    forget()
    got, _ = run(**change)
    assert TRACED
    asked = {"shift": 1.0, "power": 3, "size": 4} | change
    np.testing.assert_array_equal(
        got["raised"], np.arange(asked["size"]) ** asked["power"] + asked["shift"]
    )
    assert len(list(folder.iterdir())) == 2


def test_other_code_is_traced_anew(folder, monkeypatch):
    run()
    forget()
    monkeypatch.setattr(traces, "_code", lambda: "another version")
    run()
    assert TRACED


def test_other_settings_are_traced_anew(folder):
    run()
    forget()
    before = jax.config.jax_default_matmul_precision
    try:
        jax.config.update("jax_default_matmul_precision", "highest")
        run()
    finally:
        jax.config.update("jax_default_matmul_precision", before)
    assert TRACED


@pytest.mark.parametrize("damage", [lambda b: b[:-1], lambda b: b"", lambda b: b[:99] + b"x" * 99])
def test_damaged_files_are_made_anew(folder, damage):
    run()
    (file,) = folder.iterdir()
    whole = file.read_bytes()
    file.write_bytes(damage(whole))
    forget()
    run()
    assert TRACED
    forget()
    run()
    assert not TRACED


def test_a_folder_that_takes_no_files_is_no_error(folder):
    folder.parent.joinpath("traces").write_text("a file")
    got, _ = run()
    np.testing.assert_array_equal(got["raised"], [1, 2, 9, 28])


def test_nothing_is_kept_unless_a_command_asks(folder):
    traces.keep(None)
    run()
    assert not folder.exists()


def test_programs_of_several_devices_are_not_kept(folder):
    mesh = jax.make_mesh((2,), ("data",), devices=jax.devices()[:2])
    lying = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    x = jax.device_put(jnp.arange(4.0), lying)
    values = {"x": x, "keys": jax.random.split(jax.random.key(0), 2)}
    keys = jax.device_put(values["keys"], lying)
    like = {"raised": x, "keys": keys}, x
    got, _ = traces.run(program, 1.0, {"power": 3}, ({"x": x, "keys": keys},), like)
    np.testing.assert_array_equal(got["raised"], [1, 2, 9, 28])
    assert not folder.exists()

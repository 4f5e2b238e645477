import dataclasses
import logging

import jax
import jax.numpy as jnp
import numpy as np
import optax
import processes
import pytest
import small
from flax.traverse_util import flatten_dict, unflatten_dict

from nova_jax.distributed.mesh import MeshConfig, make_mesh, shard_batch
from nova_jax.errors import NovaError
from nova_jax.models.config import NovaConfig
from nova_jax.sampling.schedules import FlowMatchingSchedule
from nova_jax.training import loop
from nova_jax.training.config import TrainConfig
from nova_jax.training.guard import GuardConfig, NumericsGuard, make_diagnosis
from nova_jax.training.state import TrainState, state_maker
from nova_jax.training.step import Trainer, make_train_step, not_finite

CONFIG = NovaConfig.from_dict(small.VIDEO)


def made(**options):
    """A step, the diagnosis, a function that makes states, and a batch, all on a mesh."""
    mesh = make_mesh(config=MeshConfig(fsdp=2, context=2))
    optimizer, schedule = optax.adam(1e-3), FlowMatchingSchedule()
    blueprint, _, create = state_maker(CONFIG, optimizer, mesh)
    state = create({})
    trainer = Trainer(
        blueprint=blueprint,
        mesh=mesh,
        schedule=schedule,
        optimizer=optimizer,
        learning_rate=optax.constant_schedule(1e-3),
        loss_repeat=1,
        seed=3,
        **options,
    )
    step = make_train_step(trainer, state)
    rng = np.random.default_rng(0)
    batch = {
        "latents": rng.normal(size=(8, 2, 12, 12, 3)).astype(np.float32),
        "text": rng.normal(size=(8, 8, 16)).astype(np.float32),
        "text_length": np.full(8, 8, np.int32),
        "flow": np.ones(8, np.float32),
        "fps": np.ones(8, np.float32),
    }
    copy = lambda: jax.tree.map(jnp.copy, state)  # noqa: E731 - a step takes its state away
    return step, make_diagnosis(trainer), copy, shard_batch(batch, mesh)


@pytest.fixture(scope="module")
def trainer():
    return made()


def with_parameter(state, name, change):
    flat = flatten_dict(state.params, sep=".")
    flat[name] = jax.device_put(change(flat[name]), flat[name].sharding)
    return dataclasses.replace(state, params=unflatten_dict(flat, sep="."))


def assert_nothing_changed(state, before):
    for name in ("params", "ema", "optimizer"):
        same = jax.tree.map(np.array_equal, getattr(state, name), getattr(before, name))
        assert all(jax.tree.leaves(same)), name


def test_a_step_that_is_not_finite_changes_nothing(trainer):
    step, _, fresh, batch = trainer
    before = fresh()
    state, metrics = step(fresh(), batch | {"latents": batch["latents"] * jnp.nan})
    assert metrics["skipped"] == 1 and not np.isfinite(metrics["loss"])
    assert int(state.step) == 1
    assert_nothing_changed(state, before)
    state, metrics = step(state, batch)
    assert metrics["skipped"] == 0 and np.isfinite(metrics["loss"])
    assert not all(jax.tree.leaves(jax.tree.map(np.array_equal, state.params, before.params)))


@pytest.mark.parametrize(
    ("moment", "cause"),
    [(1e25, "the norm of all new parameters"), (3e38, "the new parameter diffusion_head")],
)
def test_an_update_that_is_not_finite_changes_nothing_and_is_named(trainer, moment, cause):
    step, diagnose, fresh, batch = trainer

    def primed():
        adam, *rest = fresh().optimizer
        adam = adam._replace(mu=jax.tree.map(lambda x: x + moment, adam.mu))
        return dataclasses.replace(fresh(), optimizer=(adam, *rest))

    state, metrics = step(primed(), batch)
    assert not_finite(jax.device_get(metrics)) == "update"
    assert_nothing_changed(state, primed())
    assert diagnose(state, batch, 1).startswith(cause)


def test_gradients_whose_squares_are_not_finite_change_nothing():
    """Adam's second moment would be infinite for good, and every later update zero."""
    step, _, fresh, batch = made(first_frame_loss=1e25)
    state, metrics = step(fresh(), batch)
    assert np.isfinite(metrics["loss"]) and not_finite(jax.device_get(metrics)) == "gradients"
    assert_nothing_changed(state, fresh())


@pytest.mark.parametrize(
    ("name", "change", "cause"),
    [
        ("spatial_decoder.mask_token", lambda x: x.at[0].set(jnp.nan), "the parameter spatial"),
        # Finite parameters whose products are not.
        ("text_embed.projection.bias", lambda x: x + 3e38, "text_embed"),
        (
            "spatial_decoder.decoder_blocks.block.norm2.scale",
            lambda x: x + 3e38,
            "spatial_decoder.decoder_blocks.0",
        ),
        ("diffusion_head.out.bias", lambda x: x + 3e38, "the loss, though"),
    ],
)
def test_the_first_module_that_is_not_finite_is_named(trainer, name, change, cause):
    _, diagnose, fresh, batch = trainer
    state = with_parameter(fresh(), name, change)
    with jax.transfer_guard("disallow"):
        assert diagnose(state, batch, 1).startswith(cause)


def test_a_bad_batch_is_named(trainer):
    _, diagnose, fresh, batch = trainer
    bad = batch | {"text": batch["text"].at[3, 0, 0].set(jnp.inf)}
    assert diagnose(fresh(), bad, 1) == "the batch's text"
    assert diagnose(fresh(), batch, 1).startswith("not when repeated")


def watched(flags, **config):
    """What the guard says of each step, with the warnings it gave."""
    guard = NumericsGuard(GuardConfig(**config), lambda state, batch, step: f"cause {step}")
    state = TrainState(jnp.zeros((), jnp.int32), {}, {}, (), {})
    steps = enumerate(map(jnp.asarray, flags), 1)
    bad = {"loss": jnp.asarray(0.0), "grad_norm": jnp.asarray(jnp.inf)}
    return [guard.watch(state, step, {}, bad | {"skipped": flag}) for step, flag in steps]


def test_too_many_skipped_steps_in_a_row_ask_for_the_way_back(caplog):
    with caplog.at_level(logging.WARNING):
        assert watched([0, 1, 1, 0, 1, 1, 1, 0], limit=3) == [False] * 7 + [True]
    assert [r.getMessage().split(":")[0] for r in caplog.records] == [
        "step 2 skipped, its gradients not finite",
        "step 5 skipped, its gradients not finite",
    ]
    with pytest.raises(NovaError, match=r"after going back 1 times \(cause 4\)"):
        watched([1] * 20, limit=2, rollbacks=1)


@pytest.fixture
def poisoned_run(run, monkeypatch):
    """A run without samples whose 4th and 5th batches are not finite, and the batches it takes.

    From the first on no value passes between host and devices unless the code says so.
    """
    shard, seen = loop.shard_batch, []

    def poison(batch, mesh):
        seen.append(batch)
        number = len(seen) - run["validation"]["batches"]
        if number == 1:
            jax.config.update("jax_transfer_guard", "disallow")
        if number in (4, 5):
            batch = batch | {"latents": batch["latents"] * np.nan}
        return shard(batch, mesh)

    monkeypatch.setattr(loop, "shard_batch", poison)
    run |= {"checkpoint": {"every": 2}, "guard": {"limit": 2}, "samples": {"every": None}}
    before = jax.config.jax_transfer_guard
    yield run, seen
    jax.config.update("jax_transfer_guard", before)


def test_a_run_goes_back_to_its_checkpoint_and_on_with_later_data(poisoned_run, tmp_path, caplog):
    run, seen = poisoned_run
    result = loop.train(TrainConfig.from_dict(run), tmp_path)
    assert result.finished
    messages = [record.getMessage() for record in caplog.records]
    assert "step 4 skipped, its loss not finite: the batch's latents" in messages
    assert result.skipped == {"loss": 2}
    assert "going back to the checkpoint of step 4" in messages
    assert len(seen) == run["validation"]["batches"] + 6 + 2


@pytest.mark.slow
def test_a_run_that_diverges_ends_in_one_line_and_saves_no_number_that_is_not_finite(run, tmp_path):
    run["optimizer"] = {"learning_rate": 1.0, "weight_decay": 1e38}
    run |= {"checkpoint": {"every": 1}, "guard": {"limit": 2, "rollbacks": 1}}
    run |= {"validation": {"every": 100}, "samples": {"every": None}}  # there is no need of them
    run["data"]["video_fraction"] = 0.0
    with pytest.raises(NovaError, match=r"not finite, after going back 1 times \(the norm of all"):
        loop.train(TrainConfig.from_dict(run), tmp_path)
    saved = [int(path.name) for path in (tmp_path / "checkpoints").iterdir()]
    assert saved and not (tmp_path / "model").exists()
    for step in saved:
        found = processes.arrays(tmp_path, step)
        assert all(np.isfinite(array).all() for array in found.values())


@pytest.mark.parametrize(
    ("options", "named"),
    [({"limit": 0}, "GuardConfig.limit"), ({"rollbacks": -1}, "GuardConfig.rollbacks")],
)
def test_limits_that_make_no_sense_are_refused(options, named):
    with pytest.raises(NovaError, match=named):
        GuardConfig(**options)

import dataclasses

import jax
import numpy as np
import optax
import pytest
import small
from flax import nnx
from flax.traverse_util import flatten_dict
from jax.sharding import PartitionSpec as P

from nova_jax.distributed.mesh import (
    MeshConfig,
    check_batch_size,
    make_mesh,
    parameter_shardings,
    process_share,
    shard_batch,
)
from nova_jax.errors import NovaError
from nova_jax.models.config import NovaConfig
from nova_jax.models.nova import Nova
from nova_jax.sampling.schedules import FlowMatchingSchedule
from nova_jax.training.context import ContextConfig
from nova_jax.training.state import EMAConfig, state_maker
from nova_jax.training.step import Trainer, make_train_step

VIDEOS = NovaConfig.from_dict(small.VIDEO)


def mesh_of(**sizes):
    return make_mesh(config=MeshConfig(**sizes))


def test_all_devices_are_data_parallel_unless_told_otherwise():
    assert dict(make_mesh().shape) == {"data": 8, "fsdp": 1, "context": 1, "tensor": 1}
    assert tuple(mesh_of(fsdp=2, tensor=2).shape.values()) == (2, 2, 1, 2)
    assert tuple(mesh_of(data=2, context=4).shape.values()) == (2, 1, 4, 1)
    assert set(make_mesh(jax.devices()[:1]).shape.values()) == {1}


@pytest.mark.parametrize("sizes", [{"fsdp": 3}, {"data": 2}, {"data": 4, "tensor": 4}])
def test_a_mesh_that_does_not_fit_the_devices_is_refused(sizes):
    with pytest.raises(NovaError, match="does not fit 8 devices"):
        mesh_of(**sizes)


def test_a_size_below_one_is_refused():
    with pytest.raises(NovaError, match=r"MeshConfig\.context is 0"):
        MeshConfig(context=0)
    with pytest.raises(NovaError, match=r"mesh\.context is 0"):
        MeshConfig.parse("context:0")


class Device:
    """A device of another machine, for laying out meshes only."""

    platform, device_kind = "gpu", "some GPU"

    def __init__(self, number, slice_index):
        self.id, self.process_index, self.slice_index = number, slice_index, slice_index


def test_only_data_and_fsdp_reach_across_nodes():
    nodes = [Device(i, i // 8) for i in range(32)]
    grid = make_mesh(nodes, MeshConfig(fsdp=2, context=2, tensor=2)).devices
    assert grid.shape == (4, 2, 2, 2)
    assert [{d.slice_index for d in part.flat} for part in grid] == [{0}, {1}, {2}, {3}]
    # Two samples' worth of data parallelism leave two nodes to fsdp.
    grid = make_mesh(nodes, MeshConfig(fsdp=16)).devices
    assert {d.slice_index for d in grid[0, :8].flat} == {0}
    assert {d.slice_index for d in grid[0, 8:].flat} == {1}
    with pytest.raises(NovaError, match="cannot be laid over 4 slices or nodes"):
        make_mesh(nodes, MeshConfig(tensor=32))


@pytest.mark.parametrize(
    ("names", "shape", "expected"),
    [
        (("layers", "embed", "mlp"), (3, 32, 128), P(None, "fsdp", "tensor")),
        (("layers", "embed", "heads"), (3, 32, 96), P(None, "fsdp", "tensor")),
        ((None, "embed"), (48, 32), P(None, "fsdp")),
        (("vocab", "embed"), (1001, 32), P(None, "fsdp")),  # 1001 is odd
        (("embed", "embed"), (32, 32), P("fsdp", None)),
        (("batch", None), (8, 5), P(("data", "fsdp"), None)),
        (("batch", None), (6, 5), P("data", None)),
        (("batch", None), (7, 5), P(None, None)),
        (("frames", "sequence", None), (16, 6, 5), P(("data", "fsdp", "context"), None, None)),
        (("batch", "sequence", None), (4, 6, 5), P(("data", "fsdp"), "context", None)),
        ((), (), P()),
    ],
)
def test_the_table_gives_these_specs(names, shape, expected):
    assert mesh_of(fsdp=2, tensor=2).partition_spec(names, shape) == expected


def test_an_unknown_axis_is_a_mistake_of_the_model():
    with pytest.raises(KeyError, match="embeds"):
        make_mesh().partition_spec(("embeds",), (8,))


# Hidden units on every device, the vocabulary over more of them, frames over fewer.
OTHER_RULES = {"mlp": (), "vocab": ("fsdp", "tensor"), "frames": ("data", "context")}


def test_rows_of_a_recipe_take_the_place_of_the_tables():
    mesh = mesh_of(fsdp=2, tensor=2, rules=OTHER_RULES)
    assert mesh.partition_spec(("layers", "embed", "mlp"), (3, 32, 128)) == P(None, "fsdp", None)
    assert mesh.partition_spec(("vocab", "embed"), (1000, 32)) == P(("fsdp", "tensor"), None)
    assert mesh.partition_spec(("frames", None), (16, 5)) == P(("data", "context"), None)
    assert mesh.partition_spec(("embed", "heads"), (32, 96)) == P("fsdp", "tensor")  # as it was
    assert (mesh.ways("mlp"), mesh.ways("vocab"), mesh.ways("batch")) == (1, 4, 4)
    model = nnx.eval_shape(lambda: Nova(VIDEOS, rngs=nnx.Rngs(0)))
    shardings = parameter_shardings(model, mesh)
    fc1 = shardings["spatial_decoder.encoder_blocks.block.mlp.fc1.kernel"]
    assert fc1.spec == P(None, "fsdp", None)


def test_a_batch_is_split_as_the_rules_say():
    mesh = mesh_of(fsdp=2, tensor=2, rules={"batch": ("data",), "frames": ("data", "tensor")})
    array = shard_batch({"x": np.arange(8.0)}, mesh)["x"]
    assert {shard.data.shape for shard in array.addressable_shards} == {(4,)}
    check_batch_size("batch_size", 2, mesh, frames=2)
    with pytest.raises(NovaError, match=r"leaves 3 frames, which mesh\.tensor 2 does not divide"):
        check_batch_size("batch_size", 2, mesh, frames=3)
    assert process_share(mesh) == (0, 1)


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ({"mpl": ()}, r"mesh\.rules\.mpl: arrays have no such axis; known are layers, embed, mlp"),
        ({"mlp": ("model",)}, r"mesh\.rules\.mlp is \('model',\); .*: data, fsdp, context, tensor"),
        ({"mlp": ("fsdp", "fsdp")}, "each once at most"),
    ],
)
def test_rules_of_axes_that_do_not_exist_are_refused(rules, message):
    with pytest.raises(NovaError, match=message):
        MeshConfig(rules=rules)


def test_parameters_are_split_as_their_names_say():
    model = nnx.eval_shape(lambda: Nova(VIDEOS, rngs=nnx.Rngs(0)))
    specs = {k: v.spec for k, v in parameter_shardings(model, mesh_of(fsdp=2, tensor=2)).items()}
    qkv = "temporal_encoder.blocks.block.attention.qkv"
    assert specs[f"{qkv}.kernel"] == P(None, "fsdp", "tensor")
    assert specs[f"{qkv}.bias"] == P(None, "tensor")
    assert specs["spatial_decoder.encoder_blocks.block.mlp.fc2.kernel"] == P(None, "tensor", "fsdp")
    assert specs["text_embed.buffer"] == P(None, None)


def test_a_batch_is_split_over_the_devices_that_see_different_samples():
    mesh = mesh_of(fsdp=2, tensor=2)
    array = shard_batch({"x": np.arange(8.0)}, mesh)["x"]
    assert array.sharding.spec == P(("data", "fsdp"))
    assert {shard.data.shape for shard in array.addressable_shards} == {(2,)}
    with pytest.raises(NovaError, match="batch_size 6 cannot be split over 4 devices"):
        check_batch_size("batch_size", 6, mesh)


# The mixed ones cover every axis; each by itself takes as long to compile, so runs with --slow.
ALONE = {
    "data": dict(),
    "fsdp": dict(fsdp=8),
    "context": dict(context=8),
    "tensor": dict(data=4, tensor=2),
}
MIXED = {
    "fsdp+tensor": dict(fsdp=2, tensor=2),
    "fsdp+context": dict(fsdp=2, context=2),
    "context+tensor": dict(context=2, tensor=2),
    "other rules": dict(fsdp=2, context=2, tensor=2, rules=OTHER_RULES),
}


OPTIMIZER = optax.trace(0.0)  # its state after a step is the gradient itself


@pytest.fixture(scope="module")
def start():
    """A state on the host, away from the zeros of initialisation, which would hide gradients."""
    *_, create = state_maker(VIDEOS, OPTIMIZER, make_mesh(jax.devices()[:1]))
    state = create({})
    rng = np.random.default_rng(1)
    moved = lambda x: np.asarray(x + 0.1 * rng.normal(size=x.shape), np.float32)  # noqa: E731
    return dataclasses.replace(
        jax.tree.map(np.asarray, state), params=jax.tree.map(moved, state.params)
    )


def one_step(mesh, start):
    """The state and metrics after one step."""
    blueprint, state, _ = state_maker(VIDEOS, OPTIMIZER, mesh)
    state = jax.tree.map(lambda x, like: jax.device_put(x, like.sharding), start, state)
    trainer = Trainer(
        blueprint=blueprint,
        mesh=mesh,
        schedule=FlowMatchingSchedule(),
        optimizer=OPTIMIZER,
        learning_rate=optax.constant_schedule(1.0),
        ema=EMAConfig(decay=0.5),
        loss_repeat=2,
        # The frames before have parts of other videos, which other devices may have.
        context=ContextConfig(noise=0.3, cutmix=0.6),
        seed=3,
    )
    rng = np.random.default_rng(0)
    batch = {
        "latents": rng.normal(size=(8, 2, 12, 12, 3)).astype(np.float32),
        "text": rng.normal(size=(8, 8, 16)).astype(np.float32),
        "text_length": np.arange(8, dtype=np.int32),
        "flow": rng.uniform(1, 5, 8).astype(np.float32),
        "fps": np.full(8, 12.0, np.float32),
    }
    return make_train_step(trainer, state)(state, shard_batch(batch, mesh))


@pytest.fixture(scope="module", autouse=True)
def quick_compilation():
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(scope="module")
def alone(start):
    return one_step(make_mesh(jax.devices()[:1]), start)


@pytest.mark.parametrize(
    "name", [*MIXED, *[pytest.param(n, marks=pytest.mark.slow) for n in ALONE]]
)
def test_loss_and_gradients_are_those_of_one_device(name, start, alone):
    mesh = mesh_of(**(ALONE | MIXED)[name])
    (expected, metrics), (state, found) = alone, one_step(mesh, start)
    for key, value in metrics.items():
        np.testing.assert_allclose(found[key], value, rtol=1e-5, err_msg=key)
    gradients = flatten_dict(state.optimizer.trace, sep=".")
    for key, value in flatten_dict(expected.optimizer.trace, sep=".").items():
        scale = np.abs(value).max()
        np.testing.assert_allclose(gradients[key], value, rtol=1e-5, atol=1e-5 * scale, err_msg=key)
    # Everything lies where the table says.
    model = nnx.eval_shape(lambda: Nova(VIDEOS, rngs=nnx.Rngs(0)))
    table = parameter_shardings(model, mesh)
    for tree in (state.params, state.ema, state.optimizer.trace):
        for key, value in flatten_dict(tree, sep=".").items():
            assert value.sharding.is_equivalent_to(table[key], value.ndim), key
    assert int(state.step) == 1


def test_frames_that_context_does_not_divide_are_refused():
    with pytest.raises(NovaError, match=r"leaves 3 frames, which mesh\.context 2 does not divide"):
        check_batch_size("data.batch_size", 4, mesh_of(context=2), frames=3)
    check_batch_size("data.image_batch_size", 4, mesh_of(context=2))


def test_one_process_loads_whole_batches():
    assert process_share(mesh_of(fsdp=2, context=2)) == (0, 1)

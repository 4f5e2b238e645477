import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import small
from flax import nnx
from flax.traverse_util import flatten_dict
from jax.sharding import PartitionSpec as P

from nova_jax.distributed.mesh import (
    check_batch_size,
    make_mesh,
    parameter_shardings,
    partition_spec,
    shard_batch,
)
from nova_jax.errors import NovaError
from nova_jax.models.config import NovaConfig
from nova_jax.models.nova import Nova
from nova_jax.sampling.schedules import FlowMatchingSchedule
from nova_jax.training.state import EMAConfig, create_state
from nova_jax.training.step import make_train_step

IMAGES = NovaConfig.from_dict(small.IMAGES)


def test_all_devices_are_data_parallel_unless_told_otherwise():
    assert dict(make_mesh().shape) == {"data": 8, "fsdp": 1, "tensor": 1}
    assert dict(make_mesh(fsdp=2, tensor=2).shape) == {"data": 2, "fsdp": 2, "tensor": 2}
    assert dict(make_mesh(jax.devices()[:1]).shape) == {"data": 1, "fsdp": 1, "tensor": 1}


def test_a_mesh_that_does_not_divide_the_devices_is_refused():
    with pytest.raises(NovaError, match="8 devices cannot be split into fsdp 3 x tensor 1"):
        make_mesh(fsdp=3)


@pytest.mark.parametrize(
    ("names", "shape", "expected"),
    [
        (("layers", "embed", "mlp"), (3, 32, 128), P(None, "fsdp", "tensor")),
        (("layers", "embed", "heads"), (3, 32, 96), P(None, "fsdp", "tensor")),
        ((None, "embed"), (48, 32), P(None, "fsdp")),
        (("vocab", "embed"), (1001, 32), P(None, "fsdp")),  # 1001 is odd
        (("embed", "embed"), (32, 32), P("fsdp", None)),
        (("batch", None), (8, 5), P(("data", "fsdp"), None)),
        (("batch", None), (6, 5), P(None, None)),
        ((), (), P()),
    ],
)
def test_the_table_gives_these_specs(names, shape, expected):
    assert partition_spec(names, shape, make_mesh(fsdp=2, tensor=2)) == expected


def test_an_unknown_axis_is_a_mistake_of_the_model():
    with pytest.raises(KeyError, match="embeds"):
        partition_spec(("embeds",), (8,), make_mesh())


def test_parameters_are_split_as_their_names_say():
    model = nnx.eval_shape(lambda: Nova(IMAGES, rngs=nnx.Rngs(0)))
    specs = {k: v.spec for k, v in parameter_shardings(model, make_mesh(fsdp=2, tensor=2)).items()}
    qkv = "temporal_encoder.blocks.block.attention.qkv"
    assert specs[f"{qkv}.kernel"] == P(None, "fsdp", "tensor")
    assert specs[f"{qkv}.bias"] == P(None, "tensor")
    assert specs["spatial_decoder.encoder_blocks.block.mlp.fc2.kernel"] == P(None, "tensor", "fsdp")
    assert specs["text_embed.buffer"] == P(None, None)


def test_a_batch_is_split_over_the_devices_that_see_different_samples():
    mesh = make_mesh(fsdp=2, tensor=2)
    array = shard_batch({"x": np.arange(8.0)}, mesh)["x"]
    assert array.sharding.spec == P(("data", "fsdp"))
    assert {shard.data.shape for shard in array.addressable_shards} == {(2,)}
    with pytest.raises(NovaError, match="batch_size 6 cannot be split over 4 devices"):
        check_batch_size("batch_size", 6, mesh)


def one_step(mesh):
    optimizer = optax.adam(1e-2)
    graphdef, state = create_state(IMAGES, optimizer, mesh, seed=0)
    step = make_train_step(
        graphdef,
        state,
        mesh=mesh,
        schedule=FlowMatchingSchedule(),
        optimizer=optimizer,
        learning_rate=optax.constant_schedule(1e-2),
        ema=EMAConfig(decay=0.5),
        loss_repeat=2,
        seed=3,
    )
    rng = np.random.default_rng(0)
    batch = {
        "latents": rng.normal(size=(8, 1, 12, 12, 3)).astype(np.float32),
        "text": rng.normal(size=(8, 8, 16)).astype(np.float32),
        "text_length": np.arange(8, dtype=np.int32),
    }
    return step(state, shard_batch(batch, mesh))


def test_a_step_is_the_same_on_one_device_and_on_a_mesh_of_all_axes():
    jax.config.update("jax_disable_most_optimizations", True)  # only to compile faster
    try:
        alone, expected = one_step(make_mesh(jax.devices()[:1]))
        state, metrics = one_step(make_mesh(fsdp=2, tensor=2))
    finally:
        jax.config.update("jax_disable_most_optimizations", False)
    for name, value in expected.items():
        np.testing.assert_allclose(metrics[name], value, rtol=1e-5, err_msg=name)
    kernel = ("temporal_encoder", "blocks", "block", "attention", "qkv", "kernel")
    for params in (state.params, state.ema, state.optimizer[0].mu, state.optimizer[0].nu):
        assert flatten_dict(params)[kernel].sharding.spec == P(None, "fsdp", "tensor")
    np.testing.assert_allclose(
        flatten_dict(state.ema)[kernel], flatten_dict(alone.ema)[kernel], atol=1e-4
    )
    assert jnp.all(state.step == 1)

import dataclasses
import importlib.util
import math

import jax
import pytest
import small
from flax import nnx
from jax.experimental.compilation_cache import compilation_cache

from nova_jax.distributed.mesh import MESH_AXES, MeshConfig, make_mesh
from nova_jax.errors import NovaError
from nova_jax.plan import compile as planning
from nova_jax.plan import estimate as estimates
from nova_jax.plan.costs import Costs
from nova_jax.plan.report import report
from nova_jax.plan.topology import Topology, sent_bytes
from nova_jax.training.config import TrainConfig
from nova_jax.training.optimizer import make_optimizer
from nova_jax.training.state import state_maker, state_shardings

CPUS = Topology.parse("cpu:8")


@pytest.fixture
def config(run):
    return TrainConfig.from_dict(run)


def test_an_abstract_state_has_places_and_no_arrays(config):
    mesh, optimizer = make_mesh(config=MeshConfig(fsdp=4)), make_optimizer(config.optimizer, 6)
    _, state, _ = state_maker(config.model, optimizer, mesh)
    assert {type(leaf) for leaf in jax.tree.leaves(state)} == {jax.ShapeDtypeStruct}
    assert state_shardings(state).ema == state_shardings(state).params
    kernel = state.params["diffusion_head"]["out"]["kernel"]
    assert kernel.sharding.shard_shape(kernel.shape) == (32 // 4, 27)


def planned(config, *, depth):
    model = dataclasses.replace(config.model, spatial_decoder=f"vit_d{depth}w32")
    config = dataclasses.replace(config, model=model)
    return planning.plan_training(config, CPUS, MeshConfig(data=2, fsdp=4))


def test_a_training_step_is_planned(config):
    plan = planned(config, depth=2)
    assert dict(plan.mesh.shape) == {"data": 2, "fsdp": 4, "context": 1, "tensor": 1}
    assert plan.fits and plan.costs is not None
    # Every parameter that is split four ways has two moments and an average as large.
    assert plan.sizes["optimizer"] == pytest.approx(2 * plan.sizes["ema"], abs=64)
    assert plan.sizes["ema"] < plan.sizes["parameters"]
    # 8 samples of 2 frames over 8 devices.
    latents, text = 2 * 12 * 12 * 3, 8 * 16
    assert plan.sizes["batch"] == 4 * (latents + text + 3)
    assert plan.peak == sum(plan.sizes.values()) + plan.temporaries > plan.temporaries > 0
    # Gradients meet, parameters are gathered.
    kinds = plan.costs.by_kind()
    assert kinds["all-reduce"][0] > 0 and kinds["all-gather"][0] > 0

    lines = "\n".join(report(plan))
    assert "data 2, fsdp 4, context 1, tensor 1" in lines
    assert "all-gather" in lines and "MFU" not in lines  # there is no roofline of this CPU

    # What surrounds the blocks cancels: above all the embeddings of all timesteps.
    deeper = planned(config, depth=6)
    assert deeper.costs is not None
    further = deeper.costs.flops - plan.costs.flops
    assert further == pytest.approx(deeper.model_flops - plan.model_flops, rel=1e-6)


def test_a_mesh_must_fit_the_devices_and_the_batch(config):
    with pytest.raises(NovaError, match="does not fit 8 devices; the product must be 8"):
        planning.plan_training(config, CPUS, MeshConfig(data=3))
    few = dataclasses.replace(config, data=dataclasses.replace(config.data, batch_size=4))
    with pytest.raises(NovaError, match=r"batch_size 4 cannot be split over 8 devices"):
        planning.plan_training(few, CPUS, MeshConfig())


def test_meshes_are_ranked_by_an_estimate(config):
    found = estimates.estimates(config, Topology.parse("cpu:8"))
    memory = {
        tuple(getattr(guess.mesh, axis) for axis in MESH_AXES): guess.memory for guess in found
    }
    shapes = memory.keys()
    assert (8, 1, 1, 1) in shapes and (1, 4, 2, 1) in shapes
    assert all(math.prod(shape) == 8 for shape in shapes)
    assert not any(
        context > 2 or tensor > 1 for _, _, context, tensor in shapes
    )  # 2 frames, 1 head
    assert memory[1, 8, 1, 1] < memory[8, 1, 1, 1]


def test_time_is_a_roofline():
    plan = planning.Plan(
        topology=dataclasses.replace(CPUS, kind="v5e"),
        mesh=make_mesh().mesh,
        dtype="bfloat16",
        sizes={"parameters": 5},
        temporaries=2,
        costs=Costs(flops=197e12, bytes=819e9 / 4, collectives={}),
        model_flops=197e12 / 2,
        network=0.5,
        compile_seconds=0.0,
    )
    assert plan.seconds == {"compute": 1.0, "memory": 0.25, "network": 0.5}
    assert (plan.overlapped, plan.serial) == (1.0, 1.75)
    assert plan.mfu(plan.overlapped) == 0.5
    assert plan.fits and plan.peak == 7
    assert not dataclasses.replace(plan, temporaries=2**34).fits


def test_rules_of_a_recipe_are_planned_with(config):
    few, many = (
        dataclasses.replace(config, mesh=MeshConfig(rules=rules))
        for rules in ({}, {"mlp": ("fsdp", "tensor"), "embed": ()})
    )
    usual, other = (estimates.estimates(each, CPUS) for each in (few, many))
    assert all(guess.mesh.rules == many.mesh.rules for guess in other)
    assert [guess.memory for guess in usual] != [guess.memory for guess in other]


@pytest.mark.parametrize(
    ("kind", "sent"),
    [("all-reduce", 15), ("all-gather", 7.5), ("reduce-scatter", 7.5), ("collective-permute", 10)],
)
def test_a_device_sends_its_part_around_the_ring(kind, sent):
    assert sent_bytes(kind, 10, 4) == sent


def test_a_program_that_does_not_fit_says_what_it_needs():
    message = "RESOURCE_EXHAUSTED: … HLO temporaries (765.05G) exceeds available HBM (15.75G)."
    assert planning._out_of_memory(message) == int(765.05 * 2**30)
    message = "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 20.5G of 15.75G hbm."
    assert planning._out_of_memory(message) == int(20.5 * 2**30)
    assert planning._out_of_memory("INTERNAL: something else") is None


def test_programs_for_devices_that_are_not_here_are_not_kept(tmp_path):
    options = {
        "jax_compilation_cache_dir": str(tmp_path),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
    }
    before = {name: jax.config.values[name] for name in options}

    def programs(number):
        jax.jit(lambda x: x * number).lower(1.0).compile()
        return len(list(tmp_path.iterdir()))

    try:
        for name, value in options.items():
            jax.config.update(name, value)
        with planning._no_program_cache():
            assert programs(3) == 0
        assert programs(5) > 0
    finally:
        for name, value in before.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()


def test_generation_is_planned(config):
    plan = planning.plan_generation(config, CPUS, samples=8)
    assert plan.fits and plan.costs is not None
    model = sum(math.prod(v.shape) for v in jax.tree.leaves(nnx.state(small.make(config.model))))
    assert plan.sizes["parameters"] == 4 * model
    assert 0.5 * plan.model_flops < plan.costs.flops < 4 * plan.model_flops
    with pytest.raises(NovaError, match="--generate 7 cannot be split over 8 devices"):
        planning.plan_generation(config, CPUS, samples=7)


def test_meshes_are_written_by_axis():
    assert MeshConfig.parse("data:2, fsdp:4") == MeshConfig(data=2, fsdp=4)
    for text in ("data", "pipeline:2", "data:2,data:4", "fsdp:x"):
        with pytest.raises(NovaError, match="is not understood"):
            MeshConfig.parse(text)


@pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="needs libtpu, which compiles for TPUs"
)
def test_a_training_step_is_compiled_for_tpus(config):
    topology = Topology.parse("v5e:2x4")
    plan = planning.plan_training(config, topology, MeshConfig(data=4, fsdp=2))
    assert plan.fits and plan.costs is not None
    assert 0 < plan.peak < topology.machine.memory
    assert plan.model_flops < plan.costs.flops < 3 * plan.model_flops
    assert 0 < plan.overlapped <= plan.serial < 1

import math
import types

import jax
import jax.numpy as jnp
import pytest

from nova_jax.distributed.machines import MACHINES
from nova_jax.errors import NovaError
from nova_jax.kernels.attention import attention
from nova_jax.kernels.device import Target, compute_capability, platform, target
from nova_jax.plan.topology import Topology


@pytest.mark.parametrize(
    ("text", "kind", "shape", "size"),
    [
        ("v5e:16x16", "v5e", (16, 16), 256),
        ("v5p:4x4x8", "v5p", (4, 4, 8), 128),
        ("h100:8", "h100", (1, 8), 8),
        ("H100:4x8", "h100", (4, 8), 32),
        ("a100-40g:2x4", "a100-40g", (2, 4), 8),
        ("cpu:8", "cpu", (8,), 8),
    ],
)
def test_topologies_are_read(text, kind, shape, size):
    topology = Topology.parse(text)
    assert (topology.kind, topology.shape, topology.size) == (kind, shape, size)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("b300:8", "'b300:8' is not known; .* v4, v5e"),
        ("v5e", "lacks a shape; write it like v5e:16x16"),
        ("v5e:0x4", "lacks a shape"),
        ("v5e:4x4x4", "wrong shape; write it like v5e:16x16"),
        ("v4:4x4", "wrong shape; write it like v4:4x4x4"),
        ("cpu:2x2", "wrong shape; write it like cpu:8"),
    ],
)
def test_what_is_no_topology_is_refused(text, message):
    with pytest.raises(NovaError, match=message):
        Topology.parse(text)


def test_every_machine_says_what_it_can_do():
    for name, machine in MACHINES.items():
        if name != "cpu":
            figures = [machine.memory, machine.bandwidth, machine.link, *machine.flops.values()]
            assert all(0 < figure < math.inf for figure in figures), name
            assert machine.source.startswith("https://"), name
        assert (machine.target.platform == "gpu") == (machine.target.compute_capability > 0)


def test_cpu_devices_are_those_of_this_process():
    assert list(Topology.parse("cpu:4").devices()) == jax.devices()[:4]
    with pytest.raises(NovaError, match="has 8 CPU devices, not 9"):
        Topology.parse("cpu:9").devices()


@pytest.mark.parametrize(("topology", "package"), [("v5e:2x2", "libtpu"), ("h100:8", "cuda13")])
def test_without_its_compiler_a_topology_says_what_to_install(topology, package, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(NovaError, match=f"python -m pip install .*{package}"):
        Topology.parse(topology).devices()


def chips(*places):
    return [types.SimpleNamespace(coords=(*place, 0)) for place in places]


GB = 1e9


@pytest.mark.parametrize(
    ("group", "links"),
    [
        ([(x, 0) for x in range(16)], 2),  # a ring: both directions
        ([(x, 0) for x in range(8)], 1),  # a line
        ([(x, 0) for x in range(0, 16, 2)], 1),  # two rings that share the links
        ([(x, y) for x in range(16) for y in range(16)], 4),
        ([(0, 0), (1, 0)], 1),
        ([(0, 0), (4, 0)], 0.25),
    ],
)
def test_a_group_of_chips_has_the_links_that_it_extends_along(group, links):
    bandwidth = Topology.parse("v5e:16x16").bandwidth(chips(*group))
    assert bandwidth == pytest.approx(links * 50 * GB)


def test_sides_of_a_small_slice_do_not_close_to_rings():
    chips_of_a_side = chips((0, 0), (1, 0), (2, 0), (3, 0))
    assert Topology.parse("v5e:4x4").bandwidth(chips_of_a_side) == pytest.approx(50 * GB)


@pytest.mark.parametrize(
    ("nodes", "expected"),
    [([0] * 8, 450), ([0, 1, 2, 3], 50), ([0, 0, 1, 1], 100), ([0] * 8 + [1] * 8, 400)],
)
def test_gpus_use_nvlink_in_a_node_and_their_network_beyond(nodes, expected):
    group = [types.SimpleNamespace(process_index=node) for node in nodes]
    assert Topology.parse("h100:4x8").bandwidth(group) == pytest.approx(expected * GB)


def test_kernels_are_traced_for_the_machine_that_is_planned_for():
    heads = jax.ShapeDtypeStruct((1, 16, 2, 64), jnp.bfloat16)

    def traced():
        return str(jax.make_jaxpr(jax.jit(attention))(heads, heads, heads))

    here = traced()
    with target(Target("tpu")):
        assert (platform(), compute_capability()) == ("tpu", 0)
        assert traced() != here
    with target(Target("gpu", 8.0)):
        assert (platform(), compute_capability()) == ("gpu", 8.0)
    assert traced() == here

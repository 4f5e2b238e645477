"""Costs of small programs, against numbers counted by hand."""

import jax
import jax.numpy as jnp
import pytest
from jax import shard_map
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from nova_jax.plan.costs import Collective, read_costs


def costs_of(function, *arguments):
    return read_costs(jax.jit(function).lower(*arguments).compile().as_text())


def f32(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def test_a_matrix_product_counts_as_often_as_its_loops_run():
    def inner(x, w):
        return jax.lax.scan(lambda x, _: (jnp.tanh(x @ w), None), x, length=3)[0]

    def outer(x, w):
        return jax.lax.scan(lambda x, _: (inner(x, w), None), x, length=5)[0]

    assert costs_of(outer, f32(4, 8), f32(8, 8)).flops == 5 * 3 * 2 * 4 * 8 * 8


def test_batch_dimensions_of_a_product_count_once():
    product = lambda a, b: jnp.einsum("bij,bjk->bik", a, b)  # noqa: E731
    assert costs_of(product, f32(6, 4, 8), f32(6, 8, 2)).flops == 6 * 2 * 4 * 8 * 2


def test_of_two_branches_the_one_that_does_more_counts():
    def step(flag, x):
        return jax.lax.cond(flag, lambda x: x @ x @ x, lambda x: x @ x, x)

    flag = jax.ShapeDtypeStruct((), jnp.bool_)
    assert costs_of(step, flag, f32(16, 16)).flops == 2 * 2 * 16**3


def test_a_slice_of_a_stack_is_all_that_is_read_of_it():
    def step(x, weights):
        return jax.lax.scan(lambda x, w: (x + w, None), x, weights)[0]

    whole = 1000 * 4096 * 4  # bytes of the stack
    few, many = (costs_of(step, f32(4096), f32(n, 4096)).bytes for n in (10, 1000))
    # A weight is read, x read and written, all a few times over: not the stack at every step.
    assert 2 * whole < many < 12 * whole
    assert many / few == pytest.approx(100, rel=0.1)


@pytest.fixture
def mesh():
    return jax.make_mesh((2, 4), ("a", "b"))


def on_mesh(mesh, function, shape, spec, out):
    mapped = shard_map(function, mesh=mesh, in_specs=spec, out_specs=out, check_vma=False)
    sharding = NamedSharding(mesh, spec)
    return costs_of(mapped, jax.ShapeDtypeStruct(shape, jnp.float32, sharding=sharding))


ROW, COLUMN = (0, 1, 2, 3), (0, 4)  # devices that share an index on a, on b


@pytest.mark.parametrize(
    ("function", "out", "expected"),
    [
        # A device has [4, 4] of [8, 16].
        (lambda x: jax.lax.psum(x, "b"), P("a"), Collective("all-reduce", 64, ROW)),
        (lambda x: jax.lax.psum(x, "a"), P(None, "b"), Collective("all-reduce", 64, COLUMN)),
        (
            lambda x: jax.lax.all_gather(x, "b", axis=1, tiled=True),
            P("a"),
            Collective("all-gather", 256, ROW),
        ),
        (
            lambda x: jax.lax.psum_scatter(x, "b", tiled=True),
            P(("a", "b")),
            Collective("reduce-scatter", 64, ROW),
        ),
        (
            lambda x: jax.lax.all_to_all(x, "b", 0, 1, tiled=True),
            P(("a", "b")),
            Collective("all-to-all", 64, ROW),
        ),
        (
            lambda x: jax.lax.ppermute(x, "a", [(0, 1), (1, 0)]),
            P("a", "b"),
            Collective("collective-permute", 64, COLUMN),
        ),
    ],
)
def test_collectives_are_told_by_kind_bytes_and_devices(mesh, function, out, expected):
    found = on_mesh(mesh, function, (8, 16), P("a", "b"), out).collectives
    assert found == {expected: 1}


def test_a_collective_in_a_loop_counts_as_often_as_it_runs(mesh):
    def step(x):
        return jax.lax.scan(lambda x, _: (jax.lax.psum(x, "a") / 2, None), x, length=7)[0]

    costs = on_mesh(mesh, step, (8, 16), P("a", "b"), P("a", "b"))
    assert costs.by_kind() == {"all-reduce": (7, 7 * 64)}


@pytest.mark.parametrize(
    ("groups", "expected"),
    [
        ("{{0,2},{1,3}}", (0, 2)),
        ("[2,4]<=[8]", (0, 1, 2, 3)),
        ("[4,2]<=[2,4]T(1,0)", (0, 4)),
        ("mesh['a'=2,'b'=4] {'b'}", (0, 1, 2, 3)),
        ("mesh['a'=2,'b'=4] {'a'}", (0, 4)),
        ("mesh['a'=2,'b'=4] {'a','b'}", tuple(range(8))),
        ("mesh['a'=1,'b'=4,'c'=2], device_ids=([2,4]T(1,0)) {'c'}", (0, 4)),
        ("mesh['a'=1,'b'=4,'c'=2], device_ids=([2,4]T(1,0)) {'b'}", (0, 1, 2, 3)),
        ("mesh['a'=2,'b'=2], device_ids=(3,2,1,0) {'b'}", (3, 2)),
        ("mesh['a'=8] {'a':(1)2}", (0, 4)),
        ("mesh['a'=8] {'a':(4)2}", (0, 1)),
        ("mesh['a'=8] {'a':(2)2}", (0, 2)),
    ],
)
def test_every_form_of_replica_groups_is_read(groups, expected):
    text = f"""HloModule m

%add (x: f32[], y: f32[]) -> f32[] {{
  %x = f32[] parameter(0)
  %y = f32[] parameter(1)
  ROOT %sum = f32[] add(%x, %y)
}}

ENTRY %main (p: f32[4]) -> f32[4] {{
  %p = f32[4]{{0}} parameter(0)
  ROOT %r = f32[4]{{0}} all-reduce(%p), channel_id=1, replica_groups={groups}, to_apply=%add
}}
"""
    assert read_costs(text).collectives == {Collective("all-reduce", 16, expected): 1}


def test_groups_in_a_form_that_is_not_known_are_an_error():
    line = "ENTRY %m (p: f32[4]) -> f32[4] {\n  %p = f32[4] parameter(0)\n"
    line += "  ROOT %r = f32[4] all-reduce(%p), replica_groups=new\n}\n"
    with pytest.raises(ValueError, match="unknown form"):
        read_costs(line)


def module(instruction, *parameters):
    lines = [f"  %p{i} = {kind} parameter({i})" for i, kind in enumerate(parameters)]
    return "\n".join(["ENTRY %main () -> f32[] {", *lines, f"  ROOT %r = {instruction}", "}"])


@pytest.mark.parametrize(
    ("instruction", "parameters", "flops"),
    [
        # As TPUs write [8, 16] x [16, 4].
        (
            "f32[8,4]{1,0:T(8,128)S(1)} convolution(%p0, %p1), dim_labels=bf_io->bf",
            ("f32[8,16]{1,0}", "f32[16,4]{1,0}"),
            2 * 8 * 16 * 4,
        ),
        # And 5 of them: every output of the window of 5 meets one input only.
        (
            "bf16[5,8,4]{2,1,0} convolution(%p0, %p1), window={size=5 stride=4 pad=0_0 "
            "lhs_dilate=5}, dim_labels=0bf_0io->0bf",
            ("bf16[5,8,16]{2,1,0}", "bf16[5,16,4]{2,1,0}"),
            5 * 2 * 8 * 16 * 4,
        ),
        (
            "f32[1,9,1]{2,1,0} convolution(%p0, %p1), window={size=3 pad=1_1}, "
            "dim_labels=b0f_0io->b0f",
            ("f32[1,9,1]{2,1,0}", "f32[3,1,1]{2,1,0}"),
            2 * (3 * 9 - 2),
        ),
        # As GPUs write it.
        (
            "(f32[8,4]{1,0}, s8[4194304]{0}) custom-call(%p0, %p1), "
            'custom_call_target="__cublas$gemm", backend_config={"gemm_backend_config":'
            '{"dot_dimension_numbers":{"lhs_contracting_dimensions":["1"],'
            '"rhs_contracting_dimensions":["0"]}}}',
            ("f32[8,16]{1,0}", "f32[16,4]{1,0}"),
            2 * 8 * 16 * 4,
        ),
        (
            "(bf16[2,6,3,64]{3,2,1,0}, u8[0]{0}) custom-call(%p0, %p1, %p1), "
            'custom_call_target="__cudnn$fmhaSoftmax"',
            ("bf16[2,6,3,64]{3,2,1,0}", "bf16[2,9,3,64]{3,2,1,0}"),
            2 * 2 * 2 * 3 * 6 * 9 * 64,
        ),
        # Pallas kernels on TPUs.
        (
            "(bf16[6,1,128,64]{3,2,1,0}, f32[6,1,128,128]{3,2,1,0}) custom-call(%p2, %p0, %p1, "
            '%p1), custom_call_target="tpu_custom_call", frontend_attributes={kernel_metadata={\n'
            '"xprof_metadata":"{}"\n}}, metadata={op_name="splash_mha_fwd_residuals/pallas_call"}',
            ("bf16[6,1,128,64]{3,2,1,0}", "bf16[6,1,256,64]{3,2,1,0}", "s8[1,1,2]{2,1,0}"),
            2 * 2 * 6 * 128 * 256 * 64,
        ),
        (
            'f32[8,4]{1,0} custom-call(%p0), custom_call_target="tpu_custom_call", backend_config='
            '{"custom_call_config":{"body":"TUz","cost_estimate":{"flops":"700","bytes":"3"}}}',
            ("f32[8,4]{1,0}",),
            700,
        ),
    ],
)
def test_matrix_products_are_known_in_the_words_of_every_compiler(instruction, parameters, flops):
    assert read_costs(module(instruction, *parameters)).flops == flops


def test_what_stays_on_the_chip_is_no_traffic():
    text = module("f32[256]{0:T(256)S(1)} add(%p0, %p0)", "f32[256]{0:T(256)}")
    assert read_costs(text).bytes == 2 * 1024


def test_stages_of_one_collective_count_once():
    fused = """%one (q: f32[4]) -> f32[8] {{
  %q = f32[4]{{0}} parameter(0)
  ROOT %g{0} = f32[8]{{0}} all-gather(%q), channel_id=3, replica_groups={{{{0,1}}}}, """
    fused += """backend_config={{"async_collective_fusion_config":{{"flag_start":"-1"}}}}
}}
"""
    text = fused.format(1) + fused.replace("%one", "%two").format(2)
    text += """ENTRY %main (p: f32[4]) -> f32[8] {
  %p = f32[4]{0} parameter(0)
  %a = f32[8]{0} fusion(%p), kind=kCustom, calls=%one
  ROOT %b = f32[8]{0} fusion(%p), kind=kCustom, calls=%two
}
"""
    assert read_costs(text).by_kind() == {"all-gather": (1, 32)}

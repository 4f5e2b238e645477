"""The recorded training steps again, with parameters and activations spread over eight devices."""

from pathlib import Path

import pytest
import safetensors.numpy
from jax.sharding import PartitionSpec as P

from nova_jax.checkpoints import diffusers
from nova_jax.distributed.mesh import MeshConfig, make_mesh
from nova_jax.parity import compare, replay

GOLDEN = Path(__file__).parent.parent / "golden"


@pytest.mark.parametrize(
    "folder", ["t2v_sincos_mixer", pytest.param("t2v_rope", marks=pytest.mark.slow)]
)
def test_training_on_a_mesh_meets_the_release(folder):
    directory = GOLDEN / folder
    mesh = make_mesh(config=MeshConfig(fsdp=2, context=2, tensor=2))
    model, schedule = diffusers.load_transformer(directory, mesh=mesh)
    kernel = model.temporal_encoder.blocks.block.mlp.fc1.kernel.get_value()
    assert kernel.sharding.spec == P(None, "fsdp", "tensor")
    recorded = safetensors.numpy.load_file(directory / "golden.safetensors")
    recorded = {name: value for name, value in recorded.items() if name.startswith("train.")}
    case = diffusers.read_json(directory / "case.json")
    computed = replay.run_training(model, schedule, case["train"], recorded, mesh)
    tolerance = diffusers.read_json(directory / "tolerance.json")
    rows, missing = compare.compare(folder, recorded, computed, tolerance)
    assert len(rows) > 500 and not missing
    assert not [f"{r.array}: {r.relative_error:.1e}" for r in rows if r.verdict != "ok"]

"""A small model in the released layout whose autoencoder reconstructs: its weights are by hand.

AutoencoderKL of stride 2 that averages squares of 2x2 pixels and gives them back. Residual branches
are zero. What stands between is made linear: a channel x goes with -x and with ±K in a group, so
that GroupNorm divides by nearly K/√2 whatever the picture, and SiLU(x) - SiLU(-x) = x.
"""

import json
import shutil
from pathlib import Path

import jax
import numpy as np
from flax import nnx

from nova_jax.autoencoders.kl import AutoencoderKL, AutoencoderKLConfig
from nova_jax.checkpoints import diffusers, rules
from nova_jax.checkpoints.tensors import write_safetensors

SMALL = Path(__file__).parent / "golden" / "pipeline_t2v"
K, WIDTH, GROUP = 10.0, 128, 4


def write_released(directory: Path) -> Path:
    """Writes vae/, and text_encoder/ and tokenizer/ of a small random Phi."""
    for part in ("text_encoder", "tokenizer"):
        shutil.copytree(SMALL / part, directory / part)
    values = dict(
        latent_channels=4, block_out_channels=(WIDTH, WIDTH), layers_per_block=1,
        scaling_factor=2.0, down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
    )  # fmt: skip
    config = AutoencoderKLConfig(**values)
    network = nnx.eval_shape(lambda: AutoencoderKL(config, dtype="float32", rngs=nnx.Rngs(0)))
    variables = {path: v.get_value() for path, v in nnx.to_flat_state(nnx.state(network))}
    tensors = {}
    for entry in rules.autoencoder_table(variables):
        like = jax.ShapeDtypeStruct(variables[entry.path].shape, np.float32)
        shape = entry.to_released(np.zeros(like.shape, np.float32)).shape
        tensors[entry.released] = _weights(entry.released, shape)
    (directory / "vae").mkdir()
    (directory / "vae" / "config.json").write_text(
        json.dumps({"_class_name": "AutoencoderKL", **values})
    )
    write_safetensors(directory / "vae", diffusers.WEIGHTS, iter(tensors.items()))
    return directory


def _weights(name: str, shape: tuple[int, ...]) -> np.ndarray:
    value = np.zeros(shape, np.float32)
    if "norm" in name and name.endswith("weight"):
        value[:] = 1
    elif name.endswith("quant_conv.weight"):
        value[:] = np.eye(shape[0])[:, :, None, None]
    elif name.endswith(("encoder.conv_in.weight", "decoder.conv_in.weight")):
        for c in range(3):  # x, -x; biases add the other two of the group
            value[GROUP * c, c, 1, 1], value[GROUP * c + 1, c, 1, 1] = 1, -1
    elif name.endswith(("encoder.conv_in.bias", "decoder.conv_in.bias")):
        for c in range(3):
            value[GROUP * c + 2], value[GROUP * c + 3] = K, -K
    elif name.endswith("downsamplers.0.conv.weight"):
        value[range(WIDTH), range(WIDTH), :2, :2] = 0.25
    elif name.endswith("upsamplers.0.conv.weight"):
        value[range(WIDTH), range(WIDTH), 1, 1] = 1
    elif name.endswith(("encoder.conv_out.weight", "decoder.conv_out.weight")):
        for c in range(3):
            value[c, GROUP * c, 1, 1] = K / 2**0.5
            value[c, GROUP * c + 1, 1, 1] = -K / 2**0.5
    elif name.endswith("encoder.conv_out.bias"):
        value[4:] = -30  # log-variances: none
    return value

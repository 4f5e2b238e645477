"""Released directories that something is wrong with: one line that names it."""

import json
import shutil
from pathlib import Path

import pytest

from nova_jax.errors import NovaError
from nova_jax.pipeline import NovaPipeline

RELEASED = Path(__file__).parent.parent / "golden" / "pipeline_t2v"


def config(part, **values):
    """Changes fields of a config.json."""

    def change(directory):
        path = directory / part
        path.write_text(json.dumps(json.loads(path.read_text()) | values))

    return change


def without(part):
    return lambda directory: shutil.rmtree(directory / part)


def junk(path, text="{"):
    return lambda directory: (directory / path).write_text(text)


TRANSFORMER, VAE = "transformer/config.json", "vae/config.json"
PHI, SCHEDULER = "text_encoder/config.json", "scheduler/scheduler_config.json"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (config(TRANSFORMER, arch=["vit_x", "vit_d4w64", "mlp_d2w96"]), "'vit_x' is not a stage"),
        (
            config(TRANSFORMER, arch=["vit_d2w64"]),
            r"transformer/config.json: arch is \['vit_d2w64'\]; it must be tuple",
        ),
        (
            config(TRANSFORMER, surprise=3),
            "transformer/config.json: surprise: no such key; known are arch, image_dim",
        ),
        (config(TRANSFORMER, image_dim="4"), "image_dim is '4'; it must be int"),
        (config(TRANSFORMER, image_size=None), "image_size is None; it must be int or tuple"),
        (config(TRANSFORMER, image_stride=0), "image_stride is 0; it must be at least 1"),
        (config(TRANSFORMER, text_token_dim=16), "text_embed.weight has shape"),
        (config(VAE, latent_channels=8), "decoder.conv_in.weight has shape"),
        (config(VAE, _class_name="AutoencoderDC"), "unknown _class_name 'AutoencoderDC'; known: "),
        (
            config(VAE, block_out_channels="x"),
            "vae/config.json: block_out_channels is 'x'; it must",
        ),
        (
            config(PHI, hidden_size=None),
            "text_encoder/config.json: hidden_size is None; it must be int",
        ),
        (config(VAE, block_out_channels=[]), "vae/config.json: its sizes make no network"),
        (config(PHI, hidden_size=-1), "text_encoder/config.json: its sizes make no network"),
        (config(PHI, num_key_value_heads=1), "num_key_value_heads is 1; only 2"),
        (config(PHI, model_type="llama"), "unknown model_type 'llama'; known: phi"),
        (config(SCHEDULER, shift="a"), "scheduler_config.json: shift is 'a'; it must be float"),
        (junk(SCHEDULER, "[1]"), "scheduler_config.json is not a JSON object; fetch it again"),
        (without("scheduler"), "scheduler_config.json is missing; is this a model in the released"),
        (without("transformer"), "config.json is missing; is this a model in the released"),
        (without("vae"), "vae/config.json is missing; is this a model in the released"),
        (without("tokenizer"), "tokenizer is missing"),
        (junk("tokenizer/tokenizer.json"), "tokenizer is no tokenizer"),
    ],
)
def test_what_is_wrong_with_a_directory_is_named(change, message, tmp_path):
    directory = tmp_path / "model"
    shutil.copytree(RELEASED, directory)
    change(directory)
    with pytest.raises(NovaError, match=message) as error:
        NovaPipeline.from_pretrained(directory)
    assert "\n" not in str(error.value)

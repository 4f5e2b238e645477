import json
import sys

import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event

from nova_jax.errors import NovaError
from nova_jax.training.metrics import MetricWriter


def events(directory):
    """All TensorBoard records: length (8 bytes), its CRC (4), data, its CRC (4)."""
    found = []
    for file in sorted(directory.iterdir()):
        data = file.read_bytes()
        while data:
            length = int.from_bytes(data[:8], "little")
            found.append(Event.FromString(data[12 : 12 + length]))
            data = data[16 + length :]
    return found


def test_scalars_and_videos_reach_tensorboard(tmp_path):
    writer = MetricWriter(tmp_path, {})
    writer.scalars(3, "train_video", {"loss": 0.5})
    writer.video(3, "samples/0", np.zeros((2, 4, 6, 3), np.uint8), fps=2)
    writer.close()
    values = [value for event in events(tmp_path / "tensorboard") for value in event.summary.value]
    assert [value.tag for value in values] == ["train_video/loss", "samples/0"]
    assert values[0].simple_value == 0.5
    assert values[1].image.encoded_image_string.startswith(b"GIF89a")
    assert (values[1].image.height, values[1].image.width) == (4, 6)


def test_a_run_taken_up_again_replaces_later_records(tmp_path):
    writer = MetricWriter(tmp_path, {}, tensorboard=False)
    for step in (1, 2, 3):
        writer.scalars(step, "train", {"loss": step})
    writer.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "tra')  # killed while writing
    writer = MetricWriter(tmp_path, {}, first_step=2, tensorboard=False)
    writer.scalars(3, "train", {"loss": 30})
    writer.close()
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(line["step"], line["train/loss"]) for line in lines] == [(1, 1), (2, 2), (3, 30)]
    assert not (tmp_path / "tensorboard").exists()


def test_scalars_and_videos_reach_wandb(tmp_path, monkeypatch):
    pytest.importorskip("wandb", reason="wandb is not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    writer = MetricWriter(tmp_path, {"steps": 3}, tensorboard=False, wandb_project="nova")
    writer.scalars(3, "train_video", {"loss": 0.5})
    writer.video(3, "samples/0", np.zeros((2, 16, 16, 3), np.uint8), fps=2)
    writer.close()
    (run,) = (tmp_path / "wandb").glob("offline-run-*")
    assert list(run.glob("*.wandb"))
    assert list((run / "files" / "media" / "videos" / "samples").glob("*.gif"))


def test_wandb_that_is_not_installed_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(NovaError, match="wandb is not installed; pip install"):
        MetricWriter(tmp_path, {}, wandb_project="nova")

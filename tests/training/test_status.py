"""Where a run stands, told from what it has written."""

import json

import pytest
from etils.epath import Path

from nova_jax.checkpoints.integrity import FORMAT
from nova_jax.distributed.lock import hold
from nova_jax.errors import NovaError
from nova_jax.pipeline import SHIPPED
from nova_jax.training.metrics import MetricWriter
from nova_jax.training.status import RECENT, read_status


def workdir_of(tmp_path, steps):
    (tmp_path / "config.json").write_text(json.dumps(FORMAT | {"steps": steps}))
    return Path(tmp_path)


def test_a_run_under_way(tmp_path):
    workdir = workdir_of(tmp_path, 1000)
    writer = MetricWriter(workdir, {}, tensorboard=False)
    for step in range(1, 301):
        nan = step == 250
        values = {"loss": float("nan") if nan else 1 / step, "grad_norm": 1.0, "skipped": nan}
        writer.scalars(step, "train_video", values)
    writer.scalars(200, "validation", {"loss": 0.25})
    writer.scalars(300, "speed", {"seconds_per_step": 2.0})
    writer.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 301, "train_vid')  # being written
    (tmp_path / "checkpoints" / "200").mkdir(parents=True)
    (tmp_path / "checkpoints" / "100").mkdir()
    with hold(workdir / "lock"):
        status = read_status(workdir)
    assert (status.step, status.steps, status.checkpoints) == (300, 1000, (100, 200))
    recent = [1 / step for step in range(301 - RECENT, 301) if step != 250]
    assert status.losses == {"train_video": pytest.approx(sum(recent) / len(recent))}
    assert status.skipped == {"loss": 1}
    text = status.text()
    assert text.startswith("step 300 of 1,000, 30.0 %\nrunning: process ")
    assert "time left 0:23:20; seconds_per_step 2\n" in text
    assert "validation loss 0.2500 at step 200\n" in text
    assert "checkpoints: 100, 200\n1 steps skipped, their loss not finite" in text
    assert "not running" in read_status(workdir).text()


def test_a_run_that_has_just_begun(tmp_path):
    assert read_status(workdir_of(tmp_path, 10)).text() == (
        "step 0 of 10, 0.0 %\nnot running\ncheckpoints: none yet"
    )


def test_a_directory_without_a_run_is_named(tmp_path):
    with pytest.raises(NovaError, match="holds no run; give the --workdir of one"):
        read_status(Path(tmp_path))
    with pytest.raises(NovaError, match="holds no run; give the --workdir of one"):
        read_status(Path(SHIPPED))

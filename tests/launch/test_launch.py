"""The scripts in launch/, on what this machine can be made to be."""

import copy
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import small
from processes import steps_done, write_recipe

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
SCRIPTS = sorted((ROOT / "launch").glob("*.s*"))


@pytest.fixture
def arguments(tmp_path):
    """Of a run of two steps: where, and on what."""
    run = copy.deepcopy(small.RUN) | {"steps": 2, "samples": {"every": None}}
    run["data"]["video_fraction"] = 1.0
    run["optimizer"] = {"learning_rate": 1e-3}
    run["logging"] = {"every": 1, "tensorboard": False}
    return [f"--config={write_recipe(run, tmp_path / 'run.py')}", f"--workdir={tmp_path / 'run'}"]


def environment(**changes):
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return os.environ | {"PATH": path, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"} | changes


def check_finished(run, steps=2):
    assert run.returncode == 0, run.stdout + run.stderr
    assert run.stdout.count(f"{steps} of {steps} steps done") == 1  # by one process alone


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_short_shell(script):
    subprocess.run(["bash", "-n", script], check=True)
    assert os.access(script, os.X_OK)
    assert len(script.read_text().splitlines()) <= 20


@pytest.fixture
def jobset():
    yaml = pytest.importorskip("yaml", reason="PyYAML is not installed")
    return yaml.safe_load((ROOT / "launch" / "jobset.yaml").read_text())


def strict(schema):
    """The schema, with fields that it does not know refused, as ``kubectl --validate`` does."""
    if isinstance(schema, list):
        return [strict(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    known = {key: strict(value) for key, value in schema.items()}
    if isinstance(schema.get("properties"), dict) and schema.get("type") == "object":
        known["additionalProperties"] = False
    return known


def test_the_jobset_fits_the_published_schema(jobset):
    jsonschema = pytest.importorskip("jsonschema", reason="jsonschema is not installed")
    schema = strict(json.loads((HERE / "jobset.schema.json").read_text()))
    jsonschema.validate(jobset, schema)
    (job,) = jobset["spec"]["replicatedJobs"]
    job["template"]["spec"]["completion"] = 2  # misspelled
    with pytest.raises(jsonschema.ValidationError, match="'completion' was unexpected"):
        jsonschema.validate(jobset, schema)


def test_the_hosts_of_the_jobset_find_the_first(jobset):
    (job,) = jobset["spec"]["replicatedJobs"]
    spec = job["template"]["spec"]
    (container,) = spec["template"]["spec"]["containers"]
    values = dict(argument.removeprefix("--").split("=", 1) for argument in container["args"])
    train = (ROOT / "nova_jax" / "train.py").read_text()
    assert values.keys() <= set(re.findall(r'(?:DEFINE_\w+|define)\(\s*"(\w+)"', train)) | {
        "config"
    }
    # The name that JobSet gives the first pod: jobset-job-index-pod.subdomain.
    name = jobset["metadata"]["name"]
    assert values["coordinator"] == f"{name}-{job['name']}-0-0.{name}:8476"
    assert int(values["num_processes"]) == spec["parallelism"] == spec["completions"]
    assert (ROOT / values["config"]).exists()


@pytest.mark.slow
def test_two_tasks_train_on_slurm(arguments, tmp_path):
    if missing := [name for name in ("sbatch", "slurmctld", "slurmd", "munged") if not which(name)]:
        pytest.skip(f"needs SLURM on this machine: {', '.join(missing)} not found")
    if os.getuid():
        pytest.skip("slurmd needs root")
    options = ["--nodes=1", "--ntasks-per-node=2", "--gpus-per-node=0", "--cpus-per-task=1"]
    log = tmp_path / "job.log"
    command = ["sbatch", "--wait", *options, f"--output={log}", ROOT / "launch" / "slurm.sbatch"]
    run = subprocess.run(
        [HERE / "slurm.sh", tmp_path / "slurm", *command, *arguments],
        env=environment(), cwd=ROOT, capture_output=True, text=True, timeout=500,
    )  # fmt: skip
    assert run.returncode == 0, run.stdout + run.stderr + (log.read_text() if log.exists() else "")
    assert log.read_text().count("2 of 2 steps done") == 1
    assert "Rank 1 is connected to 1 peer ranks" in log.read_text()
    assert steps_done(tmp_path / "run") == 2


def which(name: str) -> str | None:
    return shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:/sbin")


@pytest.mark.slow
def test_two_hosts_with_addresses_of_their_own_train(arguments, tmp_path):
    if not which("ip") or subprocess.run(["ip", "netns", "add", "nova-probe"]).returncode:
        pytest.skip("needs network name spaces: ip netns add is not permitted")
    subprocess.run(["ip", "netns", "del", "nova-probe"], check=True)
    run = subprocess.run(
        [HERE / "two_hosts.sh", *arguments],
        env=environment(), cwd=ROOT, capture_output=True, text=True, timeout=500,
    )  # fmt: skip
    check_finished(run)
    assert steps_done(tmp_path / "run") == 2


@pytest.mark.slow
def test_processes_of_one_machine_train_and_stop_together(arguments, tmp_path):
    script = ROOT / "launch" / "local_multigpu.sh"
    more = ["--config.steps=1000", "--config.validation.every=1000"]
    run = subprocess.Popen(
        [script, *arguments, *more], env=environment(PROCESSES="2"), cwd=ROOT,
        stdout=subprocess.PIPE, text=True, stderr=subprocess.STDOUT,
    )  # fmt: skip
    deadline = time.monotonic() + 500
    while steps_done(tmp_path / "run") < 3:
        assert run.poll() is None and time.monotonic() < deadline
        time.sleep(0.1)
    run.send_signal(signal.SIGTERM)
    output, _ = run.communicate(timeout=200)
    assert run.returncode == 0, output
    assert output.count("of 1000 steps done") == output.count("goes on from here") == 1

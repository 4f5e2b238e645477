"""The command: which rows are whose, and requests that cannot be met."""

import pytest
from absl import flags

from nova_jax import prepare
from nova_jax.data.preparation import PrepareConfig, Report
from nova_jax.errors import NovaError


@pytest.mark.parametrize(
    ("environment", "shard"),
    [
        ({}, (0, 1)),
        ({"SLURM_PROCID": "3", "SLURM_NTASKS": "8"}, (3, 8)),
        ({"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2"}, (1, 2)),
        ({"RANK": "0", "WORLD_SIZE": "4"}, (0, 4)),
        ({"RANK": "0"}, (0, 1)),
    ],
)
def test_launchers_say_which_process_this_is(environment, shard):
    assert prepare.shard_of_launcher(environment) == shard


@pytest.mark.parametrize("text", ["3", "3/3", "-1/2", "a/b", "1/", "0/0"])
def test_shards_that_cannot_be_are_named(text):
    with pytest.raises(NovaError, match=f"--shard={text} is not i/n"):
        prepare.parse_shard(text)
    assert prepare.parse_shard("2/3") == (2, 3)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ([], "--input is missing"),
        (["--input=x"], "--out is missing"),
        (["--input=x", "--out=y"], "--checkpoint is missing; give a released model, or --raw"),
        (["--input=x", "--out=y", "--raw"], "x does not exist; give a directory or a manifest"),
        (["--input=codewithgpu:x", "--out=y", "--raw"], "x holds no records of codewithgpu"),
        (["--inspect=x"], "x has no metadata.json"),
    ],
)
def test_requests_that_cannot_be_met_are_named(tmp_path, monkeypatch, arguments, named):
    monkeypatch.chdir(tmp_path)
    flags.FLAGS.unparse_flags()
    flags.FLAGS(["prepare", *arguments])
    try:
        with pytest.raises(NovaError, match=named):
            prepare.main()
    finally:
        for flag in (prepare.INPUT, prepare.OUT, prepare.RAW, prepare.INSPECT):
            flags.FLAGS[flag.name].unparse()
    assert not list(tmp_path.iterdir())


def test_the_report_says_what_was_skipped_and_which_side_waits(capsys, tmp_path):
    skipped = [(f"{n}.mp4", "too short") for n in range(9)]
    report = Report(
        rows=20, clips=10, seconds=5.0, waited_for_clips=3.0, waited_for_encoders=1.0,
        skipped=skipped, left=4, metadata=None,
    )  # fmt: skip
    prepare.print_report(report, tmp_path)
    shown = capsys.readouterr().out
    assert "20 files gave 10 clips in 5.0 s, 2.00 clips/s" in shown
    assert "the limit: decoding" in shown and "4 files are left" in shown
    assert "Skipped 9:" in shown and "4.mp4: too short" in shown and "5.mp4" not in shown
    assert PrepareConfig().clips.frames == (33,)

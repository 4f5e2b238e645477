"""Whatever a command or the library is given, it is done or refused in one line.

Done means that what was made is there, finite and not all the same; refused, one line that begins
with "error:" and exit code 2, or a `NovaError` of one line. Each within limits of time and memory,
see `fuzz.forks`. The cases that failed can be run again, one or several:

    PYTHONPATH=tests python -m fuzz commands 17
    PYTHONPATH=tests python -m fuzz calls 0:500 --jobs=2
"""

import jax
import pytest
from fuzz.forks import Forks
from fuzz.values import make_inputs
from fuzz.verdict import FINE, verdict

FEW = {"commands": range(10), "calls": range(8)}
MANY = {kind: range(few.stop, 500) for kind, few in FEW.items()}


@pytest.fixture(scope="module")
def forks(tmp_path_factory):
    inputs = make_inputs(tmp_path_factory.mktemp("fuzz") / "inputs")
    with Forks(inputs, jax.config.jax_compilation_cache_dir) as forks:
        yield forks


def check(forks: Forks, kind: str, seeds: range) -> None:
    outcomes = [forks.run(kind, seed) for seed in seeds]
    verdicts = [verdict(outcome) for outcome in outcomes]
    assert not [
        f"{kind} {outcome['seed']}: {found}\n{outcome.get('case')}"
        for outcome, found in zip(outcomes, verdicts, strict=True)
        if found not in FINE
    ]
    assert {"success", "refused"} <= {*verdicts}, "the cases are all alike"


@pytest.mark.parametrize("kind", FEW)
def test_some_cases(forks, kind):
    check(forks, kind, FEW[kind])


@pytest.mark.slow
@pytest.mark.parametrize("kind", MANY)
def test_many_cases(forks, kind):
    check(forks, kind, MANY[kind])

"""Runs cases: ``PYTHONPATH=tests python -m fuzz commands 17`` or ``python -m fuzz calls 0:500``.

Prints each case that is neither done nor refused, and how many there were of what.
"""

import argparse
import json
import tempfile
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from fuzz.forks import Forks
from fuzz.values import make_inputs
from fuzz.verdict import FINE, verdict


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m fuzz", description=__doc__)
    parser.add_argument("kind", choices=("commands", "calls"))
    parser.add_argument("seeds", help="one, or FIRST:LAST")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--log", help="also write every outcome to this file, a line of JSON each")
    arguments = parser.parse_args()
    first, colon, last = arguments.seeds.partition(":")
    seeds = range(int(first), int(last) if colon else int(first) + 1)
    inputs = Path(tempfile.gettempdir()) / "nova_jax_fuzz"
    if not inputs.exists():
        make_inputs(inputs)
    counts: Counter[str] = Counter()

    def work(part: range) -> None:
        with Forks(inputs) as forks:
            for seed in part:
                outcome = forks.run(arguments.kind, seed)
                found = verdict(outcome)
                counts[found] += 1
                if arguments.log:
                    with open(arguments.log, "a") as file:
                        file.write(json.dumps(outcome | {"verdict": found}) + "\n")
                if found not in FINE or len(seeds) == 1:
                    print(f"seed {seed}: {found}\n  {outcome.get('case')}", flush=True)
                if len(seeds) == 1:
                    print(outcome["stdout"], outcome["stderr"], sep="\n")

    with ThreadPoolExecutor(arguments.jobs) as pool:
        list(pool.map(work, [seeds[i :: arguments.jobs] for i in range(arguments.jobs)]))
    for found, count in counts.most_common():
        print(f"{count:5} {found}")


if __name__ == "__main__":
    main()

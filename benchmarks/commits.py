"""Whole runs of `train_torch.py` in two checkouts, in turn: how much slower has a change made it?

git worktree add ../before COMMIT
python -m benchmarks.commits ../before . --rounds 5
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.install import ROOT
from benchmarks.programs import torch
from benchmarks.workloads import Work, headline, one_process, throughput, two_ranks

WORKS: dict[str, Work] = {
    "p1": one_process().agreed,
    "p1-2": two_ranks().agreed,
    "p2, a tenth": headline().scaled(0.1).agreed,
    "p5": throughput().agreed,
}


def seconds(checkout: Path, work: Work, seed: int) -> float:
    """Train with a checkout's script and return the seconds of the whole process, test included."""
    with tempfile.TemporaryDirectory() as folder:
        command = [*torch(work, seed, Path(folder)), "--num-threads", "1"]
        command = [word.replace(str(ROOT / "train_torch.py"), str(checkout / "train_torch.py")) for word in command]
        started = time.perf_counter()
        subprocess.run(command, cwd=folder, capture_output=True, check=True)
        return time.perf_counter() - started


def main() -> None:
    """Print a line for each workload: the ratio after / before of each round, and their median."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", type=Path, help="checkout of the commit before")
    parser.add_argument("after", type=Path, help="checkout of the commit after")
    parser.add_argument("--rounds", type=int, default=5, help="pairs of runs of each workload (5)")
    parser.add_argument("--only", nargs="+", choices=WORKS, default=list(WORKS), help="workloads")
    given = parser.parse_args()
    before, after = given.before.resolve(), given.after.resolve()
    if missing := [each for each in (before, after) if not (each / "train_torch.py").is_file()]:
        parser.error(f"{missing[0]}: a checkout of this project is expected")
    for name in given.only:
        seconds(after, WORKS[name], 0)  # files into the cache
        ratios = []
        for number in range(given.rounds):
            # in turn, so that neither is always the one that follows
            order = (before, after) if number % 2 else (after, before)
            took = {checkout: seconds(checkout, WORKS[name], number) for checkout in order}
            ratios.append(took[after] / took[before])
        listed = " ".join(f"{ratio:.3f}" for ratio in ratios)
        print(f"{name}: median {statistics.median(ratios):.3f} of {listed}", flush=True)


if __name__ == "__main__":
    sys.exit(main())

"""P1's work with what watches a run, and without, in turn: how much slower does it train?

python -m benchmarks.watching --rounds 5
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import tempfile
from pathlib import Path

from benchmarks.programs import torch
from benchmarks.workloads import one_process

CALLBACK = '''"""A callback that does nothing in each update."""

from fabric_ppo import Callback


class Looks(Callback):
    def on_update(self, run, metrics):
        return None
'''
WATCHED = {
    "info keys": ["--info-keys", "a,sum:b"],
    "a callback": ["--callback", "looks:Looks"],
    "wandb": ["--track", "tensorboard", "jsonl", "wandb"],
    "mlflow": ["--track", "tensorboard", "jsonl", "mlflow"],
    "trackio": ["--track", "tensorboard", "jsonl", "trackio"],
}
"""Name -> flags; `all` stands for all of them."""


def flags_of(name: str) -> list[str]:
    """Return the flags of a name of WATCHED, or of `all`."""
    if name != "all":
        return WATCHED[name]
    trackers = ["--track", "tensorboard", "jsonl", "wandb", "mlflow", "trackio"]
    return [*WATCHED["info keys"], *WATCHED["a callback"], *trackers]


def train_seconds(flags: list[str], seed: int) -> float:
    """Train with further flags; return the seconds of training."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "looks.py").write_text(CALLBACK)
        run_dir = str(Path(folder, "run"))
        command = [*torch(one_process().agreed, seed, Path(folder)), "--num-threads", "1", "--run-dir", run_dir]
        subprocess.run([*command, *flags], cwd=folder, capture_output=True, check=True)
        seconds: float = json.loads(Path(run_dir, "summary.json").read_text())["train_seconds"]
        return seconds


def main() -> None:
    """Print a line for each: the ratio with / without of each round, and their median."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="rounds, each with all of them (5)")
    parser.add_argument("--only", nargs="+", choices=[*WATCHED, "all"], default=[*WATCHED, "all"], help="what watches")
    given = parser.parse_args()
    ratios: dict[str, list[float]] = {name: [] for name in given.only}
    for number in range(given.rounds):
        without = train_seconds([], number)
        for name in given.only:
            ratios[name].append(train_seconds(flags_of(name), number) / without)
    for name, of_rounds in ratios.items():
        listed = " ".join(f"{ratio:.3f}" for ratio in of_rounds)
        print(f"{name}: median {statistics.median(of_rounds):.3f} of {listed}", flush=True)


if __name__ == "__main__":
    main()

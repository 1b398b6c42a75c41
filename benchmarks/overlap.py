"""How much faster the decoupled architecture is with --overlap, where rollout and update take equally long.

    python benchmarks/overlap.py [--pairs 5] [--updates 40]

A player and one trainer; the environment's step cost is first set so that a rollout takes as long as an update.
Alternating and overlapped runs take turns; each pair gives a ratio of steps per second, start-up excluded.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
NUM_STEPS, NUM_ENVS = 128, 4


def run(updates: int, busy: float, *flags: str) -> tuple[float, list[dict[str, float]]]:
    """Steps per second of a run, and its metrics."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        launcher = [sys.executable, "-m", "lightning.fabric.cli", "--devices=2", f"--main-port={port}"]
        size = [f"--num-envs={NUM_ENVS}", f"--num-steps={NUM_STEPS}"]
        size += [f"--total-timesteps={updates * NUM_STEPS * NUM_ENVS}", "--test-episodes=1"]
        script = [str(ROOT / "train_fabric_decoupled.py"), "--env-id=busy_env:Busy-v0", f"--run-dir={folder}/run"]
        env = os.environ | {
            "BUSY_MICROSECONDS": str(busy),
            "PYTHONPATH": f"{ROOT / 'benchmarks'}:{ROOT}",
        }
        subprocess.run([*launcher, *script, *size, *flags], check=True, capture_output=True, env=env)
        summary = json.loads(Path(folder, "run/summary.json").read_text())
        lines = [json.loads(line) for line in Path(folder, "run/metrics.jsonl").read_text().splitlines()]
    return summary["steps_per_second"], lines


def balanced_cost(updates: int) -> float:
    """Microseconds of a step for which a rollout takes as long as an update."""
    busy = 0.0
    for _ in range(3):
        _, lines = run(updates, busy)
        rollout, update = (
            statistics.median(line[f"Time/{part}_seconds"] for line in lines[2:]) for part in ("rollout", "update")
        )
        busy = max(0.0, busy + (update - rollout) / (NUM_STEPS * NUM_ENVS) * 1e6)
    return busy


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--updates", type=int, default=40)
    given = parser.parse_args()
    busy = balanced_cost(given.updates)
    print(f"step cost {busy:.0f} us")
    ratios = []
    for _ in range(given.pairs):
        (alternating, plain), (overlapped, lines) = run(given.updates, busy), run(given.updates, busy, "--overlap")
        ratios.append(overlapped / alternating)
        idle = statistics.median(line["Time/player_idle"] for line in lines[2:])
        rollout, update = (
            statistics.median(line[f"Time/{part}_seconds"] for line in plain[2:]) for part in ("rollout", "update")
        )
        said = f"{alternating:6.0f} -> {overlapped:6.0f} steps/s: {ratios[-1]:.2f}"
        print(
            f"{said} (rollout {rollout * 1e3:.0f} ms, update {update * 1e3:.0f} ms, player idle {idle:.0%})", flush=True
        )
    print(f"median ratio {statistics.median(ratios):.2f}, from {min(ratios):.2f} to {max(ratios):.2f}")


if __name__ == "__main__":
    main()

"""Predicted and measured time of an update on two hosts, over links of three delays and bandwidths.

    python -m benchmarks.network --table network.md

The hosts are network namespaces (`benchmarks.namespaces`), so that root is needed. One rank without
a network gives the seconds of rollout and gradient steps, a plain TCP connection the latency and
bandwidth of each link; `benchmarks.scaling_model` predicts from these alone, and then each of the
four ways to train runs on both hosts. Medians of updates, without the first ones. Once ranks train they
have a real-time priority, so that other work on the machine does not count as the network's.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.compare import machine
from benchmarks.namespaces import DEVICE, ROOT, Link, address, hosts, measure_link, require_root
from benchmarks.scaling_model import WAYS, Network, Work

LINKS = (Link(0.001, 100e6), Link(0.005, 50e6), Link(0.020, 10e6))
NUM_WARM = 6
"""Updates that are left out: connections open their windows in them."""
PORT = 29514
PIPES = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
NUM_STEPS, NUM_ENVS, BATCH_SIZE, EPOCHS = 64, 4, 64, 4
"""Work of each rank; CartPole."""
WEIGHTS, ROW_BYTES = 9155, 16 + 8 + 20
REPORT_BYTES = NUM_STEPS * NUM_ENVS * 2 + NUM_ENVS * (16 + 24) + 4224
"""Of the default agent on CartPole, by the formulas of docs/cluster.md."""
FLAGS_OF = {"local data": [], "--share-data": ["--share-data"], "decoupled": [], "--overlap": ["--overlap"]}
"""Flags of the ways; the last two are those of train_fabric_decoupled.py."""


@dataclass(frozen=True)
class Times:
    """Medians of an update's seconds: as a whole, of its rollout and of its gradient steps."""

    whole: float
    rollout: float
    training: float


def flags(num_envs: int, batch_size: int, updates: int, rows: int, run_dir: Path) -> list[str]:
    """Return the flags of a run; `rows` are those of an update on all ranks."""
    size = [f"--num-steps={NUM_STEPS}", f"--num-envs={num_envs}", f"--per-rank-batch-size={batch_size}"]
    size += [f"--update-epochs={EPOCHS}", f"--total-timesteps={updates * rows}"]
    return [*size, "--num-threads=1", "--test-episodes=1", "--no-anneal-lr", f"--run-dir={run_dir}"]


def read_times(run_dir: Path, rows: int) -> Times:
    """Return the medians of a run whose updates have so many rows on all ranks."""
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()][NUM_WARM:]
    columns = {
        name: statistics.median(line[f"Time/{name}"] for line in lines)
        for name in ("rollout_seconds", "update_seconds")
    }
    whole = statistics.median(rows / line["Time/step_per_second"] for line in lines)
    return Times(whole, columns["rollout_seconds"], columns["update_seconds"])


def run_alone(batch_size: int, updates: int) -> Times:
    """Train in one process, without a network."""
    rows = NUM_STEPS * NUM_ENVS
    with tempfile.TemporaryDirectory() as folder:
        words = [sys.executable, str(ROOT / "train_torch.py")]
        words += flags(NUM_ENVS, batch_size, updates, rows, Path(folder, "run"))
        process = subprocess.Popen(words, cwd=folder, **PIPES)
        finish([process], Path(folder, "run"))
        return read_times(Path(folder, "run"), rows)


def measured_work(updates: int) -> Work:
    """Return the work of a rank with the seconds that it takes alone."""
    usual, double = run_alone(BATCH_SIZE, updates), run_alone(2 * BATCH_SIZE, updates)
    steps = EPOCHS * NUM_STEPS * NUM_ENVS // BATCH_SIZE
    # half as many steps on as many rows: what is saved is what those steps take whatever their rows
    per_step = max(2 * (usual.training - double.training) / steps, 0.0)
    per_row = max(usual.training - per_step * steps, 0.0) / (EPOCHS * NUM_STEPS * NUM_ENVS)
    return Work(
        rows=NUM_STEPS * NUM_ENVS,
        batch_size=BATCH_SIZE,
        epochs=EPOCHS,
        weights=WEIGHTS,
        row_bytes=ROW_BYTES,
        report_bytes=REPORT_BYTES,
        collect_seconds=usual.rollout / (NUM_STEPS * NUM_ENVS),
        step_seconds=per_step,
        row_seconds=per_row,
        other_seconds=usual.whole - usual.rollout - usual.training,
    )


def run_on_hosts(way: str, names: Sequence[str], updates: int) -> Times:
    """Train on two hosts, in one of the four ways, and return the times of an update.

    Raises:
        RuntimeError: a host failed; its last lines.
    """
    is_coupled, rows = way in ("local data", "--share-data"), 2 * NUM_STEPS * NUM_ENVS
    with tempfile.TemporaryDirectory() as folder:
        size = (NUM_ENVS, BATCH_SIZE) if is_coupled else (2 * NUM_ENVS, 2 * BATCH_SIZE)
        script = "train_torch.py" if is_coupled else "train_fabric_decoupled.py"
        processes = []
        for host, name in enumerate(names):
            words = [str(ROOT / script), *flags(*size, updates, rows, Path(folder, f"run{host}"))]
            # as mpirun starts ranks: no launcher takes a processor beside them
            variables = {"RANK": host, "WORLD_SIZE": 2, "LOCAL_RANK": 0, "LOCAL_WORLD_SIZE": 1}
            variables |= {"MASTER_ADDR": address(0), "MASTER_PORT": PORT, "GLOO_SOCKET_IFNAME": DEVICE}
            processes.append(
                subprocess.Popen(
                    ["ip", "netns", "exec", name, sys.executable, *words, *FLAGS_OF[way]],
                    cwd=folder,
                    env=os.environ | {variable: str(value) for variable, value in variables.items()},
                    **PIPES,
                )
            )
        finish(processes, Path(folder, "run0"))
        return read_times(Path(folder, "run0"), rows)


def finish(processes: Sequence[subprocess.Popen[str]], run_dir: Path) -> None:
    """Give ranks a real-time priority when they have begun to train, and wait for their end.

    Raises:
        RuntimeError: one failed; the last lines of all.
    """
    try:
        while not (run_dir / "metrics.jsonl").exists() and all(each.poll() is None for each in processes):
            time.sleep(0.05)
        for each in processes:
            with contextlib.suppress(OSError):  # it may have ended
                for thread in os.listdir(f"/proc/{each.pid}/task"):
                    os.sched_setscheduler(int(thread), os.SCHED_RR, os.sched_param(1))
        said = [each.communicate()[0] for each in processes]
    finally:
        for each in processes:
            each.kill()
    if any(each.returncode for each in processes):
        raise RuntimeError("\n".join(each[-2000:] for each in said))


def line(link: Link, way: str, predicted: float, measured: Sequence[float]) -> str:
    """Return a row of the table: of a link as it was measured, and the update times of some runs."""
    middle = statistics.median(measured)
    cells = [f"{1e3 * link.delay:.2f}", f"{link.bandwidth / 1e6:.1f}", way, f"{1e3 * predicted:.1f}"]
    cells += [f"{1e3 * middle:.1f}", f"{1e3 * min(measured):.1f} .. {1e3 * max(measured):.1f}"]
    return f"| {' | '.join(cells)} | {predicted / middle - 1:+.0%} |"


def main() -> None:
    """Measure, predict, run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--updates", type=int, default=30, help="of each run (30)")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each way over each link (3)")
    way_of = {way.removeprefix("--"): way for way in WAYS}
    parser.add_argument("--ways", nargs="+", choices=list(way_of), default=list(way_of), help="some of the four (all)")
    parser.add_argument("--table", type=Path, help="file for the table")
    given = parser.parse_args()
    if given.updates <= NUM_WARM or given.rounds < 1:
        parser.error(f"--updates of more than {NUM_WARM}, and --rounds of 1 or more, are expected")
    require_root()
    here, started = machine(), time.strftime("%Y-%m-%d %H:%M")
    work = measured_work(10 * given.updates)
    alone = (
        f"alone: {1e6 * work.collect_seconds:.1f} us a transition, {1e6 * work.step_seconds:.0f} us a gradient step "
    )
    alone += f"and {1e6 * work.row_seconds:.2f} us a row of it, {1e3 * work.other_seconds:.2f} ms other"
    print(alone, flush=True)
    head = ["latency, ms", "Mbit/s", "way", "predicted, ms", "measured, ms", "from .. to", "off by"]
    table = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    for asked in LINKS:
        with hosts(2, asked) as names:
            found = measure_link(names)
            network = Network(found.delay, found.bandwidth)
            for way in map(way_of.__getitem__, given.ways):
                measured = [run_on_hosts(way, names, given.updates).whole for _ in range(given.rounds)]
                table.append(line(found, way, WAYS[way](work, network, 2).total, measured))
                print(table[-1], flush=True)
    where = f"{started}, {here['cpu']}, {here['cores']} cores, {here['system']}, load before: {here['load_before']}; "
    where += f"{alone}. `{shlex.join(['python', '-m', 'benchmarks.network', *sys.argv[1:]])}`"
    if given.table:
        given.table.write_text("\n".join(["# Two hosts", "", *table, "", where, ""]))


if __name__ == "__main__":
    main()

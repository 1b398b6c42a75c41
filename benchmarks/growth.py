"""Steps per second of ours as the work grows: 1 to 256 environments, minibatches of 64 to 16384 rows, 1 and 2 ranks.

    python -m benchmarks.growth --table growth.md --plot growth.svg

A transition should never cost more because there are more environments, larger minibatches or more ranks. Each
point is a short run of `train_torch.py` on CartPole, of which the median update counts, without the first.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import platform
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
from benchmarks.install import ROOT

ENVS = (1, 4, 16, 64, 256)
BATCHES = (64, 256, 1024, 4096, 16384)
RANKS = (1, 2)
NUM_STEPS = 64  # of the sweep over environments
NOISE = 0.1  # by so much a cost may rise before it is marked


@dataclass(frozen=True)
class Size:
    """A point of a sweep; `num_envs`, `num_steps` and `batch_size` are per rank."""

    sweep: str
    ranks: int
    num_envs: int
    num_steps: int
    batch_size: int
    epochs: int
    updates: int


@dataclass(frozen=True)
class Cost:
    """Microseconds of a transition, over all ranks: of the rollout, of the update, and of both with all the rest."""

    size: Size
    rollout: float
    update: float
    total: float


def sizes() -> list[Size]:
    """Both sweeps: an update has four minibatches as environments grow, and 16384 rows per rank as batches do."""
    envs = [
        Size("environments", ranks, num, NUM_STEPS, num * NUM_STEPS // 4, epochs=4, updates=5 + 64 // num)
        for ranks in RANKS
        for num in ENVS
    ]
    batches = [
        Size("rows of a minibatch", ranks, 64, 256, batch, epochs=4, updates=4) for ranks in RANKS for batch in BATCHES
    ]
    return envs + batches


def measure(size: Size, num_threads: int) -> Cost:
    """Run it, with so many PyTorch threads a rank."""
    launcher = [sys.executable]
    if size.ranks > 1:
        launcher += ["-m", "torch.distributed.run", f"--nproc_per_node={size.ranks}", "--standalone"]
    transitions = size.num_envs * size.num_steps * size.ranks
    flags = [f"--num-envs={size.num_envs}", f"--num-steps={size.num_steps}", f"--update-epochs={size.epochs}"]
    flags += [f"--per-rank-batch-size={size.batch_size}", f"--total-timesteps={size.updates * transitions}"]
    flags += [f"--num-threads={num_threads}", "--test-episodes=1"]
    with tempfile.TemporaryDirectory() as folder:
        args = [*launcher, str(ROOT / "train_torch.py"), f"--run-dir={folder}/run", *flags]
        subprocess.run(args, check=True, capture_output=True)
        lines = [json.loads(line) for line in Path(folder, "run/metrics.jsonl").read_text().splitlines()][1:]
    rollout, update = (
        statistics.median(line[f"Time/{part}_seconds"] for line in lines) * 1e6 / transitions
        for part in ("rollout", "update")
    )
    return Cost(size, rollout, update, statistics.median(1e6 / line["Time/step_per_second"] for line in lines))


def grown(size: Size) -> int:
    """Return the name of the quantity that grows in a point's sweep."""
    return size.num_envs if size.sweep == "environments" else size.batch_size


def rises(costs: Sequence[Cost], cost: Cost) -> bool:
    """Return True if a transition costs clearly more than at a smaller size, or fewer ranks, of the sweep."""
    least = min(
        (
            each.total
            for each in costs
            if each.size.sweep == cost.size.sweep
            and each.size.ranks <= cost.size.ranks
            and grown(each.size) <= grown(cost.size)
        ),
    )
    return cost.total > (1 + NOISE) * least


def table(costs: Sequence[Cost]) -> str:
    """As Markdown."""
    lines = []
    for sweep in dict.fromkeys(cost.size.sweep for cost in costs):
        lines += [
            "",
            f"| {sweep} | ranks | transitions/s | us per transition | of it rollout | of it update | |",
            "|---|---|---|---|---|---|---|",
        ]
        for cost in costs:
            if cost.size.sweep == sweep:
                mark = "rises" if rises(costs, cost) else ""
                each = f"{cost.total:.1f} | {cost.rollout:.1f} | {cost.update:.1f}"
                lines.append(f"| {grown(cost.size)} | {cost.size.ranks} | {1e6 / cost.total:,.0f} | {each} | {mark} |")
    return "\n".join(lines)


def plot(costs: Sequence[Cost], path: Path) -> None:
    """Transitions per second over what grows, a line for each number of ranks."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    sweeps = list(dict.fromkeys(cost.size.sweep for cost in costs))
    figure, all_axes = pyplot.subplots(1, len(sweeps), figsize=(9, 3.5), layout="constrained", squeeze=False)
    for axes, sweep in zip(all_axes[0], sweeps, strict=True):
        for ranks in RANKS:
            own = [cost for cost in costs if (cost.size.sweep, cost.size.ranks) == (sweep, ranks)]
            name = f"{ranks} rank" + "s" * (ranks > 1)
            axes.plot([grown(cost.size) for cost in own], [1e6 / cost.total for cost in own], "o-", label=name)
        axes.set(xlabel=f"{sweep}, per rank", ylabel="transitions/s", xscale="log", ylim=(0, None))
        axes.set_xticks(ticks := sorted({grown(cost.size) for cost in costs if cost.size.sweep == sweep}), ticks)
        axes.minorticks_off()
        axes.grid(alpha=0.3)
        axes.legend()
    figure.savefig(path, format="svg")


def main() -> None:
    """Measure, write and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", type=Path, required=True)
    parser.add_argument("--plot", type=Path, required=True)
    parser.add_argument("--num-threads", type=int, default=0, help="as the scripts' flag (0)")
    given = parser.parse_args()
    here, started, costs = machine(), time.strftime("%Y-%m-%d %H:%M"), []
    for size in sizes():
        costs.append(measure(size, given.num_threads))
        print(f"{size.sweep} {grown(size)}, {size.ranks} ranks: {1e6 / costs[-1].total:,.0f} transitions/s", flush=True)
    note = (
        f"CartPole, `train_torch.py --num-threads {given.num_threads}`. Over environments: {NUM_STEPS} steps, four "
        "epochs of four minibatches. Over minibatches: 64 environments and 256 steps per rank, four epochs. *rises*: "
        f"over {NOISE:.0%} more per transition than at a smaller size or with fewer ranks."
    )
    versions = f"Python {platform.python_version()}, PyTorch {importlib.metadata.version('torch')}"
    where = f"{started}, {here['cpu']}, {here['cores']} cores, {versions}, {here['system']}; "
    where += f"load before: {here['load_before']}. `{shlex.join(['python', '-m', 'benchmarks.growth', *sys.argv[1:]])}`"
    for path in (given.table, given.plot):
        path.parent.mkdir(parents=True, exist_ok=True)
    given.table.write_text(f"# Growth\n\n{note}\n{table(costs)}\n\n{where}\n")
    plot(costs, given.plot)
    print(given.table.read_text())


if __name__ == "__main__":
    main()

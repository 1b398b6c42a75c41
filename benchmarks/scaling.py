"""Transitions per second of many ranks in the four ways to train, predicted for a network and a work.

    python -m benchmarks.scaling --workload lunarlander --latency 50e-6 --bandwidth 10e9 --ranks 8 64 1024
    python -m benchmarks.scaling --run RUN_DIR --latency 50e-6 --bandwidth 10e9 --out scaling.svg

RUN_DIR is a run of one rank with the flags that a rank is to have; its times are those of the work.
Every number of the work can be given instead. docs/scaling.md explains the model.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path

import numpy as np

from benchmarks.scaling_model import WAYS, Network, Parts, Work, efficiency, local_data, rows_per_second
from fabric_ppo.process.errors import ConfigError

WORKLOADS = {
    "cartpole": Work(128, 64, 10, 9155, 44, 4520, 28.9e-6, 85e-6, 1.38e-6, 2.3e-3),
    "lunarlander": Work(4096, 64, 10, 9797, 60, 12528, 55e-6, 85e-6, 0.8e-6, 19e-3),
    "pong": Work(2048, 256, 4, 742839, 28252, 460288, 778e-6, 85e-6, 271e-6, 10e-3),
}
"""Works of three kinds, with the seconds of docs/scaling.md: P1's, the headline's, Pong's with 16 environments."""
HELP = {
    "rows": "transitions that a rank collects for an update",
    "batch_size": "rows of a rank's minibatch",
    "epochs": "passes over the rows",
    "weights": "number of the agent's weights",
    "row_bytes": "bytes of a row: observation, action and 20",
    "report_bytes": "bytes of a rank's report (docs/cluster.md)",
    "collect_seconds": "seconds of a transition in the rollout",
    "step_seconds": "seconds of a gradient step, whatever its rows",
    "row_seconds": "seconds of a row in a gradient step, besides",
    "other_seconds": "seconds of the rest of an update",
    "player_speed": "times as fast as one rank a player steps environments",
    "latency": "seconds from rank to rank for a small message",
    "bandwidth": "bits per second from rank to rank",
    "spread": "standard deviation of a rank's time of a rollout, as a part of it",
    "step_spread": "the same of a gradient step",
    "host_ranks": "ranks up to which all are on one host and share its memory",
}
"""Meaning of the flags that are numbers of the work and of the network."""
STEP_SECONDS = 85e-6
"""Seconds of a gradient step whatever its rows, where a run gives only the whole (docs/scaling.md)."""
NETWORK = Network(latency=50e-6, bandwidth=10e9)
"""Ranks in a data centre, by default."""


def work_of_run(run_dir: str) -> Work:
    """Return the work of a run of one rank, with the medians of its times.

    Raises:
        ConfigError: it is no finished run of one rank in one process.
    """
    from fabric_ppo.run.result import load_run

    run = load_run(run_dir)
    flags, times = run.flags, run.metrics
    # the first update is slower: memory is new
    if run.summary.get("world_size") != 1 or len(times.get("Time/update_seconds", ())) < 2:
        raise ConfigError(f"--run {run_dir}: a finished run of one rank and some updates is expected")
    agent = run.agent
    observation, action = agent.spec.observation, agent.spec.action
    obs_bytes = math.prod(observation.shape) * np.dtype(observation.dtype).itemsize
    # a choice is a number of 8 bytes in a row, and kept in one
    action_bytes, kept_bytes = (math.prod(action.shape) * each for each in ((4, 4) if action.kind == "box" else (8, 1)))
    rows, num_envs = flags["num_steps"] * flags["num_envs"], flags["num_envs"]
    rollout, training = (float(np.median(times[f"Time/{each}_seconds"][1:])) for each in ("rollout", "update"))
    whole = float(np.median(rows / times["Time/step_per_second"][1:]))
    work = Work(
        rows=rows,
        batch_size=flags["per_rank_batch_size"],
        epochs=flags["update_epochs"],
        weights=sum(each.numel() for each in agent.module.parameters()),
        row_bytes=obs_bytes + action_bytes + 20,
        report_bytes=rows * (kept_bytes + 1) + num_envs * (obs_bytes + 24) + 4224,
        collect_seconds=rollout / rows,
        step_seconds=0.0,
        row_seconds=0.0,
        other_seconds=max(whole - rollout - training, 0.0),
    )
    step = training / work.gradient_steps
    fixed = min(STEP_SECONDS, step)
    return replace(work, step_seconds=fixed, row_seconds=(step - fixed) * work.gradient_steps / work.epochs / rows)


def require_sensible(work: Work, network: Network, ranks: Sequence[int]) -> None:
    """Raise a ConfigError that names the first number that cannot be."""
    for name, value in (asdict(work) | asdict(network)).items():
        at_least = 1 if name in ("rows", "batch_size", "epochs", "weights") else 0
        above = name in ("bandwidth", "player_speed")
        if (not math.isfinite(value) and name != "bandwidth") or value < at_least or (above and value <= 0):
            flag = "--" + name.replace("_", "-")
            raise ConfigError(f"{flag} {value:g}: {'more than 0' if above else f'{at_least} or more'} is expected")
    if min(ranks) < 1:
        raise ConfigError(f"--ranks {min(ranks)}: 1 or more is expected")
    if local_data(work, network, 1).total <= 0:
        raise ConfigError("--collect-seconds 0: an update takes no time at all; seconds of some part are expected")


def ways_of(ranks: int) -> list[str]:
    """Return the ways that so many ranks can train in: a decoupled run has at least two."""
    return list(WAYS)[: 4 if ranks > 1 else 2]


def fastest(work: Work, network: Network, ranks: int) -> str:
    """Return the way with the most transitions per second; the simpler one of two that are equal."""
    return max(ways_of(ranks), key=lambda way: rows_per_second(way, work, network, ranks))


def speed_of(way: str, work: Work, network: Network, ranks: int) -> str:
    """Return transitions per second as text, with how many times those of one rank they are."""
    times = ranks * efficiency(way, work, network, ranks)
    rounded = f"{times:.0f}" if times >= 10 else f"{times:.2g}"
    return f"{rows_per_second(way, work, network, ranks):,.0f} ({rounded}x)"


def table(work: Work, network: Network, ranks: Sequence[int]) -> str:
    """Return transitions per second as Markdown, and where the time of the fastest way goes."""
    lines = [f"| ranks | {' | '.join(WAYS)} | fastest | {' | '.join(parts_of(Parts()))} |", "|" + "---|" * 11]
    for count in ranks:
        cells = [str(count)]
        for way in WAYS:
            if way in ways_of(count):
                cells.append(speed_of(way, work, network, count))
            else:
                cells.append("")
        best = fastest(work, network, count)
        cells += [best, *parts_of(WAYS[best](work, network, count)).values()]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def parts_of(parts: Parts) -> dict[str, str]:
    """Return the parts of an update as text, each as a part of the time that is waited for."""
    return {
        name: f"{value / parts.total:.0%}" if parts.total else ""
        for name, value in asdict(parts).items()
        if name != "hidden"
    }


def draw(out: Path, works: dict[str, Work], network: Network, ranks: Sequence[int]) -> None:
    """Draw transitions per second over ranks, a panel for each work.

    Raises:
        ConfigError: matplotlib is missing, or `out` is no kind of picture.
    """
    from fabric_ppo.tools.plot import Line, Look, Panel, draw_panels

    panels = []
    for name, work in works.items():
        lines = []
        for way in WAYS:
            counts = [count for count in ranks if way in ways_of(count)]
            speeds = [rows_per_second(way, work, network, count) for count in counts]
            lines.append(Line(way, np.array(counts, float), np.array(speeds)))
        alone = rows_per_second("local data", work, network, 1)
        ideal = Line("no communication", np.array(ranks, float), alone * np.array(ranks, float))
        panels.append(Panel(f"{name}: transitions/s", [*lines, ideal]))
    draw_panels(out, panels, Look(x_title="ranks", log_x=True, log_y=True))


def parse(words: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line, or some words."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    start = parser.add_mutually_exclusive_group()
    start.add_argument(
        "--workload",
        nargs="+",
        choices=list(WORKLOADS),
        default=list(WORKLOADS),
        metavar="NAME",
        help=f"any of {', '.join(WORKLOADS)} (all)",
    )
    start.add_argument("--run", metavar="RUN_DIR", help="folder of a run of one rank")
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 8, 32, 128, 1024])
    parser.add_argument("--tree", action="store_true", help="an all-reduce over a tree, as nccl has for small messages")
    parser.add_argument("--out", type=Path, help="picture to draw: .svg, .png or .pdf")
    for kind in (Work, Network):
        for each in fields(kind):
            if each.name in HELP:
                flag, number = "--" + each.name.replace("_", "-"), int if each.type == "int" else float
                parser.add_argument(flag, type=number, metavar="N", help=HELP[each.name])
    return parser.parse_args(words)


def inputs(given: argparse.Namespace) -> tuple[dict[str, Work], Network]:
    """Return works by name, and the network, with the numbers that are given.

    Raises:
        ConfigError: one of them cannot be.
    """
    own = {name: value for name in HELP if (value := getattr(given, name)) is not None}
    of_network = {
        name: own[name] for name in ("latency", "bandwidth", "spread", "step_spread", "host_ranks") if name in own
    }
    network = replace(NETWORK, tree=given.tree, **of_network)
    of_work = {name: value for name, value in own.items() if name not in of_network}
    works = {given.run: work_of_run(given.run)} if given.run else {name: WORKLOADS[name] for name in given.workload}
    works = {name: replace(work, **of_work) for name, work in works.items()}
    for work in works.values():
        require_sensible(work, network, given.ranks)
    return works, network


def main() -> None:
    """Predict, print and draw.

    Raises:
        ConfigError: a flag cannot be.
    """
    given = parse()
    works, network = inputs(given)
    ranks = sorted(set(given.ranks))
    if given.out:
        from fabric_ppo.tools.plot import require_kind

        require_kind(given.out)  # before anything is printed
    for name, work in works.items():
        print(f"{name}: {work.rows} transitions and {work.gradient_steps} gradient steps of a rank in an update")
        print(f"\n{table(work, network, ranks)}\n")
    if given.out:
        draw(given.out, works, network, ranks)
        print(f"picture {given.out}")


if __name__ == "__main__":
    try:
        main()
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)

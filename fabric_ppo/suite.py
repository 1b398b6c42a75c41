"""`fabric-ppo benchmark`: train presets over several seeds, test each final policy, and write what came of it.

Every finished run is a line of `results.json`, from which the table and the curves are made: a suite can be killed and
repeated, and run in parts.
"""

from __future__ import annotations

import json
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fabric_ppo.checkpoint import write_atomically
from fabric_ppo.config import Config, load_yaml
from fabric_ppo.launch import ConfigError, die_with_parent
from fabric_ppo.plot import curve, draw

TEST_EPISODES = 100
_RESAMPLES = 50_000
_CURVE_POINTS = 100


@dataclass(frozen=True)
class Row:
    """A preset of `configs/`, what others have published for its environment, and a goal if there is one."""

    preset: str
    published: str
    goal: float | None


SUITES = {
    "classic": (
        Row("cartpole", "SB3 zoo 500; CleanRL 490.0 +- 6.1 (500k)", 500),
        Row("acrobot", "SB3 zoo -73.5 +- 18.2 (1 M)", -74),
        Row("mountaincar", "SB3 zoo -110.4 +- 19.5", -110),
        Row("mountaincar-continuous", "SB3 zoo 88.3 +- 2.6 (20k)", 90),
        Row("pendulum", "SB3 zoo -172 +- 104 (100k)", -165),
    ),
    "box2d": (
        Row("lunarlander", "SB3 zoo 242 +- 32 (v2)", 260),
        Row("lunarlander-continuous", "SB3 zoo 271 +- 32 (v2)", 275),
        Row("bipedalwalker", "SB3 zoo 213 +- 129 (5 M)", 280),
    ),
    "mujoco": (
        Row("halfcheetah", "CleanRL 1443 +- 46 (v4); SB3 zoo 5819 +- 664 (v3)", 5800),
        Row("hopper", "CleanRL 2383 +- 272 (v4); SB3 zoo 2410 +- 10 (v3)", 2600),
        Row("walker2d", "CleanRL 2288 +- 572 (v4); SB3 zoo 3479 +- 822 (v3)", 3500),
        Row("ant", "SB3 zoo 1327 +- 452 (v3)", 1800),
        Row("swimmer", "SB3 zoo 282 +- 10 (v3)", 280),
    ),
    "minigrid": (Row("minigrid-empty", "-", 0.9),),
    "atari": (Row("pong", "CleanRL 20.4, SB3 zoo 21.0 (10 M)", None),),
}
ROWS = {row.preset: row for rows in SUITES.values() for row in rows}


@dataclass(frozen=True)
class Result:
    """A finished run: mean return of its test episodes, and the curve of its training as (transitions, return)."""

    preset: str
    env_id: str
    seed: int
    transitions: int
    test_return: float
    test_std: float
    minutes: float
    date: str
    made_with: str
    curve: list[tuple[float, float]] = field(repr=False)


def interquartile_mean(scores: Sequence[float]) -> float:
    """Mean of what is left without the lowest and the highest quarter, each rounded down (arXiv 2108.13264, 4.3)."""
    cut = len(scores) // 4
    return float(np.mean(np.sort(scores)[cut : len(scores) - cut]))


def interval(
    scores: Sequence[float], statistic: Callable[[Sequence[float]], float] = interquartile_mean
) -> tuple[float, float]:
    """95 % percentile bootstrap interval of a statistic over runs (arXiv 2108.13264, 4.1), always the same draws."""
    rng = np.random.default_rng(0)
    drawn: NDArray[Any] = rng.choice(np.asarray(scores, float), (_RESAMPLES, len(scores)))
    low, high = np.percentile([statistic(each) for each in drawn], [2.5, 97.5])
    return float(low), float(high)


def presets_of(names: Sequence[str]) -> list[str]:
    """Suites and presets by name -> presets.

    Raises:
        ConfigError: a name is neither.
    """
    found: list[str] = []
    for name in names:
        if name not in SUITES and name not in ROWS:
            raise ConfigError(f"benchmark {name}: one of {', '.join([*SUITES, *ROWS])} is expected")
        found += [row.preset for row in SUITES[name]] if name in SUITES else [name]
    return list(dict.fromkeys(found))


def preset_path(preset: str) -> Path:
    """Its file of flags."""
    spec = find_spec("train_torch")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).with_name("configs") / f"{preset}.yaml"


def run_suite(presets: Sequence[str], seeds: int, jobs: int, log_dir: Path, out: Path) -> int:
    """Train what is not finished yet, `jobs` runs side by side, and write `out`; how many runs failed.

    Args:
        presets: by name.
        seeds: how many of each, from 1 up.
        jobs: runs at a time, one core each.
        log_dir: where run folders are; unfinished ones go on where they were.
        out: the page to write; `results.json` and the curves lie beside it, in a folder of its name.
    """
    todo = [(preset, seed, log_dir / preset / f"seed_{seed}") for seed in range(1, seeds + 1) for preset in presets]
    failed = 0
    pool = ThreadPoolExecutor(jobs)
    try:
        for (preset, seed, run_dir), status in zip(todo, pool.map(lambda job: _train(*job), todo), strict=True):
            if status == 0:
                result = _result(preset, run_dir)
                print(f"{preset}, seed {seed}: {result.test_return:.1f}, {result.minutes:.1f} min", flush=True)
                _remember(out, result)
                write_page(out)
            else:
                failed += 1
                print(f"{preset}, seed {seed}: ended with status {status}, see {run_dir}/output.txt", file=sys.stderr)
    finally:
        pool.shutdown(cancel_futures=True)  # an interrupt has reached those that run, too
    return failed


def _train(preset: str, seed: int, run_dir: Path) -> int:
    """Train and test one run, unless that has happened; its exit status."""
    if (run_dir / "summary.json").is_file():
        return 0
    run_dir.mkdir(parents=True, exist_ok=True)
    script = preset_path(preset).parent.parent / "train_torch.py"
    command = [sys.executable, str(script), *_flags(preset, str(seed)), "--num-threads", "1"]
    command += ["--run-dir", str(run_dir), "--resume"]
    with (run_dir / "output.txt").open("a") as output:
        return subprocess.run(command, stdout=output, stderr=output, preexec_fn=die_with_parent).returncode


def _flags(preset: str, seed: str) -> list[str]:
    path = preset_path(preset)
    path = path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
    return ["--config", str(path), "--seed", seed, "--test-episodes", str(TEST_EPISODES)]


def _result(preset: str, run_dir: Path) -> Result:
    summary = json.loads((run_dir / "summary.json").read_text())
    steps, returns = curve(run_dir)
    at = np.unique(np.linspace(0, len(steps) - 1, min(_CURVE_POINTS, len(steps))).astype(int))
    return Result(
        preset=preset,
        env_id=summary["env_id"],
        seed=summary["seed"],
        transitions=summary["env_steps"],
        test_return=summary["test"]["return_mean"],
        test_std=summary["test"]["return_std"],
        minutes=summary["wall_seconds"] / 60,
        date=time.strftime("%Y-%m-%d", time.localtime((run_dir / "summary.json").stat().st_mtime)),
        made_with=", ".join(
            [f"Python {platform.python_version()}", *(f"{name} {version(name)}" for name in ("torch", "gymnasium"))]
        ),
        curve=[(float(steps[k]), round(float(returns[k]), 3)) for k in at],
    )


def _folder(out: Path) -> Path:
    return out.with_suffix("")


def _known(out: Path) -> list[Result]:
    path = _folder(out) / "results.json"
    return [Result(**values) for values in json.loads(path.read_text())] if path.is_file() else []


def _remember(out: Path, result: Result) -> None:
    """Put a result into `results.json`, in place of an earlier one of the same run."""
    others = [each for each in _known(out) if (each.preset, each.seed) != (result.preset, result.seed)]
    order = list(ROWS)
    results = sorted([*others, result], key=lambda each: (order.index(each.preset), each.seed))
    _folder(out).mkdir(parents=True, exist_ok=True)
    lines = ",\n".join(json.dumps(asdict(each)) for each in results)
    write_atomically(_folder(out) / "results.json", f"[\n{lines}\n]\n".encode())


def write_page(out: Path) -> None:
    """Write the table and the curves of all results that are known."""
    results = _known(out)
    groups = [(row, [each for each in results if each.preset == name]) for name, row in ROWS.items()]
    groups = [(row, runs) for row, runs in groups if runs]
    for row, runs in groups:
        curves = [np.array(run.curve).T for run in runs]
        draw(_folder(out) / f"{row.preset}.svg", curves, title=runs[0].env_id, goal=row.goal)
    write_atomically(out, "\n".join(_page(groups, _folder(out).name)).encode())


def _page(groups: list[tuple[Row, list[Result]]], folder: str) -> Iterator[str]:
    yield "# Scores\n"
    yield (
        f"Each run trains with a preset of [configs](../configs) and then plays {TEST_EPISODES} greedy episodes, with "
        "seeds that training cannot draw, with its final policy: no run is picked, and no policy along the way. Its "
        "score is the mean return of these. The interval is the 95 % percentile bootstrap of the interquartile mean "
        "over runs, as in rliable (arXiv 2108.13264). Published figures are from the programs' own pages, of one "
        "agent or three, partly of older versions of the environments.\n"
    )
    yield (
        "| environment | transitions | runs | mean +- deviation over runs | interquartile mean | worst run | goal | "
        "published | minutes a run |"
    )
    yield "|---|---|---|---|---|---|---|---|---|"
    for row, runs in groups:
        scores = [run.test_return for run in runs]
        low, high = interval(scores)
        form = ".1f" if row.goal is None or abs(row.goal) > 10 else ".3f"
        cells = [
            f"{runs[0].env_id}",
            f"{round(np.median([run.transitions for run in runs])):,}",
            f"{len(runs)}",
            f"{np.mean(scores):{form}} +- {np.std(scores):{form}}",
            f"{interquartile_mean(scores):{form}} [{low:{form}}, {high:{form}}]",
            f"{min(scores):{form}}",
            "-" if row.goal is None else f"{row.goal:g}, {'reached' if np.mean(scores) >= row.goal else 'missed'}",
            row.published,
            f"{np.median([run.minutes for run in runs]):.1f}",
        ]
        yield f"| {' | '.join(cells)} |"
    yield "\nMinutes are of the wall clock, with other runs on the other cores.\n"
    for row, runs in groups:
        dates = sorted({run.date for run in runs})
        yield f"## {runs[0].env_id}\n"
        yield "```sh"
        yield f"python train_torch.py --config configs/{row.preset}.yaml --seed 1 --test-episodes {TEST_EPISODES}"
        yield "```\n"
        yield f"Seeds {', '.join(str(run.seed) for run in runs)}; {' to '.join(dates[:1] + dates[1:][-1:])}; "
        yield f"{'; '.join(sorted({run.made_with for run in runs}))}.\n"
        yield f"![Learning curves of {runs[0].env_id}]({folder}/{row.preset}.svg)\n"


def check_presets(presets: Sequence[str]) -> None:
    """Raise a ConfigError for a preset whose flags cannot work here."""
    for preset in presets:
        Config(**load_yaml(str(preset_path(preset)), Config))

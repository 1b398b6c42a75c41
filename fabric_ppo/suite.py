"""`fabric-ppo benchmark`: train presets over several seeds, test each final policy, and write what came of it.

Every finished run is a line of `results.json`, from which the table and the curves are made: a suite can be killed and
repeated, and run in parts.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fabric_ppo.checkpoint import write_atomically
from fabric_ppo.config import TorchConfig
from fabric_ppo.envs.base import make_gymnasium_env
from fabric_ppo.errors import ConfigError, flag
from fabric_ppo.flags import load_yaml
from fabric_ppo.launch import die_with_parent
from fabric_ppo.plot import curve, draw

TEST_EPISODES = 100
_RESAMPLES = 50_000
_CURVE_POINTS = 60
_PACKAGES = ("torch", "gymnasium", "box2d", "mujoco", "minigrid", "ale-py", "opencv-python-headless", "envpool")
_MADE_WITH = "made_with.txt"
_FREE = ("seed", "test_episodes", "num_threads", "log_dir")
"""Flags that a run has besides those of its preset."""


@dataclass(frozen=True)
class Row:
    """A preset of `configs/`, what others have published for its environment, and a goal if there is one."""

    preset: str
    published: str
    goal: float | None
    every: float | None = None
    """What each single run is to reach."""
    seeds: int = 5
    """How many runs a verdict takes."""


SUITES = {
    "classic": (
        Row("cartpole", "SB3 zoo 500; CleanRL 490.0 +- 6.1 (500k)", 500, every=500, seeds=10),
        Row("acrobot", "SB3 zoo -73.5 +- 18.2 (1 M)", -74),
        Row("mountaincar", "SB3 zoo -110.4 +- 19.5", -110),
        Row("mountaincar-continuous", "SB3 zoo 88.3 +- 2.6 (20k)", 90),
        Row("pendulum", "SB3 zoo -172 +- 104 (100k)", -165),
    ),
    "box2d": (
        Row("lunarlander", "SB3 zoo 242 +- 32 (v2)", 260, every=200),
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
    "minigrid": (
        Row("minigrid-empty", "-", 0.9),
        Row("minigrid-memory", "-", 0.9),
        Row("minigrid-memory-mlp", "-", None),
    ),
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
    flags: dict[str, Any]
    """Of its preset."""
    curve: list[tuple[float, float]] = field(repr=False)


def interquartile_mean(scores: ArrayLike) -> NDArray[np.float64]:
    """Mean over the last axis without its lowest and its highest quarter, each rounded down (arXiv 2108.13264, 4.3)."""
    ordered: NDArray[np.float64] = np.sort(np.asarray(scores, np.float64))
    cut = ordered.shape[-1] // 4
    return np.asarray(ordered[..., cut : ordered.shape[-1] - cut].mean(-1))


def interval(
    scores: Sequence[float], statistic: Callable[[NDArray[np.float64]], NDArray[np.float64]] = interquartile_mean
) -> tuple[float, float]:
    """95 % percentile bootstrap interval of a statistic over runs (arXiv 2108.13264, 4.1), always the same draws."""
    rng = np.random.default_rng(0)
    drawn = rng.choice(np.asarray(scores, np.float64), (_RESAMPLES, len(scores)))
    low, high = np.percentile(statistic(drawn), [2.5, 97.5])
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
            if changed := _changed_flags(preset, run_dir) if status == 0 else []:
                failed += 1
                print(
                    f"{preset}, seed {seed}: {', '.join(map(flag, changed))} changed since it was trained; without "
                    f"{run_dir} it is trained anew",
                    file=sys.stderr,
                )
            elif status == 0:
                result = _result(preset, run_dir)
                print(f"{preset}, seed {seed}: {result.test_return:.1f}, {result.minutes:.1f} min", flush=True)
                _remember(out, result)
                write_page(out, preset)
            else:
                failed += 1
                print(f"{preset}, seed {seed}: ended with status {status}, see {run_dir}/output.txt", file=sys.stderr)
    finally:
        pool.shutdown(cancel_futures=True)  # an interrupt has reached those that run, too
    return failed


def _train(preset: str, seed: int, run_dir: Path) -> int:
    """Train and test one run, unless that has happened; its exit status."""
    summary = run_dir / "summary.json"
    if summary.is_file() and json.loads(summary.read_text())["test"]:
        return 0
    run_dir.mkdir(parents=True, exist_ok=True)
    script = preset_path(preset).parent.parent / "train_torch.py"
    command = [sys.executable, str(script), *_flags(preset, str(seed)), "--num-threads", "1"]
    command += ["--run-dir", str(run_dir), "--resume"]
    with (run_dir / "output.txt").open("a") as output:
        status = subprocess.run(command, stdout=output, stderr=output, preexec_fn=die_with_parent).returncode
    if status == 0:
        write_atomically(run_dir / _MADE_WITH, made_with().encode())
    return status


def _flags(preset: str, seed: str) -> list[str]:
    path = preset_path(preset)
    path = path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
    return ["--config", str(path), "--seed", seed, "--test-episodes", str(TEST_EPISODES)]


def _changed_flags(preset: str, run_dir: Path) -> list[str]:
    """Flags of a run that are no longer what its preset says."""
    then, now = (
        TorchConfig(**load_yaml(str(path), TorchConfig)).to_dict()
        for path in (run_dir / "config.yaml", preset_path(preset))
    )
    return [name for name in now if name not in _FREE and then[name] != now[name]]


def _result(preset: str, run_dir: Path) -> Result:
    summary = json.loads((run_dir / "summary.json").read_text())
    steps, returns = curve(run_dir)
    noted = run_dir / _MADE_WITH  # a suite that is looked at again may have other versions by then
    parts = np.array_split(np.stack([steps, returns]), min(_CURVE_POINTS, len(steps) or 1), axis=1)
    return Result(
        preset=preset,
        env_id=summary["env_id"],
        seed=summary["seed"],
        transitions=summary["env_steps"],
        test_return=summary["test"]["return_mean"],
        test_std=summary["test"]["return_std"],
        minutes=summary["wall_seconds"] / 60,
        date=time.strftime("%Y-%m-%d", time.localtime((run_dir / "summary.json").stat().st_mtime)),
        made_with=noted.read_text() if noted.is_file() else made_with(),
        flags=load_yaml(str(preset_path(preset)), TorchConfig),
        curve=[(round(float(part[0].mean())), round(float(part[1].mean()), 3)) for part in parts if part.size],
    )


def made_with() -> str:
    """This machine, and the versions of what runs here."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    told = dict(re.split(r"\s*:\s*", line, maxsplit=1) for line in reversed(lines) if ":" in line)
    family = f" (family {told.get('cpu family')}, model {told.get('model')})" if "cpu family" in told else ""
    name = told.get("model name") or platform.processor() or platform.machine()
    words = [f"{name}{family}, {os.cpu_count()} cores"]
    words.append(f"Python {platform.python_version()}")
    for name in _PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            words.append(f"{name} {version(name)}")
    return ", ".join(words)


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


def write_page(out: Path, preset: str) -> None:
    """Write the page of all results that are known, and draw the curves of a preset anew."""
    results = _known(out)
    groups = [(row, [each for each in results if each.preset == name]) for name, row in ROWS.items()]
    groups = [(row, runs) for row, runs in groups if runs]
    (runs,) = (runs for row, runs in groups if row.preset == preset)
    curves = [np.array(run.curve).T for run in runs]
    draw(_folder(out) / f"{preset}.svg", curves, title=_title(runs[0]), goal=ROWS[preset].goal)
    write_atomically(out, "\n".join(_page(groups, _folder(out).name)).encode())


def _page(groups: list[tuple[Row, list[Result]]], folder: str) -> Iterator[str]:
    yield "# Scores\n"
    yield (
        f"Each run trains with a preset of [configs](../configs) and then plays {TEST_EPISODES} greedy episodes, with "
        "seeds that training cannot draw, with its final policy: no run is picked, and no policy along the way. Its "
        "score is the mean return of these. Presets were chosen by runs with one or two of the seeds shown, mostly "
        "with seed 1. The interval is the 95 % percentile bootstrap of the interquartile mean over runs, as in rliable "
        "(arXiv 2108.13264). Published figures are from the programs' own pages, of one agent or three, partly of "
        "older versions of the environments.\n"
    )
    yield (
        "| environment | transitions | runs | mean +- deviation over runs | interquartile mean | worst run | goal | "
        "published | minutes a run |"
    )
    yield "|---|---|---|---|---|---|---|---|---|"
    for row, runs in groups:
        yield f"| {' | '.join(_cells(row, runs))} |"
    yield "\nMinutes are of the wall clock, with other work on the machine.\n"
    missed = [_title(runs[0]) for row, runs in groups if not _reached(row, runs)]
    few = [_title(runs[0]) for row, runs in groups if row.goal is not None and len(runs) < row.seeds]
    yield f"Goals missed: {', '.join(missed) or 'none'}."
    yield f"Fewer runs than a verdict takes (CartPole {ROWS['cartpole'].seeds}, others 5): {', '.join(few) or 'none'}."
    yield f"Not run: {', '.join(name for name in ROWS if name not in {row.preset for row, _ in groups}) or 'none'}.\n"
    for row, runs in groups:
        yield from _section(row, runs, folder)


def _reached(row: Row, runs: list[Result]) -> bool:
    scores = [run.test_return for run in runs]
    return row.goal is None or (bool(np.mean(scores) >= row.goal) and (row.every is None or min(scores) >= row.every))


def _form(runs: list[Result]) -> str:
    """How their scores are printed."""
    return ".1f" if max(abs(run.test_return) for run in runs) > 10 else ".3f"


def _title(run: Result) -> str:
    """The environment, and what tells its presets apart."""
    recurrent = run.flags.get("recurrent", "none")
    return run.env_id if recurrent == "none" else f"{run.env_id} ({recurrent})"


def _cells(row: Row, runs: list[Result]) -> Iterator[str]:
    """A row of the table."""
    scores = [run.test_return for run in runs]
    low, high = interval(scores)
    form = _form(runs)
    yield _title(runs[0])
    yield f"{round(np.median([run.transitions for run in runs])):,}"
    yield f"{len(runs)}"
    yield f"{np.mean(scores):{form}}" + (f" +- {np.std(scores):{form}}" if len(runs) > 1 else "")
    yield f"{interquartile_mean(scores):{form}}" + (f" [{low:{form}}, {high:{form}}]" if len(runs) > 1 else "")
    yield f"{min(scores):{form}}"
    every = "" if row.every is None else f", each run {row.every:g}"
    verdict = ("reached" if _reached(row, runs) else "missed") + ("" if len(runs) >= row.seeds else " so far")
    yield "-" if row.goal is None else f"{row.goal:g}{every}: {verdict}"
    yield row.published
    yield f"{np.median([run.minutes for run in runs]):.1f}"


def _section(row: Row, runs: list[Result], folder: str) -> Iterator[str]:
    """How an environment's runs were made, and their curves."""
    dates = sorted({run.date for run in runs})
    scores = ", ".join(f"{run.test_return:{_form(runs)}}" for run in runs)
    yield f"## {_title(runs[0])}\n"
    yield "```sh"
    yield f"python -m fabric_ppo benchmark {row.preset} --seeds {max(run.seed for run in runs)}"
    yield f"python train_torch.py --config configs/{row.preset}.yaml --test-episodes {TEST_EPISODES} --seed 1"
    yield "```\n"
    yield f"Trained {' to '.join(dates[:1] + dates[1:][-1:])}; {'; '.join(sorted({run.made_with for run in runs}))}. "
    yield f"Scores by seed: {scores}.\n"
    yield f"![Learning curves of {_title(runs[0])}]({folder}/{row.preset}.svg)\n"


def check_presets(presets: Sequence[str]) -> None:
    """Raise a ConfigError for a preset whose flags cannot work here, or whose environment cannot be made."""
    for preset in presets:
        config = TorchConfig(**load_yaml(str(preset_path(preset)), TorchConfig))
        make_gymnasium_env(config.env_id, config.env_preset or config.env_wrapper or "").close()

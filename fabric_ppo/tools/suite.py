"""Benchmark suites (`fabric-ppo benchmark`): presets trained with several seeds, and tested.

Every finished run is a line of `results.json`, from which the page of scores is made. A suite can
be killed and started again, and be run in parts.
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
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np

from fabric_ppo.config import TorchConfig
from fabric_ppo.config_arguments import json_text
from fabric_ppo.envs.gymnasium_env import make_gymnasium_env
from fabric_ppo.process.errors import ConfigError, flag
from fabric_ppo.process.files import write_atomically
from fabric_ppo.process.launch import die_with_parent
from fabric_ppo.run.resolve import resolve
from fabric_ppo.tools.flags import load_yaml
from fabric_ppo.tools.locate import preset_path, script_path
from fabric_ppo.tools.plot import curve
from fabric_ppo.tools.results_page import TEST_EPISODES, Result, Row, add_result, write_page

_CURVE_POINTS = 60
"""Largest number of points of a curve in `results.json`."""
_PACKAGES = ("torch", "gymnasium", "box2d", "mujoco", "minigrid", "ale-py", "opencv-python-headless", "envpool")
"""Packages whose versions are noted with a result."""
_MADE_WITH = "made_with.txt"
"""File in a run's folder that holds machine and versions."""
_FREE = ("seed", "test_episodes", "num_threads", "log_dir")
"""Flags of a run that its preset does not set."""


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


def presets_of(names: Sequence[str]) -> list[str]:
    """Return the presets that names of suites and presets stand for, each once.

    Raises:
        ConfigError: a name is neither.
    """
    found: list[str] = []
    for name in names:
        if name not in SUITES and name not in ROWS:
            raise ConfigError(f"benchmark {name}: one of {', '.join([*SUITES, *ROWS])} is expected")
        found += [row.preset for row in SUITES[name]] if name in SUITES else [name]
    return list(dict.fromkeys(found))


def check_presets(presets: Sequence[str]) -> None:
    """Raise a ConfigError for a preset whose flags or environment cannot work on this machine."""
    for preset in presets:
        config = _resolved(preset_path(preset))
        wrapper = config.env_preset or config.env_wrapper or ""
        make_gymnasium_env(config.env_id, wrapper, env_kwargs=json_text(config.env_kwargs)).close()


def _resolved(path: Path) -> TorchConfig:
    """Return the resolved flags of a YAML file."""
    return resolve(TorchConfig(**load_yaml(str(path), TorchConfig)))


def run_suite(presets: Sequence[str], seeds: int, jobs: int, log_dir: Path, out: Path) -> int:
    """Train all runs that are not finished, `jobs` at a time, and write the page after each.

    Args:
        presets: names of presets.
        seeds: number of runs of each preset, with seeds from 1 up.
        jobs: number of runs at a time, one core each.
        log_dir: folder of the run folders; unfinished runs in it are resumed.
        out: the page to write; `results.json` and the curves are beside it, in a folder of its
            name.

    Returns:
        Number of runs that failed.
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
                add_result(out, result, ROWS)
                write_page(out, preset, ROWS)
            else:
                failed += 1
                print(f"{preset}, seed {seed}: ended with status {status}, see {run_dir}/output.txt", file=sys.stderr)
    finally:
        # an interrupt has reached the running ones, too; those that wait must not start
        pool.shutdown(cancel_futures=True)
    return failed


def _train(preset: str, seed: int, run_dir: Path) -> int:
    """Train and test one run, unless it is finished; return its exit status."""
    summary = run_dir / "summary.json"
    if summary.is_file() and json.loads(summary.read_text())["test"]:
        return 0
    run_dir.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, str(script_path(TorchConfig)), *_flags(preset, str(seed)), "--num-threads", "1"]
    command += ["--run-dir", str(run_dir), "--resume"]
    with (run_dir / "output.txt").open("a") as output:
        status = subprocess.run(command, stdout=output, stderr=output, preexec_fn=die_with_parent).returncode
    if status == 0:
        write_atomically(run_dir / _MADE_WITH, made_with().encode())
    return status


def _flags(preset: str, seed: str) -> list[str]:
    """Return the flags of a run."""
    # a path below the working directory as a relative one, so that it does not name this machine
    path = preset_path(preset)
    path = path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
    return ["--config", str(path), "--seed", seed, "--test-episodes", str(TEST_EPISODES)]


def _changed_flags(preset: str, run_dir: Path) -> list[str]:
    """Return the flags whose values in the preset have changed since a run was trained."""
    paths = (run_dir / "config.yaml", preset_path(preset))
    before, current = (_resolved(path).to_dict() for path in paths)
    return [name for name in current if name not in _FREE and before[name] != current[name]]


def _result(preset: str, run_dir: Path) -> Result:
    """Read a finished run's result from its folder."""
    summary = json.loads((run_dir / "summary.json").read_text())
    steps, returns = curve(run_dir)
    # written when the run was trained: a page that is made again later may see other versions
    noted = run_dir / _MADE_WITH
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
    """Return a description of this machine and of the packages' versions."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    cpu = dict(re.split(r"\s*:\s*", line, maxsplit=1) for line in reversed(lines) if ":" in line)
    family = f" (family {cpu.get('cpu family')}, model {cpu.get('model')})" if "cpu family" in cpu else ""
    name = cpu.get("model name") or platform.processor() or platform.machine()
    words = [f"{name}{family}, {os.cpu_count()} cores", f"Python {platform.python_version()}"]
    for package in _PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            words.append(f"{package} {version(package)}")
    return ", ".join(words)

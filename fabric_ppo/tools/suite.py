"""Benchmark suites (`fabric-ppo benchmark`): presets trained with several seeds, and tested.

Every finished run is a line of `results.json`, from which the page of scores is made. A suite can
be killed and started again, and be run in parts.
"""

from __future__ import annotations

import contextlib
import json
import platform
import re
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from fabric_ppo.config import TorchConfig
from fabric_ppo.config_arguments import json_text
from fabric_ppo.envs.gymnasium_env import make_gymnasium_env
from fabric_ppo.process.errors import ConfigError, flag
from fabric_ppo.process.files import require_text_path, write_atomically
from fabric_ppo.process.launch import die_with_parent
from fabric_ppo.process.machine import machine
from fabric_ppo.run.resolve import resolve
from fabric_ppo.run.result import RunResult
from fabric_ppo.tools.curves import curve
from fabric_ppo.tools.flags import load_yaml
from fabric_ppo.tools.locate import preset_names, preset_path, script_path
from fabric_ppo.tools.results_page import TEST_EPISODES, Result, Row, add_result, write_page

_CURVE_POINTS = 60
"""Largest number of points of a curve in `results.json`."""
_PACKAGES = ("torch", "gymnasium", "box2d", "mujoco", "minigrid", "ale-py", "opencv-python-headless", "envpool")
"""Packages whose versions are noted with a result."""
_MADE_WITH = "made_with.txt"
"""File in a run's folder that holds machine and versions."""
_FREE = ("seed", "test_episodes", "num_threads", "log_dir")
"""Flags of a run that its preset does not set."""
_LEFT_OUT = "An earlier preset had failed with {}: scores are of later seeds."
_STICKY = "An earlier preset, for ALE/Pong-v5, whose actions are sticky, reached 14.2 with seed 101 in the same time."
_DROPPED = "Earlier presets: 798.9 with seed 101, a run of seed 102 was stopped. In training, seed 103 reached 897."
"""Sentences on presets that were changed when a seed of a score had failed."""


SUITES = {
    "classic": (
        Row("cartpole", "SB3 zoo 500; CleanRL 490.0 +- 6.1 (500k)", 500, every=500, seeds=10),
        Row("acrobot", "SB3 zoo -73.5 +- 18.2 (1 M)", -74),
        Row("mountaincar", "SB3 zoo -110.4 +- 19.5", -110),
        Row("mountaincar-continuous", "SB3 zoo 88.3 +- 2.6 (20k)", 90),
        Row("pendulum", "SB3 zoo -172 +- 104 (100k)", -150, seeds=10),
    ),
    "box2d": (
        Row("lunarlander", "SB3 zoo 242 +- 32 (v2)", 260, every=240, seeds=10),
        Row("lunarlander-continuous", "SB3 zoo 271 +- 32 (v2)", 275),
        Row("bipedalwalker", "SB3 zoo 213 +- 129 (5 M)", 280),
        Row("carracing", "-", 800, seeds=1, note=_DROPPED),
    ),
    "mujoco": (
        Row("halfcheetah", "CleanRL 1443 +- 46 (v4); SB3 zoo 5819 +- 664 (v3)", 5800),
        Row(
            "hopper",
            "CleanRL 2383 +- 272 (v4); SB3 zoo 2410 +- 10 (v3)",
            2600,
            every=2400,
            note=_LEFT_OUT.format("seeds 101 to 105"),
        ),
        Row("walker2d", "CleanRL 2288 +- 572 (v4); SB3 zoo 3479 +- 822 (v3)", 3500),
        Row("ant", "SB3 zoo 1327 +- 452 (v3)", 1800),
        Row("swimmer", "SB3 zoo 282 +- 10 (v3)", 280),
    ),
    "long": (
        Row("hopper-long", "rl_games 3485 (one seed)", 3485, seeds=3, note=_LEFT_OUT.format("seeds 101 to 103")),
        Row("walker2d-long", "rl_games 5186 (one seed)", 5186, seeds=3, note=_LEFT_OUT.format("seed 101")),
        Row("ant-long", "rl_games 4429 (one seed)", 4429, seeds=3, note=_LEFT_OUT.format("seed 101")),
    ),
    "minigrid": (
        Row("minigrid-empty", "-", 0.9, note=_LEFT_OUT.format("one of the seeds 101 to 105")),
        Row("minigrid-doorkey", "-", 0.95),
        Row("minigrid-memory", "-", 0.9),
        Row("minigrid-memory-mlp", "-", None),
    ),
    "atari": (Row("pong", "CleanRL 20.4, SB3 zoo 21.0 (10 M)", 18, seeds=1, note=_STICKY),),
}


ROWS = {row.preset: row for rows in SUITES.values() for row in rows}


def presets_of(words: Sequence[str]) -> dict[str, Path]:
    """Return the presets that the arguments of `benchmark` stand for, name -> file.

    Args:
        words: names of suites and presets, which come first; YAML files of flags, which are presets
            by the names of the files; and folders of such files.

    Raises:
        ConfigError: a word is none of these, or two files have the same name.
    """
    found: dict[str, Path] = {}
    for word in words:
        for name, path in _presets_of(word).items():
            if found.setdefault(name, path) != path:
                raise ConfigError(
                    f"benchmark {_shown(path)}: {_shown(found[name])} has the name {name}, too; rename one"
                )
    return found


def _presets_of(word: str) -> dict[str, Path]:
    """Return the presets of one argument, name -> file."""
    if word in SUITES:
        return {row.preset: preset_path(row.preset) for row in SUITES[word]}
    if word in (names := preset_names()):
        return {word: preset_path(word)}
    require_text_path("benchmark", word)
    path = Path(word)
    if path.is_dir():
        files = sorted(each for pattern in ("*.yaml", "*.yml") for each in path.glob(pattern))
        files = [each for each in files if not each.name.startswith(".")]
        if not files:
            raise ConfigError(f"benchmark {word}: no file .yaml or .yml in it; a folder of YAML files is expected")
        return dict(_named(each) for each in files)
    if path.is_file():
        return dict([_named(path)])
    if path.exists():
        raise ConfigError(f"benchmark {word}: no regular file; a YAML file of flags is expected")
    if path.name != word or path.suffix:
        raise ConfigError(f"benchmark {word}: no such file; a YAML file of flags or a folder of them is expected")
    others = "a YAML file of flags or a folder of such files"
    raise ConfigError(
        f"benchmark {word}: one of {', '.join(dict.fromkeys([*SUITES, *ROWS, *names]))}, {others} is expected"
    )


def _named(path: Path) -> tuple[str, Path]:
    """Return the name of a file's preset, which names its run folders and curves too, and the file."""
    name = re.sub(r"[^\w.+-]+", "-", path.stem)
    if name in preset_names():
        # a clone's file is the preset of an installed package, too
        with contextlib.suppress(OSError):
            if path.read_bytes() == preset_path(name).read_bytes():
                return name, preset_path(name)
        raise ConfigError(f"benchmark {path}: the preset {name} has that name; another one is expected")
    return name, path.absolute()


def check_presets(presets: Mapping[str, Path], devices: int) -> None:
    """Raise a ConfigError for a preset whose flags or environment cannot work on this machine with `devices`."""
    for path in presets.values():
        try:
            config = _resolved(path, devices)
            wrapper = config.env_preset or config.env_wrapper or ""
            make_gymnasium_env(config.env_id, wrapper, env_kwargs=json_text(config.env_kwargs)).close()
        except ConfigError as error:
            reason = str(error).removeprefix(f"--config {path}: ")
            raise ConfigError(f"benchmark {_shown(path)}: {reason}") from None


def _resolved(path: Path, devices: int) -> TorchConfig:
    """Return the resolved flags of a YAML file, for `devices` processes."""
    return resolve(TorchConfig(**load_yaml(str(path), TorchConfig)), devices, devices)


def run_suite(presets: Mapping[str, Path], seeds: range, jobs: int, devices: int, log_dir: Path, out: Path) -> int:
    """Train all runs that are not finished, `jobs` at a time, and write the page after each.

    Args:
        presets: name -> YAML file.
        seeds: of the runs of each preset.
        jobs: number of runs at a time.
        devices: number of processes of a run, one core each.
        log_dir: folder of the run folders; unfinished runs in it are resumed.
        out: the page to write; `results.json` and the curves are beside it, in a folder of its
            name.

    Returns:
        Number of runs that failed.
    """
    runs = [(preset, seed) for seed in seeds for preset in presets]
    todo = [(presets[preset], seed, devices, log_dir / preset / f"seed_{seed}") for preset, seed in runs]
    failed = 0
    pool = ThreadPoolExecutor(jobs)
    try:
        statuses = pool.map(lambda job: _train(*job), todo)
        for (preset, seed), (path, *_, run_dir), status in zip(runs, todo, statuses, strict=True):
            if changed := _changed_flags(path, devices, run_dir) if status == 0 else []:
                failed += 1
                print(
                    f"{preset}, seed {seed}: {', '.join(map(flag, changed))} changed since it was trained; without "
                    f"{run_dir} it is trained anew",
                    file=sys.stderr,
                )
            elif status == 0:
                result = _result(preset, path, run_dir)
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


def _train(path: Path, seed: int, devices: int, run_dir: Path) -> int:
    """Train and test one run, unless it is finished; return its exit status."""
    summary = run_dir / "summary.json"
    if summary.is_file() and json.loads(summary.read_text())["test"]:
        return 0
    run_dir.mkdir(parents=True, exist_ok=True)
    program = [str(script_path(TorchConfig))]
    if devices > 1:
        program = ["-m", "fabric_ppo", "train", "torch", "--devices", str(devices)]
    command = [sys.executable, *program, *_flags(path, str(seed)), "--num-threads", "1"]
    command += ["--run-dir", str(run_dir), "--resume"]
    with (run_dir / "output.txt").open("a") as output:
        status = subprocess.run(command, stdout=output, stderr=output, preexec_fn=die_with_parent).returncode
    if status == 0:
        write_atomically(run_dir / _MADE_WITH, made_with().encode())
    return status


def _flags(path: Path, seed: str) -> list[str]:
    """Return the flags of a run."""
    return ["--config", _shown(path), "--seed", seed, "--test-episodes", str(TEST_EPISODES)]


def _shown(path: Path) -> str:
    """Return a path below the working directory as a relative one, which does not name this machine."""
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def _changed_flags(path: Path, devices: int, run_dir: Path) -> list[str]:
    """Return the flags of a finished run whose values are others now, in the preset or of this suite."""
    paths = (run_dir / "config.yaml", path)
    before, current = (_resolved(path, devices).to_dict() for path in paths)
    changed = [name for name in current if name not in _FREE and before[name] != current[name]]
    return changed + ["devices"] * (_summary(run_dir)["world_size"] != devices)


def _result(preset: str, path: Path, run_dir: Path) -> Result:
    """Read a finished run's result from its folder."""
    summary = _summary(run_dir)
    steps, returns = curve(RunResult(run_dir))
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
        flags=load_yaml(str(path), TorchConfig),
        curve=[(round(float(part[0].mean())), round(float(part[1].mean()), 3)) for part in parts if part.size],
        file="" if preset in preset_names() else _shown(path),
        success=summary["test"].get("info", {}).get("is_success", {}).get("mean"),
        devices=summary["world_size"],
    )


def _summary(run_dir: Path) -> dict[str, Any]:
    """Return what a finished run noted in the end."""
    summary: dict[str, Any] = json.loads((run_dir / "summary.json").read_text())
    return summary


def made_with() -> str:
    """Return a description of this machine and of the packages' versions."""
    words = [machine(), f"Python {platform.python_version()}"]
    for package in _PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            words.append(f"{package} {version(package)}")
    return ", ".join(words)

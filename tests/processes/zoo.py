"""Trains, tests and resumes in every environment that Gymnasium, MiniGrid and ALE register, and prints a table.

python -m tests.processes.zoo                          # all: make zoo
python -m tests.processes.zoo --only "MiniGrid-*" CartPole-v1

Each trains 256 steps, with a test of one episode of 50 steps at most; then once more, but ended
after 128 steps and resumed: the bits of the policy must be the same, or the summary must say that they need not be.
An environment with parts that no network takes is given the --obs-keys that the error names.
"""

from __future__ import annotations

import argparse
import contextlib
import fnmatch
import io
import json
import multiprocessing
import os
import re
import signal
import sys
import tempfile
import warnings
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ale_py
import gymnasium
import minigrid

from fabric_ppo.api import train
from fabric_ppo.config import Config
from fabric_ppo.process.errors import ConfigError

LIMIT_SECONDS = 900
FLAGS: dict[str, Any] = {"num_envs": 8, "num_steps": 16, "update_epochs": 1, "num_threads": 1, "anneal_lr": False}
FLAGS |= {"quiet": True, "test_episodes": 1, "test_step_limit": 50, "track": "jsonl"}
GROUPS = (("MiniGrid and BabyAI", "minigrid"), ("ALE", "ale_py"), ("Gymnasium", ""))


@dataclass(frozen=True)
class Found:
    """How it went with an environment: `trained, exact`, `refused`, `FAILED` and such, and why."""

    env_id: str
    outcome: str
    why: str = ""


def runs(env_id: str, **flags: Any) -> Found:
    """Train, and train once more with an interruption."""
    with tempfile.TemporaryDirectory() as folder:
        alone, again = (Path(folder, name) for name in ("alone", "again"))
        # on ALE's full pictures the default encoder takes half a minute
        flags = FLAGS | {"env_id": env_id, "encoder": "small" if group_of(env_id) == "ALE" else "auto"} | flags
        train(Config(**flags, total_timesteps=256, run_dir=str(alone)))
        train(Config(**flags, total_timesteps=128, run_dir=str(again)))
        train(Config(**flags, total_timesteps=256, run_dir=str(again), resume=True))
        policies = [(each / "policy.safetensors").read_bytes() for each in (alone, again)]
        claims_exact = json.loads((again / "summary.json").read_text())["exact_resume"]
    if not claims_exact:
        return Found(env_id, "trained, not exact", "its summary says so")
    return Found(env_id, "trained, exact") if policies[0] == policies[1] else Found(env_id, "FAILED", "other bits")


def visit(env_id: str) -> Found:
    """Train in an environment, in this process."""
    try:
        return runs(env_id)
    except ConfigError as error:
        if hint := re.search(r"--obs-keys (\S+) takes", str(error)):
            try:
                return runs(env_id, obs_keys=hint[1])
            except BaseException as other:
                outcome = "fails in Gymnasium alone" if fails_alone(env_id) else "FAILED"
                return Found(env_id, outcome, f"{type(other).__name__}: {other}".splitlines()[0])
        return Found(env_id, "refused", str(error))
    except BaseException as error:
        outcome = "fails in Gymnasium alone" if fails_alone(env_id) else "FAILED"
        return Found(env_id, outcome, f"{type(error).__name__}: {error}".splitlines()[0])


def fails_alone(env_id: str) -> bool:
    """Whether the environment cannot be reset in Gymnasium alone either."""
    try:
        gymnasium.make(env_id).reset(seed=0)
    except Exception:
        return True
    return False


def visit_in_fork(env_id: str) -> Found:
    """`visit`, in a process of its own, which is silent and ends after LIMIT_SECONDS."""
    ours, theirs = multiprocessing.get_context("fork").Pipe()

    def work() -> None:
        signal.alarm(LIMIT_SECONDS)
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1), os.dup2(null, 2)
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            theirs.send(visit(env_id))
        os._exit(0)

    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    theirs.close()
    try:
        found: Found = ours.recv()
    except EOFError:
        process.join()
        return Found(env_id, "FAILED", f"its process ended with {process.exitcode}")
    process.join()
    return found


def group_of(env_id: str) -> str:
    entry = str(gymnasium.registry[env_id].entry_point)
    return next(name for name, start in GROUPS if entry.startswith(start))


def table(all_found: list[Found]) -> str:
    """A row for each package and outcome."""
    lines = ["| environments | of | outcome |", "|---|---|---|"]
    for group, _ in GROUPS:
        of_group = [each for each in all_found if group_of(each.env_id) == group]
        for outcome, count in sorted(Counter(each.outcome for each in of_group).items(), reverse=True):
            lines.append(f"| {count} of {len(of_group)} | {group} | {outcome} |")
    return "\n".join(lines)


def main() -> int:
    """Visit all; 1 if one failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=["*"], metavar="PATTERN", help="ids")
    parser.add_argument("--jobs", type=int, default=2, help="processes side by side (2)")
    given = parser.parse_args()
    gymnasium.register_envs(ale_py)
    gymnasium.register_envs(minigrid)
    ids = [each for each in gymnasium.registry if any(fnmatch.fnmatch(each, one) for one in given.only)]
    all_found = []
    with ThreadPoolExecutor(given.jobs) as pool:
        for found in pool.map(visit_in_fork, ids):
            all_found.append(found)
            print(f"{len(all_found)}/{len(ids)} {found.env_id}: {found.outcome} {found.why}".rstrip(), flush=True)
    print(f"\n{table(all_found)}")
    return int(any(each.outcome == "FAILED" for each in all_found))


if __name__ == "__main__":
    sys.exit(main())

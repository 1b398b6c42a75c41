"""Runs that are interrupted, and what makes two runs the same."""

from __future__ import annotations

import json
import os
import re
from collections import defaultdict
from pathlib import Path

from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader

from fabric_ppo.config import SCRIPT_CONFIGS
from fabric_ppo.process.files import Checkpoint
from fabric_ppo.run.checkpoint import newest_first
from tests.runs import SCRIPTS, run_ranks

NUM_UPDATES = 6
TINY = {
    **{"num_steps": 16, "num_envs": 2, "update_epochs": 2, "per_rank_batch_size": 11, "test_episodes": 1},
    **{"num_threads": 1, "checkpoint_every": 2},
}
TIMES = ("wall_seconds", "train_seconds", "steps_per_second", "resumes")


def config_of(script: str, size: int, run_dir, updates: int = NUM_UPDATES, **flags):
    """A tiny run of `updates` updates."""
    flags = TINY | flags
    ranks_with_envs = 1 if script == "decoupled" else size
    total = flags["num_steps"] * flags["num_envs"] * ranks_with_envs * updates
    return SCRIPT_CONFIGS[script](**{"total_timesteps": total} | flags, run_dir=str(run_dir))


def train(script: str, size: int, run_dir, updates: int = NUM_UPDATES, precision: str | None = None, **flags):
    """Train, in forked ranks; what each said."""
    return run_ranks(script, [config_of(script, size, run_dir, updates, **flags)] * size, precision)


def finish(script: str, size: int, run_dir, updates: int = NUM_UPDATES, **flags) -> Path:
    """`train`, to the end."""
    said = train(script, size, run_dir, updates, **flags)
    assert said == [""] * size, "\n".join(said)
    return Path(run_dir)


def on_call(number: int, rank: int, act, function, about: str = ""):
    """`function`, but its `number`-th call in `rank` (with an argument that ends with `about`) does `act` first."""
    calls = []

    def counted(*args, **kwargs):
        if not about or any(str(each).endswith(about) for each in args):
            calls.append(None)
        if len(calls) == number and int(os.environ.get("RANK", "0")) == rank:
            act()
        return function(*args, **kwargs)

    return counted


def die() -> None:
    """As after kill -9: nothing is flushed, closed or said."""
    os._exit(9)


def metrics(run_dir: Path) -> list[dict[str, float]]:
    """Logged scalars, without what tells time."""
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if not key.startswith("Time/")} for line in lines]


def curves(run_dir: Path) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard's files hold for each tag, as often as it is there; of what tells time, the steps only."""
    found = defaultdict(list)
    for path in run_dir.glob("events.out.tfevents.*"):
        for event in LegacyEventFileLoader(str(path)).Load():
            for value in event.summary.value:
                is_time = value.tag.startswith("Time/")
                found[value.tag].append((event.step, 0.0 if is_time else value.simple_value))
    return {tag: sorted(values) for tag, values in found.items()}


def summary(run_dir: Path) -> dict:
    return json.loads((run_dir / "summary.json").read_text())


def newest_checkpoint(run_dir: Path) -> tuple[str, Checkpoint]:
    path = next(newest_first(run_dir / "checkpoints"))
    return path.name, Checkpoint.from_bytes(path.read_bytes())


def checkpoints(run_dir: Path) -> list[int]:
    """The updates of the numbered ones, newest first."""
    return [int(re.sub(r"\D", "", path.name)) for path in newest_first(run_dir / "checkpoints")]


def assert_same_run(run_dir: Path, expected: Path, resumes: int, is_exact: bool = True) -> None:
    """H4: the same bits of weights, the same logs with nothing twice or missing, the same checkpoint at the end."""
    policy = "policy.safetensors"
    assert (run_dir / policy).read_bytes() == (expected / policy).read_bytes()
    assert metrics(run_dir) == metrics(expected)
    assert curves(run_dir) == curves(expected)
    (name, got), (expected_name, wanted) = newest_checkpoint(run_dir), newest_checkpoint(expected)
    assert name == expected_name
    assert got.tensors.keys() == wanted.tensors.keys()
    assert all((got.tensors[key] == tensor).all() for key, tensor in wanted.tensors.items())
    for key in ("window", "return_mean", "best_return", "env_steps", "gradient_steps"):
        assert got.values[key] == wanted.values[key], key
    ours, theirs = summary(run_dir), summary(expected)
    assert (ours["resumes"], ours["exact_resume"]) == (resumes, is_exact)
    for each in (ours, theirs):
        for key in (*TIMES, "exact_resume"):
            del each[key]
    assert ours == theirs


def assert_a_killed_run_goes_on(tmp_path: Path, monkeypatch, script: str, size: int, flags) -> None:
    """H4, for a run whose rank 0 is killed as it begins its fourth rollout."""
    expected = finish(script, size, tmp_path / "left_alone", **flags)
    with monkeypatch.context() as patch:
        patch.setattr(SCRIPTS[script], "collect", on_call(4, 0, die, SCRIPTS[script].collect))
        assert train(script, size, tmp_path / "run", **flags)[0] == "exit code 9"
    finish(script, size, tmp_path / "run", resume=True, **flags)
    assert_same_run(tmp_path / "run", expected, resumes=1)

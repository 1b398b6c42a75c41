"""A rank that dies, hangs or fails takes the whole run down, and its own error is shown first.

Runs here would go on for days, and their ranks wait for each other for days: what ends them is the death of a process.
"""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import gymnasium
import numpy as np
import pytest

from tests.fixtures.launching import ROOT, clean_environment, command, exit_codes, patched_script, start_ranks
from tests.fixtures.processes import FOREVER, PATIENCE, alive, descendants, kill_tree, rank_pids, wait_until
from tests.fixtures.resuming import (
    config_of,
)

LONG = ("--total-timesteps", "100000000", "--num-steps", "64", "--anneal-lr", "--timeout", str(FOREVER))


ENVS = '''
import os, time
import gymnasium, numpy as np

class OnRankOne(gymnasium.Env):
    """Fails at step 200 on rank 1."""
    observation_space = gymnasium.spaces.Box(-1, 1, (3,))
    action_space = gymnasium.spaces.Discrete(2)
    def __init__(self, what): self.what = what
    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        return np.zeros(3, np.float32), {}
    def step(self, action):
        self.steps += 1
        if self.steps == 200 and os.environ.get("RANK") == "1":
            if self.what == "raise": raise KeyError("the floor is gone")
            if self.what == "hang": time.sleep(1e6)
            return np.full(3, np.nan, np.float32), 1.0, False, False, {}
        return np.zeros(3, np.float32), 1.0, False, False, {}

for what in ("raise", "hang", "nan"):
    gymnasium.register(f"{what.title()}-v0", OnRankOne, kwargs={"what": what})
'''


@pytest.fixture
def launch(tmp_path):
    """Start a script in the background; kill what is left of it at the end."""
    (tmp_path / "failing.py").write_text(ENVS)
    started = []

    def start(script, *flags, path=None):
        out = (tmp_path / "out.txt").open("wb")
        words = command(script, 2, *LONG, *flags, path=path)
        process = subprocess.Popen(words, cwd=tmp_path, stdout=out, stderr=out, env=clean_environment())
        started.append(process)
        return process

    yield start
    for process in started:
        kill_tree(process.pid)


def is_training(folder):
    lines = [path for path in folder.rglob("metrics.jsonl") if path.stat().st_size > 0]
    return bool(lines)


@pytest.mark.parametrize(
    ("script", "victim"),
    [
        ("torch", "rank 0"),
        ("torch", "rank 1"),
        ("torch", "launcher"),
        ("fabric", "launcher"),
        ("fabric_decoupled", "rank 0"),
        ("fabric_decoupled", "rank 1"),
    ],
)
def test_a_killed_process_takes_all_others_with_it(tmp_path, launch, script, victim):
    process = launch(script)
    assert wait_until(lambda: is_training(tmp_path)), (tmp_path / "out.txt").read_text()
    ranks = rank_pids(process.pid)
    everything = [process.pid, *descendants(process.pid)]
    assert len(ranks) == 2
    time.sleep(random.random() * 0.3)  # any moment will do
    os.kill(process.pid if victim == "launcher" else ranks[victim[-1]], signal.SIGKILL)
    assert wait_until(lambda: process.poll() is not None)
    assert wait_until(lambda: not any(alive(pid) for pid in everything))
    assert process.returncode != 0


def test_a_rank_killed_while_it_starts_takes_the_others_with_it(launch):
    process = launch("torch")
    assert wait_until(lambda: len(rank_pids(process.pid)) == 2)
    everything = [process.pid, *descendants(process.pid)]
    os.kill(rank_pids(process.pid)["1"], signal.SIGKILL)
    assert wait_until(lambda: process.poll() is not None)
    assert wait_until(lambda: not any(alive(pid) for pid in everything[1:]))
    assert process.returncode != 0


def imports_torch(pid: int) -> bool:
    """Whether a process has come as far as PyTorch, which a rank imports after it has read its flags."""
    try:
        return "libtorch" in (Path("/proc") / str(pid) / "maps").read_text()
    except OSError:
        return False


@pytest.mark.parametrize("script", ["torch", "fabric"])
def test_a_launcher_killed_while_its_ranks_start_takes_them_with_it(tmp_path, launch, script):
    """At once, by the kernel: no rank gets as far as a complaint that nobody answers."""
    process = launch(script)
    assert wait_until(lambda: len(rank_pids(process.pid)) == 2)
    ranks = rank_pids(process.pid).values()
    assert wait_until(lambda: all(imports_torch(pid) for pid in ranks))
    process.kill()
    assert wait_until(lambda: not any(alive(pid) for pid in ranks))
    assert not re.search("error|Traceback|stops: it lost", (tmp_path / "out.txt").read_text())


@pytest.mark.parametrize(
    ("script", "env_id", "said"),
    [
        ("torch", "failing:Raise-v0", "step raised KeyError: 'the floor is gone'"),
        ("fabric", "failing:Raise-v0", "step raised KeyError: 'the floor is gone'"),
        ("torch", "failing:Nan-v0", "step returned an observation that is not finite"),
    ],
)
def test_the_rank_that_failed_tells_its_story_first(tmp_path, launch, script, env_id, said):
    process = launch(script, "--env-id", env_id)
    assert wait_until(lambda: process.poll() is not None)
    text = (tmp_path / "out.txt").read_text()
    assert process.returncode != 0
    story = text.index(f"error: rank 1: {env_id} environment 2, episode seed ")
    assert said in text[story:]
    assert "rank 0 stops" not in text[:story]
    assert "Traceback" not in text[:story]
    if "Raise" in env_id:
        assert "in step" in text[story:]  # the environment's own traceback


RANKS_THAT_ALWAYS_MEET = """
from fabric_ppo.process import group

join = group.join_process_group
group._RENDEZVOUS_SECONDS = 1e6
group.join_process_group = lambda backend, timeout: join(backend, 1e6)
"""
"""However slow one of them is: `--timeout` counts from then on."""


def test_a_rank_that_hangs_ends_the_run_within_the_timeout(tmp_path, launch):
    """Only `--timeout` can end it. Where ranks are so slow that it ends an update before, that is the same end."""
    path = patched_script(tmp_path, "torch", RANKS_THAT_ALWAYS_MEET)
    process = launch("torch", "--env-id", "failing:Hang-v0", "--timeout", "4", path=path)
    assert wait_until(lambda: process.poll() is not None)
    assert process.returncode != 0
    assert "lost contact with another rank" in (tmp_path / "out.txt").read_text()


def test_a_rendezvous_that_cannot_be_reached_is_one_line(tmp_path):
    place = {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "9"}
    args = [sys.executable, str(ROOT / "train_torch.py"), "--timeout", "2"]
    done = subprocess.run(
        args, cwd=tmp_path, capture_output=True, text=True, timeout=PATIENCE, env=clean_environment(**place)
    )
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


def test_half_set_variables_are_named(tmp_path):
    args = [sys.executable, str(ROOT / "train_torch.py")]
    env = clean_environment(WORLD_SIZE="2")
    done = subprocess.run(args, cwd=tmp_path, capture_output=True, text=True, timeout=PATIENCE, env=env)
    assert done.returncode == 2
    assert done.stderr.startswith("error: environment variable RANK and LOCAL_RANK is not set while others")


class Quitting(gymnasium.Env):
    """As a window that somebody has closed."""

    observation_space = gymnasium.spaces.Box(0, 1, (2,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)
    steps = 0

    def reset(self, *, seed=None, options=None):
        return np.zeros(2, np.float32), {}

    def step(self, action):
        Quitting.steps += 1
        if Quitting.steps == 40:
            raise SystemExit(0)
        return np.zeros(2, np.float32), 1.0, False, False, {}


gymnasium.register("Quitting-v0", Quitting, max_episode_steps=9)


@pytest.mark.parametrize(("backend", "size"), [("sync", 1), ("async", 1), ("sync", 2)])
def test_an_environment_that_exits_has_failed(tmp_path, backend, size):
    configs = [config_of("torch", size, tmp_path / "run", env_id="Quitting-v0", env_backend=backend)] * size
    assert exit_codes(start_ranks("torch", configs, tmp_path / "out")) == [1] * size
    said = "".join((tmp_path / f"out/{rank}.txt").read_text() for rank in range(size))
    assert re.search(r"Quitting-v0 environment \d, episode seed \d+, step \d: step raised SystemExit: 0", said)

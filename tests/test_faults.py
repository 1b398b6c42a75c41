"""A rank that dies, hangs or fails takes the whole run down, within seconds, and its own story is told first."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.runs import ROOT, clean_environment, command

SECONDS = 15.0
LONG = ("--total-timesteps", "100000000", "--num-steps", "64", "--anneal-lr")

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
            if self.what == "hang": time.sleep(600)
            return np.full(3, np.nan, np.float32), 1.0, False, False, {}
        return np.zeros(3, np.float32), 1.0, False, False, {}

for what in ("raise", "hang", "nan"):
    gymnasium.register(f"{what.title()}-v0", OnRankOne, kwargs={"what": what})
'''


def descendants(pid: int) -> list[int]:
    """Processes below `pid`."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                stat = (entry / "stat").read_text().rsplit(")", 1)[1].split()
            except OSError:
                continue
            if stat[0] != "Z":
                children.setdefault(int(stat[1]), []).append(int(entry.name))
    found, queue = [], [pid]
    while queue:
        queue += children.get(queue[0], [])
        found += children.get(queue.pop(0), [])
    return found


def rank_pids(launcher: int) -> dict[str, int]:
    pids = {}
    for pid in descendants(launcher):
        try:
            variables = (Path("/proc") / str(pid) / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        for variable in variables:
            if variable.startswith(b"RANK="):
                pids.setdefault(variable[5:].decode(), pid)
    return pids


def alive(pid: int) -> bool:
    try:
        return (Path("/proc") / str(pid) / "stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


@pytest.fixture
def launch(tmp_path):
    """Start a script in the background; kill what is left of it at the end."""
    (tmp_path / "failing.py").write_text(ENVS)
    started = []

    def start(script, *flags):
        out = (tmp_path / "out.txt").open("wb")
        process = subprocess.Popen(
            command(script, 2, *LONG, *flags), cwd=tmp_path, stdout=out, stderr=out, env=clean_environment()
        )
        started.append(process)
        return process

    yield start
    for process in started:
        for pid in [*descendants(process.pid), process.pid]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def wait_for(condition, seconds):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.05)
    return False


def is_training(folder):
    lines = [path for path in folder.rglob("metrics.jsonl") if path.stat().st_size > 0]
    return bool(lines)


@pytest.mark.parametrize(
    ("script", "victim"),
    [
        ("torch", "rank 0"),
        ("torch", "rank 1"),
        ("torch", "launcher"),
        ("fabric", "rank 0"),
        ("fabric", "launcher"),
        ("fabric_decoupled", "rank 0"),
        ("fabric_decoupled", "rank 1"),
    ],
)
def test_a_killed_process_takes_all_others_with_it(tmp_path, launch, script, victim):
    process = launch(script)
    assert wait_for(lambda: is_training(tmp_path), 60), (tmp_path / "out.txt").read_text()
    ranks = rank_pids(process.pid)
    everything = [process.pid, *descendants(process.pid)]
    assert len(ranks) == 2
    time.sleep(random.random() * 0.3)
    os.kill(process.pid if victim == "launcher" else ranks[victim[-1]], signal.SIGKILL)
    assert wait_for(lambda: process.poll() is not None, SECONDS)
    assert wait_for(lambda: not any(alive(pid) for pid in everything), SECONDS)
    assert process.returncode != 0


def test_a_rank_killed_while_it_starts_takes_the_others_with_it(launch):
    process = launch("torch")
    assert wait_for(lambda: len(rank_pids(process.pid)) == 2, 30)
    everything = [process.pid, *descendants(process.pid)]
    os.kill(rank_pids(process.pid)["1"], signal.SIGKILL)
    assert wait_for(lambda: not any(alive(pid) for pid in everything) or process.poll() is not None, SECONDS)
    assert wait_for(lambda: not any(alive(pid) for pid in everything[1:]), SECONDS)


def imports_torch(pid: int) -> bool:
    """Whether a process has come as far as PyTorch, which a rank imports after it has read its flags."""
    try:
        return "libtorch" in (Path("/proc") / str(pid) / "maps").read_text()
    except OSError:
        return False


@pytest.mark.parametrize("script", ["torch", "fabric"])
def test_a_launcher_killed_while_its_ranks_start_takes_them_with_it(launch, script):
    process = launch(script)
    assert wait_for(lambda: len(rank_pids(process.pid)) == 2, 30)
    ranks = rank_pids(process.pid).values()
    assert wait_for(lambda: all(imports_torch(pid) for pid in ranks), 30)
    process.kill()
    assert wait_for(lambda: not any(alive(pid) for pid in ranks), 5.0)


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
    assert wait_for(lambda: process.poll() is not None, 60)
    text = (tmp_path / "out.txt").read_text()
    assert process.returncode != 0
    story = text.index(f"error: rank 1: {env_id} environment 2, episode seed ")
    assert said in text[story:]
    assert "rank 0 stops" not in text[:story]
    assert "Traceback" not in text[:story]
    if "Raise" in env_id:
        assert "in step" in text[story:]  # the environment's own traceback


def test_a_rank_that_hangs_ends_the_run_within_the_timeout(tmp_path, launch):
    process = launch("torch", "--env-id", "failing:Hang-v0", "--timeout", "4")
    assert wait_for(lambda: is_training(tmp_path), 60), (tmp_path / "out.txt").read_text()
    started = time.monotonic()
    assert wait_for(lambda: process.poll() is not None, 4 + 35)
    assert process.returncode != 0
    assert time.monotonic() - started < 4 + 35
    assert "lost contact with another rank" in (tmp_path / "out.txt").read_text()


def test_a_rendezvous_that_cannot_be_reached_is_one_line(tmp_path):
    place = {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "9"}
    args = [sys.executable, str(ROOT / "train_torch.py"), "--timeout", "2"]
    done = subprocess.run(
        args, cwd=tmp_path, capture_output=True, text=True, timeout=60, env=clean_environment(**place)
    )
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


def test_half_set_variables_are_named(tmp_path):
    args = [sys.executable, str(ROOT / "train_torch.py")]
    env = clean_environment(WORLD_SIZE="2")
    done = subprocess.run(args, cwd=tmp_path, capture_output=True, text=True, timeout=60, env=env)
    assert done.returncode == 2
    assert done.stderr.startswith("error: environment variable RANK and LOCAL_RANK is not set while others")

"""Runs that last: what they use does not grow, and a launcher may start them again and again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

from tests.fixtures.launching import ROOT, clean_environment, command, run
from tests.fixtures.processes import PATIENCE, kill_tree, wait_until

WATCHED = """
import sys
from pathlib import Path
import train_torch
from fabric_ppo.config import TorchConfig
from fabric_ppo.run.run import Run

finish_update = Run.finish_update

def watched(self, *args, **kwargs):
    result = finish_update(self, *args, **kwargs)
    if self._counts.updates in (200, 2000):
        (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon:"))
        print("resident", line.split()[1])
    return result

Run.finish_update = watched
tiny = {"num_steps": 4, "num_envs": 2, "update_epochs": 1, "per_rank_batch_size": 8, "test_episodes": 1}
train_torch.main(TorchConfig(**tiny, total_timesteps=16000, checkpoint_every=100, run_dir=sys.argv[1], num_threads=1))
"""


def test_memory_does_not_grow(tmp_path):
    """A process's own resident memory after 200 updates and after 2,000 differs by less than 5 %."""
    done = run([sys.executable, "-c", WATCHED, str(tmp_path / "run")], ROOT)
    assert done.returncode == 0, done.stderr
    early, late = (int(line.split()[1]) for line in done.stdout.splitlines() if line.startswith("resident"))
    assert abs(late - early) < 0.05 * early


HOLDING_ENV = """
import os, time
from pathlib import Path
import gymnasium
from gymnasium.envs.classic_control import CartPoleEnv

class Holding(CartPoleEnv):
    def step(self, action):
        start = int(os.environ["TORCHELASTIC_RESTART_COUNT"])
        lines, held = Path("again/metrics.jsonl"), Path(f"held_{start}")
        is_victim = start < 3 and int(os.environ["RANK"]) == start % 2
        if is_victim and lines.exists() and len(lines.read_bytes().splitlines()) >= 3 * (start + 1):
            held.with_suffix(".part").write_text(str(os.getpid()))
            held.with_suffix(".part").rename(held)
            time.sleep(1e6)
        return super().step(action)

gymnasium.register("Holding-v0", Holding, max_episode_steps=500)
"""
"""CartPole in which, after 3, 6 and 9 updates of the run `again`, one of two ranks says who it is, and waits."""


def test_a_launcher_restarts_what_was_killed(tmp_path):
    """A rank is killed three times, and the weights are those of a run that was left alone."""
    (tmp_path / "holding.py").write_text(HOLDING_ENV)
    flags = ("--total-timesteps", "4096", "--num-steps", "64", "--test-episodes", "1", "--checkpoint-every", "1")
    flags += ("--env-id", "holding:Holding-v0")
    alone = command("torch", 2, *flags, "--run-dir", "alone")
    subprocess.run(alone, cwd=tmp_path, env=clean_environment(), capture_output=True, check=True, timeout=PATIENCE)
    start = command("torch", 2, *flags, "--run-dir", "again", "--resume")
    start.insert(1, "--max-restarts=3")
    with (tmp_path / "said").open("w") as said:
        launcher = subprocess.Popen(start, cwd=tmp_path, env=clean_environment(), stdout=said, stderr=said)
        try:
            for number in range(3):
                held = tmp_path / f"held_{number}"
                assert wait_until(lambda held=held: held.exists() or launcher.poll() is not None)
                os.kill(int(held.read_text()), signal.SIGKILL)
            assert launcher.wait(timeout=PATIENCE) == 0, (tmp_path / "said").read_text()
        finally:
            kill_tree(launcher.pid)
    alone_bytes, again_bytes = ((tmp_path / name / "policy.safetensors").read_bytes() for name in ("alone", "again"))
    assert alone_bytes == again_bytes
    text = (tmp_path / "again/summary.json").read_text()
    assert '"exact_resume": true' in text
    assert '"resumes": 0' not in text

"""Runs that last: what they use does not grow, and a launcher may start them again and again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.runs import ROOT, clean_environment, command, run

WATCHED = """
import sys
from pathlib import Path
import train_torch
from fabric_ppo.config import TorchConfig
from fabric_ppo.run import Run

finish_update = Run.finish_update

def watched(self, *args, **kwargs):
    result = finish_update(self, *args, **kwargs)
    if self._updates in (200, 2000):
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


def ranks_of(launcher: int) -> list[int]:
    said = subprocess.run(["pgrep", "-P", str(launcher)], capture_output=True, text=True, timeout=10).stdout
    return [int(pid) for pid in said.split()]


def updates_in(run_dir: Path) -> int:
    path = run_dir / "metrics.jsonl"
    return len(path.read_bytes().splitlines()) if path.exists() else 0


def test_a_launcher_restarts_what_was_killed(tmp_path):
    """A rank is killed three times, and the weights are those of a run that was left alone."""
    flags = ("--total-timesteps", "8192", "--num-steps", "64", "--test-episodes", "1", "--checkpoint-every", "1")
    alone = command("torch", 2, *flags, "--run-dir", "alone")
    subprocess.run(alone, cwd=tmp_path, env=clean_environment(), capture_output=True, check=True, timeout=120)
    start = command("torch", 2, *flags, "--run-dir", "again", "--resume")
    start.insert(1, "--max-restarts=3")
    with (tmp_path / "said").open("w") as said:
        launcher = subprocess.Popen(start, cwd=tmp_path, env=clean_environment(), stdout=said, stderr=said)
        for kill in range(3):
            deadline, goal = time.monotonic() + 60, 2 + updates_in(tmp_path / "again")
            while updates_in(tmp_path / "again") < goal and time.monotonic() < deadline:
                time.sleep(0.01)
            killed = ranks_of(launcher.pid)
            os.kill(killed[kill % 2], signal.SIGKILL)
            while set(killed) & set(ranks_of(launcher.pid)) and time.monotonic() < deadline:
                time.sleep(0.01)
        assert launcher.wait(timeout=120) == 0, (tmp_path / "said").read_text()
    alone_bytes, again_bytes = ((tmp_path / name / "policy.safetensors").read_bytes() for name in ("alone", "again"))
    assert alone_bytes == again_bytes
    text = (tmp_path / "again/summary.json").read_text()
    assert '"exact_resume": true' in text
    assert '"resumes": 0' not in text

"""Job files that go back into the queue, in a shell whose `srun`, `torchrun` and `scontrol` are ours."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest

from tests.fixtures.launching import clean_environment
from tests.fixtures.pages import fences
from tests.fixtures.processes import PATIENCE, wait_until

SRUN, TRAP = (text for text in fences("slurm") if "--signal=" in text)


@pytest.fixture
def job(tmp_path):
    """Start a job file in `tmp_path`, with a launcher of ours; `scontrol` writes down what it is asked for."""
    (tmp_path / ".venv/bin").mkdir(parents=True)
    (tmp_path / ".venv/bin/activate").touch()

    def start(text: str, name: str, launcher: str) -> subprocess.Popen[bytes]:
        for program, body in ((name, launcher), ("scontrol", 'echo "$*" > asked')):
            path = tmp_path / program
            path.write_text(f"#!/bin/bash\n{body}\n")
            path.chmod(0o755)
        env = clean_environment(PATH=f"{tmp_path}:{os.environ['PATH']}", SLURM_JOB_ID="7")
        return subprocess.Popen(["bash", "-c", text], cwd=tmp_path, env=env)

    return start


def asked(folder: Path) -> str:
    """What `scontrol` was asked for; empty for nothing."""
    path = folder / "asked"
    return path.read_text().strip() if path.exists() else ""


@pytest.mark.parametrize(("status", "expected"), [(75, "requeue 7"), (0, ""), (1, "")])
def test_a_job_whose_run_was_stopped_goes_back_into_the_queue(tmp_path, job, status, expected):
    job(SRUN, "srun", f"exit {status}").wait(PATIENCE)
    assert asked(tmp_path) == expected


def test_the_signal_reaches_the_launcher_and_the_job_waits_for_it(tmp_path, job):
    """It goes back into the queue when the launcher has ended, not before."""
    waits = "trap 'touch stopping; while [ ! -e saved ]; do sleep 0.05; done; exit 1' TERM; touch started"
    process = job(TRAP, "torchrun", f"{waits}; while :; do sleep 0.05; done")
    assert wait_until((tmp_path / "started").exists)
    os.kill(process.pid, signal.SIGUSR1)
    assert wait_until((tmp_path / "stopping").exists)
    assert process.poll() is None
    assert asked(tmp_path) == ""
    (tmp_path / "saved").touch()
    process.wait(PATIENCE)
    assert asked(tmp_path) == "requeue 7"


def test_a_run_that_ends_by_itself_is_not_started_again(tmp_path, job):
    job(TRAP, "torchrun", "exit 0").wait(PATIENCE)
    assert asked(tmp_path) == ""

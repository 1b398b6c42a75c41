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

SRUN, TRAP, HOSTS = (text for text in fences("slurm") if "--signal=" in text)


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


SRUN_OF_TWO = """
while [[ "$1" == --* ]]; do shift; done
for host in 0 1; do SLURM_NODEID=$host setsid "$@" & tasks+=($!); done
trap 'for task in "${tasks[@]}"; do kill -USR1 -- "-$task"; done' USR1
for again in 1 2 3; do wait "${tasks[@]}"; done
"""
"""Runs a command for each of two hosts; a signal goes to all processes of a task, as SLURM may send it."""


def test_the_signal_reaches_the_launchers_of_all_hosts(tmp_path, job):
    """As a TERM, and the job waits for both of them."""
    launcher = tmp_path / "torchrun"
    launcher.write_text(
        "#!/bin/bash\n"
        "trap 'touch killed' USR1\n"
        "trap 'touch stopping$SLURM_NODEID; while [ ! -e saved ]; do sleep 0.05; done; exit 1' TERM\n"
        "touch started$SLURM_NODEID\n"
        "while :; do sleep 0.05; done\n"
    )
    launcher.chmod(0o755)
    process = job(HOSTS, "srun", SRUN_OF_TWO)
    assert wait_until(lambda: all((tmp_path / f"started{host}").exists() for host in (0, 1)))
    os.kill(process.pid, signal.SIGUSR1)
    assert wait_until(lambda: all((tmp_path / f"stopping{host}").exists() for host in (0, 1)))
    assert process.poll() is None
    assert "requeue" not in asked(tmp_path)
    (tmp_path / "saved").touch()
    process.wait(PATIENCE)
    assert asked(tmp_path) == "requeue 7"
    assert not (tmp_path / "killed").exists()


def test_a_run_on_two_hosts_that_ends_by_itself_is_not_started_again(tmp_path, job):
    (tmp_path / "torchrun").write_text("#!/bin/bash\nexit 0\n")
    (tmp_path / "torchrun").chmod(0o755)
    job(HOSTS, "srun", SRUN_OF_TWO).wait(PATIENCE)
    assert "requeue" not in asked(tmp_path)

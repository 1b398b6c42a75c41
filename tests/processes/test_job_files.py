"""Job files of docs/cluster.md, in a shell whose `srun` and `scontrol` are ours: how they end and go on.

SLURM sends the signal before a time limit to all processes that `srun` has started; so do these tests.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fixtures.launching import ROOT, clean_environment
from tests.fixtures.pages import JOB_TITLES, fences
from tests.fixtures.processes import FOREVER, PATIENCE, descendants, wait_until

JOBS = dict(zip(JOB_TITLES, fences("slurm"), strict=True))
AGAIN = {"one host": "requeue 7", "array": "requeue 5_2", "two hosts": "requeue 7", "two hosts with GPUs": "requeue 7"}
"""What `scontrol` is asked for where a run was stopped."""
SRUN = """
while [[ "$1" == --* ]]; do shift; done
for host in $(seq 0 $((SLURM_NNODES - 1))); do
    SLURM_STEP_ID=0 SLURM_STEP_NUM_TASKS=$SLURM_NNODES SLURM_PROCID=$host SLURM_NODEID=$host "$@" & tasks+=($!)
done
for task in "${tasks[@]}"; do wait "$task"; of_task=$?; [ $of_task -gt ${status:-0} ] && status=$of_task; done
exit ${status:-0}
"""
"""A task on each host, whose highest status is its own."""
SCONTROL = 'if [ "$1" = show ]; then echo 127.0.0.1; else echo "$*" >> asked; exit "${SCONTROL_STATUS:-0}"; fi'


@pytest.fixture
def job(tmp_path):
    """Start a job file in `tmp_path`; `scontrol` writes down what it is asked for."""
    (tmp_path / ".venv/bin").mkdir(parents=True)
    (tmp_path / ".venv/bin/activate").touch()

    def start(text: str, python: str, **variables: str) -> subprocess.Popen[bytes]:
        for program, body in (("srun", SRUN), ("scontrol", SCONTROL), ("python", python)):
            path = tmp_path / program
            path.write_text(f"#!/bin/bash\n{body}\n")
            path.chmod(0o755)
        given = {"SLURM_JOB_ID": "7", "SLURM_CPUS_PER_TASK": "1", "SLURM_NNODES": "2" if "--nodes=2" in text else "1"}
        given |= {"SLURM_ARRAY_JOB_ID": "5", "SLURM_ARRAY_TASK_ID": "2"} if "--array" in text else {}
        env = clean_environment(PATH=f"{tmp_path}:{os.environ['PATH']}", **given | variables)
        return subprocess.Popen(["bash", "-c", text], cwd=tmp_path, env=env)

    return start


def asked(folder: Path) -> list[str]:
    """Lines that `scontrol` was asked for."""
    path = folder / "asked"
    return path.read_text().splitlines() if path.exists() else []


@pytest.mark.parametrize("status", [0, 1, 2, 3, 75, 130, 137])
@pytest.mark.parametrize("title", JOBS)
def test_a_job_ends_as_its_run_and_goes_back_into_the_queue_where_that_was_stopped(title, status, tmp_path, job):
    """So that SLURM shows a run that failed as failed."""
    assert job(JOBS[title], f"exit {status}").wait(PATIENCE) == status
    assert asked(tmp_path) == ([AGAIN[title]] if status == 75 else [])


@pytest.mark.parametrize("title", JOBS)
def test_a_job_that_cannot_go_back_into_the_queue_has_not_succeeded(title, tmp_path, job):
    assert job(JOBS[title], "exit 75", SCONTROL_STATUS="1").wait(PATIENCE) == 75


SAVES = "mkdir -p {0}; touch {0}/update_$(ls {0} | wc -l).ckpt; exit 75"
FOLDERS = {title: "runs/5/2/checkpoints" if title == "array" else "runs/7/checkpoints" for title in JOBS}


@pytest.mark.parametrize("title", JOBS)
@pytest.mark.parametrize("has_saved_before", [False, True])
def test_a_job_that_gets_nowhere_does_not_begin_for_ever(title, has_saved_before, tmp_path, job, capfd):
    """An update that takes longer than the job may: its first start may have more to do, and no other one."""
    if has_saved_before:
        job(JOBS[title], SAVES.format(FOLDERS[title])).wait(PATIENCE)
    expected = asked(tmp_path)
    for count in range(3):
        assert job(JOBS[title], "exit 75", SLURM_RESTART_COUNT=str(count)).wait(PATIENCE) == 75
        expected += [AGAIN[title]] * (count == 0)
        assert asked(tmp_path) == expected
        said = capfd.readouterr().err
        assert said.count("\n") == said.count("not requeued: nothing new is saved since ") == int(count > 0)


@pytest.mark.parametrize("title", JOBS)
def test_a_job_that_gets_on_goes_on_however_often(title, tmp_path, job):
    for count in range(4):
        assert job(JOBS[title], SAVES.format(FOLDERS[title]), SLURM_RESTART_COUNT=str(count)).wait(PATIENCE) == 75
        assert asked(tmp_path) == [AGAIN[title]] * (count + 1)


@pytest.mark.parametrize("title", JOBS)
def test_a_run_whose_folder_is_changed_goes_on(title, tmp_path, job):
    """Its path stands once: what is saved is looked for where the run saves it."""
    text, count = re.subn(r"^export RUN=.*$", 'export RUN="old runs/mine"', JOBS[title], flags=re.MULTILINE)
    assert count == 1
    saves = 'while [ "$1" != --run-dir ]; do shift; done; mkdir -p "$2/checkpoints"; touch "$2/checkpoints/$RANDOM$$"'
    for restarts in range(3):
        process = job(text, f"{saves}; exit 75", SLURM_RESTART_COUNT=str(restarts))
        assert process.wait(PATIENCE) == 75
        assert asked(tmp_path) == [AGAIN[title]] * (restarts + 1)
    assert (tmp_path / "old runs/mine/checkpoints").is_dir()
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("title", JOBS)
def test_a_job_without_its_virtual_environment_fails(title, tmp_path, job, capfd):
    """With a line that names it, before another Python starts the run."""
    text = re.sub(r"^VENV=.*$", 'VENV="$PWD/elsewhere"', JOBS[title], flags=re.MULTILINE)
    assert job(text, "touch started").wait(PATIENCE) == 1
    assert f"{tmp_path}/elsewhere/bin/activate: No such file" in capfd.readouterr().err
    assert not (tmp_path / "started").exists()
    assert asked(tmp_path) == []


def test_a_job_on_two_hosts_ends_with_the_status_of_the_one_that_failed(job):
    assert job(JOBS["two hosts"], "exit $((2 * SLURM_NODEID))").wait(PATIENCE) == 2


@pytest.mark.parametrize("title", JOBS)
def test_a_job_that_is_cancelled_stays_so(title, tmp_path, job):
    """SLURM sends a TERM to the job file and to all that it has started."""
    process = job(JOBS[title], 'trap "exit 75" TERM; touch started$SLURM_NODEID; while :; do sleep 0.05; done')
    hosts = range(2 if "--nodes=2" in JOBS[title] else 1)
    assert wait_until(lambda: all((tmp_path / f"started{host}").exists() for host in hosts))
    below = descendants(process.pid)
    for each in (process.pid, *below):
        with contextlib.suppress(ProcessLookupError):  # a `sleep` that is over
            os.kill(each, signal.SIGTERM)
    assert process.wait(PATIENCE) != 0
    assert asked(tmp_path) == []


ENV = """
import os, time
import gymnasium
from gymnasium.envs.classic_control import CartPoleEnv

class Own(CartPoleEnv):
    steps = 0

    def step(self, action):
        Own.steps += 1
        while Own.steps == 100 and not os.path.exists("signalled"):
            open(f"waits{os.environ.get('RANK', 0)}", "w").close()
            time.sleep(0.01)
        return super().step(action)

gymnasium.register("Own-v0", Own, max_episode_steps=30)
"""
FLAGS = "--env-id own_env:Own-v0 --num-steps 16 --num-envs 1 --total-timesteps 640 --test-episodes 1 --num-threads 1"
FLAGS += f" --timeout {FOREVER:g} --env-timeout {FOREVER:g}"


def free_job() -> int:
    """The number of a job whose port, as the file for two hosts has it, is free."""
    for number in itertools.count(os.getpid()):
        with socket.socket() as tried:
            try:
                tried.bind(("127.0.0.1", 10000 + number % 20000))
            except OSError:
                continue
            return number
    raise AssertionError


@pytest.mark.parametrize(
    ("title", "script", "ranks"),
    [("one host", "torch", 1), ("one host", "fabric", 2), ("two hosts", "torch", 2), ("two hosts", "decoupled", 2)],
)
def test_a_run_goes_on_after_its_time_was_over(title, script, ranks, tmp_path, job):
    """The program itself: the signal comes to launchers, ranks and shells at the same time."""
    (tmp_path / "own_env.py").write_text(ENV)
    text = JOBS[title].replace("train torch", f"train {script}")
    text = re.sub(r"--config lunarlander --num-envs \d+ --per-rank-batch-size \d+", FLAGS, text)
    number = str(free_job())
    given = {"SLURM_JOB_ID": number, "PYTHONPATH": f"{ROOT}:{tmp_path}", "OMP_NUM_THREADS": "1"}
    given["SLURM_CPUS_PER_TASK"] = str(ranks // (2 if title == "two hosts" else 1))
    python = f'exec {sys.executable} "$@"'
    process = job(text, python, **given)
    acting = range(1 if script == "decoupled" else ranks)
    assert wait_until(
        lambda: all((tmp_path / f"waits{rank}").exists() for rank in acting) or process.poll() is not None
    )
    (srun,) = (each for each in descendants(process.pid) if parent_of(each) == process.pid)
    for each in descendants(srun):
        os.kill(each, signal.SIGUSR1)
    (tmp_path / "signalled").touch()
    assert process.wait(PATIENCE) == 75
    assert asked(tmp_path) == [f"requeue {number}"]
    assert job(text, python, **given).wait(PATIENCE) == 0
    summary = json.loads((tmp_path / "runs" / number / "summary.json").read_text())
    assert (summary["resumes"], summary["world_size"]) == (1, ranks)
    assert asked(tmp_path) == [f"requeue {number}"]


def parent_of(pid: int) -> int:
    return int((Path("/proc") / str(pid) / "stat").read_text().rsplit(")", 1)[1].split()[1])

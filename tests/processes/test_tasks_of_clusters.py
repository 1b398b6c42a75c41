"""Tasks as SLURM and MPI start them: with ranks they are one run, without any they are refused."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.fixtures.launching import BIN, ROOT, clean_environment, free_port
from tests.fixtures.processes import PATIENCE
from tests.fixtures.resuming import assert_same_run, config_of, finish, summary

FLAGS = ["--num-steps=16", "--num-envs=2", "--update-epochs=2", "--per-rank-batch-size=11", "--num-threads=1"]
FLAGS += ["--test-episodes=1", "--checkpoint-every=2", "--timeout=1e6", "--env-timeout=1e6"]
"""Those of the tiny runs of `resuming.config_of`."""


def started(script: str, variables: list[dict[str, str]], cwd, *flags: str) -> list[tuple[int, str]]:
    """Exit status and output of a process for each set of variables, all at the same time."""
    args = [sys.executable, str(ROOT / f"train_{script}.py"), *flags]
    processes = [
        subprocess.Popen(
            args,
            cwd=cwd,
            env=clean_environment(OMP_NUM_THREADS="1", **each),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for each in variables
    ]
    printed = [process.communicate(timeout=PATIENCE)[0] for process in processes]
    return [(process.returncode, text) for process, text in zip(processes, printed, strict=True)]


@pytest.mark.parametrize(("script", "size"), [("torch", 2), ("fabric", 2), ("fabric_decoupled", 3)])
def test_ranks_that_mpi_starts_are_one_run(tmp_path, script, size):
    """With RANK, WORLD_SIZE and the address of rank 0, as scripts for `mpirun` set them."""
    name = script.removeprefix("fabric_")
    expected = finish(name, size, tmp_path / "expected")
    total = config_of(name, size, tmp_path / "run").total_timesteps
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(size)}
    place["OMPI_COMM_WORLD_SIZE"] = str(size)
    ranks = [place | {"RANK": str(rank), "OMPI_COMM_WORLD_LOCAL_RANK": str(rank)} for rank in range(size)]
    done = started(script, ranks, tmp_path, *FLAGS, f"--total-timesteps={total}", "--run-dir=run")
    assert [status for status, _ in done] == [0] * size, done
    assert_same_run(tmp_path / "run", expected, resumes=0)
    assert summary(tmp_path / "run")["world_size"] == size


def test_ranks_of_torchrun_are_one_run_of_the_script_for_fabric(tmp_path):
    """Which `fabric run` starts with the same launcher."""
    expected = finish("fabric", 2, tmp_path / "expected")
    total = config_of("fabric", 2, tmp_path / "run").total_timesteps
    launcher = [str(BIN / "torchrun"), "--nproc_per_node=2", "--standalone", str(ROOT / "train_fabric.py")]
    args = [*launcher, *FLAGS, f"--total-timesteps={total}", "--run-dir=run"]
    env = clean_environment(OMP_NUM_THREADS="1")
    subprocess.run(args, cwd=tmp_path, env=env, timeout=PATIENCE, check=True, capture_output=True)
    assert_same_run(tmp_path / "run", expected, resumes=0)


@pytest.mark.parametrize("script", ["torch", "fabric", "fabric_decoupled"])
def test_tasks_without_ranks_are_refused_and_leave_nothing(tmp_path, script):
    job = {"SLURM_NTASKS": "2", "SLURM_STEP_NUM_TASKS": "2"}
    done = started(script, [job | {"SLURM_PROCID": str(task)} for task in range(2)], tmp_path)
    for status, printed in done:
        assert (status, printed.count("\n")) == (2, 1), printed
        assert printed.startswith("error: environment variable SLURM_STEP_NUM_TASKS=2: each of 2 tasks would train ")
    assert list(tmp_path.iterdir()) == []

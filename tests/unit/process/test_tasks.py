"""Tasks of SLURM and MPI: several without ranks are refused; job scripts, shells and single tasks run."""

from __future__ import annotations

import sys

import pytest

from fabric_ppo.config import SCRIPT_CONFIGS
from fabric_ppo.process.errors import ConfigError
from fabric_ppo.process.launch import Launch, read_launch
from fabric_ppo.process.tasks import require_one_task
from fabric_ppo.tools import cli
from fabric_ppo.tools.flags import parse_args

pytestmark = pytest.mark.usefixtures("no_launcher")

BATCH = {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "2", "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "ENVIRONMENT": "BATCH"}
"""What a job script of two tasks runs with."""
STEP = BATCH | {"SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "2"}
"""What `srun -n 2` in it gives to each task."""
INTERACTIVE = {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "2", "SLURM_JOB_NAME": "interactive"}
"""What a shell of `salloc -n 2` runs with."""

SEVERAL = {
    "srun in a job": STEP,
    "its second task": STEP | {"SLURM_PROCID": "1"},
    "srun by itself": {"SLURM_NTASKS": "2", "SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "2"},
    "srun in a shell of salloc": INTERACTIVE | {"SLURM_PROCID": "0", "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "2"},
    "srun with an ordinary number of its step": {"SLURM_STEP_ID": "12", "SLURM_STEP_NUM_TASKS": "2"},
    "a second task of unknown many": {"SLURM_PROCID": "1"},
    "Open MPI": {"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "0"},
    "Open MPI in a job script": BATCH | {"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "0"},
    "Open MPI whose daemons srun started": STEP | {"SLURM_STEP_NUM_TASKS": "1", "OMPI_COMM_WORLD_SIZE": "2"},
    "MPICH and Intel MPI": {"PMI_SIZE": "2", "PMI_RANK": "1"},
    "PMIx": {"PMIX_NAMESPACE": "prterun-host-1@1", "PMIX_RANK": "1"},
    "MVAPICH": {"MV2_COMM_WORLD_SIZE": "2", "MV2_COMM_WORLD_RANK": "0"},
}
ONE = {
    "no launcher": {},
    "srun -n 1": {"SLURM_NTASKS": "1", "SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "1"},
    "a job script of two tasks": BATCH,
    "a job script without ENVIRONMENT": {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "2", "SLURM_PROCID": "0"},
    "a job script with the number of its step": BATCH | {"SLURM_STEP_ID": "4294967291", "SLURM_STEP_NUM_TASKS": "2"},
    "a job script with the name of its step": BATCH | {"SLURM_STEP_ID": "batch", "SLURM_STEP_NUM_TASKS": "2"},
    "a notebook in a job of two tasks": {"SLURM_NTASKS": "2", "SLURM_PROCID": "0", "SLURM_JOB_NAME": "jupyter"},
    "a shell of salloc that counts the job's tasks": INTERACTIVE
    | {"SLURM_PROCID": "0", "SLURM_STEP_ID": "4294967290", "SLURM_STEP_NUM_TASKS": "2"},
    "one task in it": STEP | {"SLURM_STEP_NUM_TASKS": "1"},
    "a shell of salloc": INTERACTIVE,
    "a shell of salloc on a node of the job": INTERACTIVE
    | {"SLURM_PROCID": "0", "SLURM_STEP_ID": "4294967290", "SLURM_STEP_NUM_TASKS": "1"},
    "mpirun -n 1": {"OMPI_COMM_WORLD_SIZE": "1", "OMPI_COMM_WORLD_RANK": "0", "PMIX_RANK": "0"},
    "mpirun -n 1 in a job on two hosts": STEP | {"OMPI_COMM_WORLD_SIZE": "1"},
    "what is no number": {"SLURM_NTASKS": "x", "SLURM_PROCID": "0", "PMI_SIZE": ""},
}


@pytest.fixture
def given(monkeypatch):
    """Set environment variables."""

    def set_(variables):
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    return set_


@pytest.mark.parametrize("variables", SEVERAL.values(), ids=SEVERAL)
@pytest.mark.parametrize("script", list(SCRIPT_CONFIGS))
def test_several_tasks_without_ranks_are_one_line_for_every_script(variables, script, given, capsys):
    given(variables)
    with pytest.raises(SystemExit) as caught:
        parse_args(SCRIPT_CONFIGS[script], [])
    printed = capsys.readouterr()
    assert caught.value.code == 2
    assert printed.err.startswith("error: environment variable ")
    assert (printed.out, printed.err.count("\n")) == ("", 1)
    assert cli.main(["train", script, "--devices", "3"]) == 2
    assert capsys.readouterr().err == printed.err


@pytest.mark.parametrize("variables", ONE.values(), ids=ONE)
def test_one_task_is_one_process(variables, given):
    given(variables)
    assert read_launch() == Launch(0, 1, 0, 1)
    parse_args(SCRIPT_CONFIGS["fabric"], [])


@pytest.mark.parametrize("variables", SEVERAL.values(), ids=SEVERAL)
def test_tasks_with_ranks_are_ranks(variables, given):
    given(variables | {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1"})
    assert read_launch() == Launch(1, 2, 1, 2)


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"OMPI_COMM_WORLD_LOCAL_RANK": "1", "OMPI_COMM_WORLD_LOCAL_SIZE": "2"}, Launch(3, 4, 1, 2)),
        ({"MPI_LOCALRANKID": "1", "MPI_LOCALNRANKS": "2"}, Launch(3, 4, 1, 2)),
        ({"MV2_COMM_WORLD_LOCAL_RANK": "1", "MV2_COMM_WORLD_LOCAL_SIZE": "2"}, Launch(3, 4, 1, 2)),
        ({"SLURM_LOCALID": "1"}, Launch(3, 4, 1, 4)),
    ],
)
def test_the_place_on_a_host_may_have_the_name_that_the_launcher_gives_it(variables, expected, given):
    """As with `mpirun`, of a program that sets RANK and WORLD_SIZE."""
    given(variables | {"RANK": "3", "WORLD_SIZE": "4"})
    assert read_launch() == expected


@pytest.mark.parametrize(
    ("program", "command"),
    [
        ("/x/train_torch.py", "srun --ntasks=1 torchrun --standalone --nproc_per_node=2 train_torch.py"),
        ("train_fabric.py", "srun --ntasks=1 fabric run --devices=2 train_fabric.py"),
        ("/x/my_program.py", "srun --ntasks=1 python -m fabric_ppo train torch --devices 2"),
        ("/x/fabric_ppo/__main__.py train fabric", "srun --ntasks=1 python -m fabric_ppo train fabric --devices 2"),
    ],
)
def test_the_line_has_the_command_to_run_instead(program, command, given, monkeypatch):
    given(STEP)
    monkeypatch.setattr(sys, "argv", program.split())
    with pytest.raises(ConfigError) as caught:
        require_one_task()
    assert f"SLURM_STEP_NUM_TASKS=2: each of 2 tasks would train the same; {'one task is expected'}" in str(
        caught.value
    )
    assert f": {command} (" in str(caught.value)


def test_a_task_for_each_host_starts_its_ranks(given, monkeypatch):
    """As `srun --ntasks-per-node=1 python -m fabric_ppo train ... --num-nodes 2` does."""
    given(STEP)
    monkeypatch.setattr("os.execve", lambda *_: None)
    hosts = ["--num-nodes", "2", "--node-rank", "1", "--main-address", "10.0.0.1", "--main-port", "29500"]
    cli.main(["train", "torch", *hosts])
    with pytest.raises(ConfigError, match="each of 2 tasks"):
        require_one_task(3)

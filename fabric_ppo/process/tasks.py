"""Tasks of `srun` and `mpirun`: several of them, without a rendezvous, are copies and no ranks."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from fabric_ppo.process.errors import ConfigError

_STEP_SIZE = "SLURM_STEP_NUM_TASKS"
_FIRST_SPECIAL_STEP = 0xFFFFFFF0
"""The least `SLURM_STEP_ID` that is no number of a step: 0xFFFFFFFB for a job script, 0xFFFFFFFA for a shell."""

# those of MPI come first: `mpirun` may run inside of a step of SLURM, and is nearer then
_SIZES = (
    *("OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE", "PMI_SIZE", "PMIX_SIZE", "PALS_SIZE", "JSM_NAMESPACE_SIZE"),
    _STEP_SIZE,
)
"""Variables with the number of tasks that were started together."""
_RANKS = (
    *("OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK", "PMI_RANK", "PMIX_RANK", "PALS_RANKID", "JSM_NAMESPACE_RANK"),
    "SLURM_PROCID",
)
"""Variables with the number of a task among them, from 0."""
_OF_THE_HOST = {
    "LOCAL_RANK": ("OMPI_COMM_WORLD_LOCAL_RANK", "MV2_COMM_WORLD_LOCAL_RANK", "MPI_LOCALRANKID", "SLURM_LOCALID"),
    "LOCAL_WORLD_SIZE": ("OMPI_COMM_WORLD_LOCAL_SIZE", "MV2_COMM_WORLD_LOCAL_SIZE", "MPI_LOCALNRANKS"),
}
"""Variables with the place of a task on its host, under the name that `torchrun` gives it."""


def place_on_host(name: str) -> str | None:
    """Return `LOCAL_RANK` or `LOCAL_WORLD_SIZE`, as set or as MPI or SLURM has it; None for neither."""
    return next((os.environ[each] for each in (name, *_OF_THE_HOST[name]) if each in os.environ), None)


def require_one_task(num_hosts: int = 1) -> None:
    """Check that this process, which has no rank, is not one of several that do the same.

    A job script and a shell of `salloc` are one process, however many tasks the job has.

    Args:
        num_hosts: number of tasks that are expected, each of which starts the ranks of its host.

    Raises:
        ConfigError: `srun` or `mpirun` has started several; says what to run instead.
    """
    found, count = _several_tasks()
    if not found or count == str(num_hosts):
        return
    program = Path(sys.argv[0]).name if sys.argv else ""
    script = sys.argv[2] if sys.argv[1:2] == ["train"] and len(sys.argv) > 2 else "torch"
    instead = f"python -m fabric_ppo train {script} --devices {count}"
    if program == "train_torch.py":
        instead = f"torchrun --standalone --nproc_per_node={count} {program}"
    elif program in ("train_fabric.py", "train_fabric_decoupled.py"):
        instead = f"fabric run --devices={count} {program}"
    one = "srun --ntasks=1 " if _STEP_SIZE in os.environ or found.startswith("SLURM") else ""
    raise ConfigError(
        f"environment variable {found}: each of {count} tasks would train the same; one task is expected, which "
        f"starts the ranks: {one}{instead} (docs/cluster.md has job files, for several hosts and seeds too)"
    )


def _several_tasks() -> tuple[str, str]:
    """Return a variable that tells of several tasks, `NAME=VALUE`, and their number.

    Both are empty for a single one; the number is `N` where only a task's own number is known.
    """
    for name in _SIZES:
        if (value := os.environ.get(name, "")).isdecimal() and not (name == _STEP_SIZE and _is_one_process()):
            return (f"{name}={value}", value) if int(value) > 1 else ("", "")
    for name in _RANKS:
        if (value := os.environ.get(name, "")).isdecimal() and int(value) > 0:
            return f"{name}={value}", os.environ.get("SLURM_NTASKS", "N")
    # SLURM_NTASKS is the job's: a job script, which is one process, has it too
    return "", ""


def _is_one_process() -> bool:
    """Return True in a step of SLURM that is not one of `srun`: a job script, or the shell of `salloc`."""
    step = os.environ.get("SLURM_STEP_ID", "0")
    return not step.isdecimal() or int(step) >= _FIRST_SPECIAL_STEP

"""Starting the scripts in tests: under their real launchers, or as forked ranks that skip the imports."""

from __future__ import annotations

import multiprocessing
import os
import socket
import subprocess
import sys
import time
import traceback
from multiprocessing import connection
from pathlib import Path

import torch.utils.tensorboard

import train_fabric
import train_fabric_decoupled
import train_torch  # loaded before the forks, so that no rank has to
from fabric_ppo.process.launch import die_with_parent, run_script
from fabric_ppo.process.signals import signals

SCRIPTS = {"torch": train_torch, "fabric": train_fabric, "decoupled": train_fabric_decoupled}
ROOT = Path(__file__).parent.parent
BIN = Path(sys.executable).parent


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def command(script: str, world_size: int, *flags: str, launcher_flags: tuple[str, ...] = ()) -> list[str]:
    """The README's way to start `script`; 0 processes: without a launcher."""
    path = str(ROOT / f"train_{script}.py")
    if world_size == 0:
        return [sys.executable, path, *flags]
    if script == "torch":
        return [str(BIN / "torchrun"), f"--nproc_per_node={world_size}", "--standalone", path, *flags]
    where = ["--accelerator=cpu", "--strategy=ddp", f"--devices={world_size}", f"--main-port={free_port()}"]
    return [str(BIN / "fabric"), "run", *where, *launcher_flags, path, *flags]


def clean_environment(**extra: str) -> dict[str, str]:
    return {key: value for key, value in os.environ.items() if key not in ("RANK", "WORLD_SIZE")} | extra


def run(args: list[str], cwd: Path, timeout: float = 120) -> subprocess.CompletedProcess[str]:
    return subprocess.run(args, cwd=cwd, capture_output=True, text=True, timeout=timeout, env=clean_environment())


def in_fork(function, *args, timeout: float = 60):
    """What `function(*args)` returns in a forked process, whose limits and patches end with it."""
    context = multiprocessing.get_context("fork")
    answers = context.Queue()

    def work() -> None:
        try:
            answers.put((function(*args), ""))
        except BaseException:
            answers.put((None, traceback.format_exc()))

    process = context.Process(target=work)
    process.start()
    value, error = answers.get(timeout=timeout)
    process.join(timeout)
    assert not error, error
    return value


def run_ranks(script: str, configs: list, precision: str | None = None, timeout: float = 120) -> list[str]:
    """`main(config)` of a script in one forked process a rank; what each raised or died of, or the empty string."""
    context = multiprocessing.get_context("fork")
    port, ranks, answers = free_port(), [], []
    for rank, config in enumerate(configs):
        ours, theirs = context.Pipe(duplex=False)
        args = (script, config, rank, len(configs), port, precision, theirs)
        ranks.append(context.Process(target=_rank, args=args))
        ranks[-1].start()
        theirs.close()
        answers.append(ours)
    deadline, said = time.monotonic() + timeout, []
    for rank, answer in zip(ranks, answers, strict=True):
        connection.wait([rank.sentinel, answer], max(0.0, deadline - time.monotonic()))
        said.append(_said(rank, answer))
    for rank in ranks:
        rank.join(max(0.1, deadline - time.monotonic()))
        if rank.is_alive():
            rank.kill()
    return said


def _said(rank, answer) -> str:
    try:
        if answer.poll():
            return answer.recv()
    except EOFError:
        pass
    rank.join(1.0)
    return f"exit code {rank.exitcode}"  # None: it hangs


def _place(rank: int, size: int, port: int, precision: str | None = None) -> None:
    """Set what a launcher would in this process's environment."""
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size, "GROUP_RANK": 0}
    os.environ |= {key: str(value) for key, value in place.items()}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TORCHELASTIC_RUN_ID": "test"}
    os.environ |= {"LT_CLI_USED": "1", "LT_ACCELERATOR": "cpu", "LT_DEVICES": str(size), "LT_NUM_NODES": "1"}
    if size > 1:
        os.environ["LT_STRATEGY"] = "ddp"
    if precision:
        os.environ["LT_PRECISION"] = precision
    if size == 1:
        for key in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"):
            del os.environ[key]


def _rank(script: str, config, rank: int, size: int, port: int, precision: str | None, answer) -> None:
    _place(rank, size, port, precision)
    try:
        SCRIPTS[script].main(config)
        answer.send("")
    except BaseException:
        answer.send(traceback.format_exc())
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


def start_ranks(script: str, configs: list, out: Path) -> list:
    """A script as it runs as `__main__`, signals and exit status included, in one forked process a rank.

    What rank R prints goes to the file `out/R.txt`. Each rank leads a process group, as its workers' terminal has it.
    """
    context, port = multiprocessing.get_context("fork"), free_port()
    out.mkdir(exist_ok=True)
    ranks = [
        context.Process(target=_main_rank, args=(script, config, rank, len(configs), port, out / f"{rank}.txt"))
        for rank, config in enumerate(configs)
    ]
    for rank in ranks:
        rank.start()
    return ranks


def _main_rank(script: str, config, rank: int, size: int, port: int, out: Path) -> None:
    os.setpgrp()
    with out.open("ab", buffering=0) as file:
        for descriptor in (1, 2):
            os.dup2(file.fileno(), descriptor)
    sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115
    _place(rank, size, port)
    signals.__init__()  # forked from a process in which a test may have run a script
    die_with_parent()
    signals.install()
    run_script(SCRIPTS[script].main, config)

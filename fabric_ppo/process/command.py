"""The command that started this process, as one that can be pasted into a shell, with other flags."""

from __future__ import annotations

import os
import shlex
import sys
import sysconfig
from collections.abc import Sequence
from contextvars import ContextVar
from pathlib import Path

from fabric_ppo.process.files import tidy_path
from fabric_ppo.process.launch import Launch, read_launch


def _working_directory() -> str | None:
    try:
        return os.getcwd()
    except OSError:  # it has been removed
        return None


running: ContextVar[str] = ContextVar("running", default="")
"""Name of the command of `fabric-ppo` that this process runs, such as `evaluate`; else empty."""

TRAIN_VARIABLE = "FABRIC_PPO_TRAIN"
"""Environment variable in which the command `train` hands its script's name and launcher's flags to the ranks."""

# Read at import: code of the user's own may change the first, and the scripts change the others.
_DIRECTORY = _working_directory()
_PACKAGES = str(Path(__file__).absolute().parents[2])  # the folder that this package lies in
# Taken out of the environment, so that programs which the run starts are not taken for it.
_TRAIN = shlex.split(os.environ.pop(TRAIN_VARIABLE, ""))
_FABRIC = {name.removeprefix("LT_"): value for name, value in os.environ.items() if name.startswith("LT_")}


def command_with(flags: Sequence[str]) -> str:
    """Return the shell command that starts this script as it was started, with other `flags`.

    It has the launcher with its own flags, and works in any folder: it changes into the one that
    the script was started in, where modules of the user's own may lie. For several hosts it is the
    command for this one.
    """
    launch = read_launch()
    if _TRAIN:
        return _in_directory(_package(["train", *_TRAIN, *flags]))
    launcher = [] if "RANK" not in os.environ else _fabric(launch) if "CLI_USED" in _FABRIC else _torchrun(launch)
    script = tidy_path(os.path.join(_DIRECTORY or "", sys.argv[0]))
    return _in_directory([sys.executable or "python", *launcher, script, *flags])


def package_command(words: Sequence[str], folders: Sequence[str] = ()) -> str:
    """Return the shell command that runs a command of `fabric-ppo`, in any folder.

    Args:
        words: the command and its arguments.
        folders: those that `import` is to look in first.
    """
    installed = {sysconfig.get_path(name) for name in ("purelib", "platlib")}
    needed = [] if _PACKAGES in (_DIRECTORY, *installed) else [_PACKAGES]
    return _in_directory(_package(words), folders, needed)


def _package(words: Sequence[str]) -> list[str]:
    return [sys.executable or "python", "-m", "fabric_ppo", *words]


def _in_directory(words: Sequence[str], first: Sequence[str] = (), last: Sequence[str] = ()) -> str:
    """Return a command that runs in the folder, and with the modules, that this process was started with.

    Folders besides these are looked in `first` or `last`.
    """
    given = os.environ.get("PYTHONPATH", "")
    folders = [*first, *([given] if given else []), *(each for each in last if each not in given.split(os.pathsep))]
    words = [*(["env", f"PYTHONPATH={os.pathsep.join(folders)}"] if folders else []), *words]
    return f"cd {shlex.quote(_DIRECTORY)} && {shlex.join(words)}" if _DIRECTORY else shlex.join(words)


def launcher_flags() -> dict[str, str]:
    """Return the flags that the launcher was given for each host, name -> value; none without it."""
    if "RANK" not in os.environ:
        return {}
    names = ("accelerator", "strategy", "precision")
    given = {name: _FABRIC[name.upper()] for name in names if name.upper() in _FABRIC}
    return {"devices": _FABRIC.get("DEVICES", str(read_launch().local_world_size))} | given


def num_hosts() -> int:
    """Return the number of hosts that the launcher has started ranks on."""
    launch = read_launch()
    return max(1, launch.world_size // launch.local_world_size)


def _fabric(launch: Launch) -> list[str]:
    """Return the arguments of Python that stand for `fabric run` and its flags."""
    given = launcher_flags()
    if num_hosts() > 1:
        given |= {"num-nodes": str(num_hosts()), "node-rank": _host(launch)}
        given["main-address"] = os.environ.get("MASTER_ADDR", "")
    given["main-port"] = os.environ.get("MASTER_PORT", "")
    return ["-m", "lightning.fabric.cli", *(f"--{name}={value}" for name, value in given.items() if value)]


def _torchrun(launch: Launch) -> list[str]:
    """Return the arguments of Python that stand for `torchrun` and its flags.

    It starts the ranks of other launchers, such as `mpirun`, as well.
    """
    words = ["-m", "torch.distributed.run", f"--nproc_per_node={launch.local_world_size}"]
    if (restarts := os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0")) != "0":
        words.append(f"--max-restarts={restarts}")
    if num_hosts() == 1:
        return [*words, "--standalone"]
    address, port = os.environ.get("MASTER_ADDR", ""), os.environ.get("MASTER_PORT", "")
    words += [f"--nnodes={num_hosts()}", f"--node_rank={_host(launch)}"]
    return [*words, f"--master_addr={address}", f"--master_port={port}"]


def _host(launch: Launch) -> str:
    return os.environ.get("GROUP_RANK", str(launch.rank // launch.local_world_size))

"""The process in which `doctor` tries what may fail or hang: imports, the GPU, two ranks that meet.

Each answer is a line of JSON on stdout, so that those before a crash or a hang are kept.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import socket
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fabric_ppo.process.errors import describe_error, reason_line

_MEETING_SECONDS = 20


def main(names: Sequence[str]) -> None:
    """Try each of `names`, a function of `PROBES` or a module to import, and write what came of it."""
    answers = os.dup(1)
    os.dup2(2, 1)  # whatever packages print while they are imported is no answer
    for name in names:
        try:
            facts = PROBES.get(name, _imported)(name)
            answer: dict[str, Any] = {"facts": facts}
        except BaseException as error:  # a module may call sys.exit, too
            answer = {"error": reason_line(describe_error(error))}
        os.write(answers, (json.dumps({"name": name} | answer) + "\n").encode())


def _imported(name: str) -> dict[str, Any]:
    """Import a module."""
    importlib.import_module(name)
    return {}


def _gpus(name: str) -> dict[str, Any]:
    """Return the CUDA version that PyTorch is built for, and the GPUs that it sees."""
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    found = [torch.cuda.get_device_properties(index) for index in range(count)]
    return {
        "cuda": torch.version.cuda,
        "gpus": [{"name": each.name, "memory_bytes": each.total_memory} for each in found],
    }


def _fork(name: str) -> dict[str, Any]:
    """Fork a process, as workers of environments are started, and hear from it."""
    reading, writing = os.pipe()
    if (process := os.fork()) == 0:
        os.write(writing, b"1")
        os._exit(0)
    os.close(writing)
    _, status = os.waitpid(process, 0)
    if status or os.read(reading, 1) != b"1":
        raise OSError(f"a forked process ended with status {os.waitstatus_to_exitcode(status)}")
    return {}


def _group(name: str) -> dict[str, Any]:
    """Have two processes of this host form a process group, as ranks do, and add a number up."""
    from fabric_ppo.process import group  # noqa: F401  # once, before the fork

    with contextlib.closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    if (process := os.fork()) == 0:
        with contextlib.suppress(BaseException):
            os._exit(0 if _sum_of_ranks(1, port) == 3 else 1)
        os._exit(1)
    total = _sum_of_ranks(0, port)
    _, status = os.waitpid(process, 0)
    if status or total != 3:
        raise OSError("two ranks met, but did not add up")
    return {}


def _sum_of_ranks(rank: int, port: int) -> int:
    """Return the sum of 1 and 2, which the two ranks bring."""
    import torch

    from fabric_ppo.process.group import join_process_group

    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), RANK=str(rank), WORLD_SIZE="2")
    os.environ.pop("TORCHELASTIC_RESTART_COUNT", None)
    join_process_group("gloo", _MEETING_SECONDS)
    number = torch.tensor(rank + 1)
    torch.distributed.all_reduce(number)
    torch.distributed.destroy_process_group()
    return int(number)


PROBES: Mapping[str, Callable[[str], dict[str, Any]]] = {":gpus": _gpus, ":fork": _fork, ":group": _group}
"""Names of what is tried besides imports; no module has such a name."""

"""Runs of a sweep: each is a process of its own, which goes on where it was killed."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from fabric_ppo.config import TorchConfig
from fabric_ppo.config_values import NO_TRACKER
from fabric_ppo.process.errors import NOT_ALL_WRITTEN, STOPPED_BY_SIGNAL
from fabric_ppo.process.files import write_atomically
from fabric_ppo.process.launch import die_with_parent
from fabric_ppo.run.folder import FAILURE_FILE
from fabric_ppo.run.result import RunResult
from fabric_ppo.tools.locate import script_path
from fabric_ppo.tools.sweep import reporter
from fabric_ppo.tools.sweep.space import plain_flags
from fabric_ppo.tools.sweep.study import STEPS

OUTPUT_FILE = "output.txt"
"""File in a run's folder with all that it has printed."""


@dataclass(frozen=True)
class Report:
    """Evaluation of a run: its mean return after an update of so many."""

    update: int
    num_updates: int
    return_mean: float


class Run:
    """A run of a trial, in a process.

    Attributes:
        folder: the run's folder.
        connection: socket on which it reports.
    """

    def __init__(self, folder: Path, flags: Path, seed: int, num_threads: int | None) -> None:
        """Start it, or go on with it, with the flags of a file and a seed; threads as the file has them for None."""
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        words = [sys.executable, str(script_path(TorchConfig)), "--config", str(flags), "--seed", str(seed)]
        words += ["--run-dir", str(folder), "--resume"]
        words += [] if num_threads is None else ["--num-threads", str(num_threads)]
        self.connection, theirs = socket.socketpair()
        with (folder / OUTPUT_FILE).open("a") as output, theirs:
            self._process = subprocess.Popen(
                words,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                pass_fds=[theirs.fileno()],
                env=os.environ | {reporter.CHANNEL: str(theirs.fileno())},
                preexec_fn=die_with_parent,
            )

    def read(self) -> Report | None:
        """Return a report that has arrived; None for none. It waits for an answer, and for none before."""
        self.connection.setblocking(False)
        try:
            line = self.connection.recv(65536)
        except (BlockingIOError, ConnectionError):
            return None
        return Report(**json.loads(line)) if line.endswith(b"\n") else None

    def answer(self, prunes: bool) -> None:
        """Let it go on after a report, or end."""
        with contextlib.suppress(ConnectionError):  # it has been killed
            self.connection.send(reporter.PRUNE if prunes else reporter.GO_ON)

    def poll(self) -> int | None:
        """Return the exit status of the process; None while it runs."""
        return self._process.poll()

    def stop(self, number: int = signal.SIGTERM) -> None:
        """Send it a signal."""
        if self._process.poll() is None:
            self._process.send_signal(number)

    def close(self) -> None:
        """Close the socket, and wait for the end of the process."""
        self.connection.close()
        self._process.wait()

    def failure(self) -> str:
        """Return the error that ended the run, in a line."""
        for name in (FAILURE_FILE, OUTPUT_FILE):
            try:
                lines = (self.folder / name).read_text(errors="replace").splitlines()
            except OSError:
                continue
            if errors := [line for line in lines if name == FAILURE_FILE or line.startswith("error: ")]:
                return errors[-1].removeprefix("error: ")
        return f"it ended with status {self.poll()}"


def test_return(folder: Path) -> float | None:
    """Return the mean return of the final test of the run in a folder; None where it has not been played."""
    value = (RunResult(folder).last_summary.get("test") or {}).get("return_mean")
    return value if isinstance(value, float) else None


def has_ended_well(status: int) -> bool:
    """Return True for the exit status of a run that is done."""
    return status in (0, NOT_ALL_WRITTEN)


def was_stopped(status: int) -> bool:
    """Return True for the exit status of a run that somebody has killed or stopped, and that can go on."""
    return status < 0 or status == STOPPED_BY_SIGNAL


def run_flags(flags: Mapping[str, Any]) -> dict[str, Any]:
    """Return the flags of a trial's runs: those of the trial, with evaluations and the callback that reports them.

    Raises:
        ConfigError: they cannot be a run's.
    """
    own = f"{reporter.__name__}:{reporter.Reporter.__name__}"
    given = flags.get("callback")
    config = TorchConfig(**{"track": "jsonl", **flags})
    # about STEPS evaluations, more of them would not be looked at
    every = config.eval_every or -(-config.num_updates(1) // STEPS)
    more = {"eval_every": every, "callback": own if given in (None, NO_TRACKER) else f"{given},{own}"}
    return {"track": "jsonl", **flags, **more}


def write_flags(path: Path, flags: Mapping[str, Any]) -> None:
    """Write flags as a YAML file that `--config` takes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, yaml.safe_dump(plain_flags(flags), sort_keys=False).encode())

"""Kills training with SIGKILL at random moments, resumes it, and compares the end with a run that was left alone.

python -m tests.processes.stress                                   # everything: make stress
python -m tests.processes.stress --kills 8 --rows torch-1-cartpole --rows "decoupled-*" --seed 5
python -m tests.processes.stress --list

A row is a script with some flags. Its runs are killed and resumed in chains; a chain ends with a run that nobody
kills. Policy, metrics, TensorBoard's scalars and summary must then be those of the uninterrupted run, bit for bit but
for what tells the time. Most rows fork their ranks off this process, which skips seconds of imports; a process
between stands for the launcher. Others go through the real launchers. A new row is a line in ROWS, and for an
environment that is new here an entry in NUM_STEPS.

Moments are uniform over a run's length, or, for a third, in the middle of writing a file: there rank 0 kills itself
in the n-th call that touches one. Nothing of this is in the product: the functions are replaced in the forks only.
"""

from __future__ import annotations

import argparse
import builtins
import collections
import contextlib
import ctypes
import fnmatch
import functools
import json
import mmap
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gymnasium
from rich.console import Console
from rich.table import Table
from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
from tensorboard.compat.proto.event_pb2 import Event

from fabric_ppo.config import SCRIPT_CONFIGS
from fabric_ppo.process import files as files_module
from fabric_ppo.process import script as script_module
from fabric_ppo.process.files import Checkpoint
from fabric_ppo.process.launch import die_with_parent
from fabric_ppo.process.signals import signals
from fabric_ppo.run import setup as run_setup
from fabric_ppo.run.checkpoint import BEST, Checkpoints, newest_first
from fabric_ppo.run.resolve import resolve
from fabric_ppo.run.run import Run
from fabric_ppo.run.trackers.tracker import Trackers
from fabric_ppo.tools.flags import parse_flags
from tests.fixtures.launching import COLLECTORS, ROOT, SCRIPTS, clean_environment, command, free_port
from tests.fixtures.processes import FOREVER, PATIENCE, descendants, rank_pids

UPDATES, KEPT = 16, 3
LONGEST_CHAIN = 5
PHASES = ("start-up", "resume", "rollout", "update", "exchange", "checkpoint", "between", "end")
"""What a rank was doing; `exchange` is merging an update, `between` logging, or waiting for other ranks."""
WRITES = PHASES.index("checkpoint")
NESTED, MASKED, IMAGES = (f"tests.fixtures.nested_envs:{name}-v0" for name in ("Nested", "Masked", "Images"))
NUM_STEPS = {
    **{"CartPole-v1": 192, "LunarLander-v3": 96, "Pendulum-v1": 128, "HalfCheetah-v5": 48, "Hopper-v5": 96},
    **{"BipedalWalker-v3": 64, NESTED: 32, MASKED: 128, IMAGES: 32},
}
"""Of a rollout: what makes a run of UPDATES last a second or two."""
COMMON = ("--num-envs", "2", "--update-epochs", "1", "--per-rank-batch-size", "32", "--test-episodes", "2")
COMMON += ("--checkpoint-every", "2", "--keep-checkpoints", str(KEPT), "--num-threads", "1", "--timeout", str(FOREVER))
"""A rank that waits for one that was killed ends since it was killed, not since it has waited for long."""


OUR_TRACEBACK = re.compile(r'^Traceback.*\n(?!  File ".*/bin/(torchrun|fabric)")', re.MULTILINE)
"""Not that of a launcher, which says in this way that a rank has failed."""


@dataclass(frozen=True)
class Row:
    """A script with some flags.

    Attributes:
        name: for `--rows`.
        script: a key of SCRIPTS.
        ranks: how many.
        env_id: its environment.
        flags: besides those of all rows.
        backends: each start takes one of them.
        launched: whether through the real launcher.
    """

    name: str
    script: str
    ranks: int
    env_id: str
    flags: tuple[str, ...] = ()
    backends: tuple[str, ...] = ("sync",)
    launched: bool = False

    def args(self, run_dir: Path, backend: str) -> list[str]:
        """The script's command line."""
        num_steps = NUM_STEPS[self.env_id]
        with_envs = 1 if self.script == "decoupled" else self.ranks
        size = ("--num-steps", str(num_steps), "--total-timesteps", str(UPDATES * num_steps * 2 * with_envs))
        place = ("--run-dir", str(run_dir), "--resume", "--env-id", self.env_id, "--env-backend", backend)
        return [*COMMON, *size, *place, *self.flags]


SHARE, OVERLAP = "--share-data", "--overlap"
NORMALIZED = ("--normalize-observations", "--normalize-rewards")
LSTM = ("--recurrent", "lstm", "--recurrent-size", "16", "--sequence-length", "8")
EVALUATED = ("--eval-every", "3", "--eval-episodes", "2")
ROWS = (
    Row("torch-1-cartpole", "torch", 1, "CartPole-v1"),
    Row("torch-1-lander", "torch", 1, "LunarLander-v3", backends=("sync", "async")),
    Row("torch-1-pendulum-async", "torch", 1, "Pendulum-v1", backends=("async",)),
    Row("torch-1-cheetah", "torch", 1, "HalfCheetah-v5"),
    Row("torch-2-cartpole", "torch", 2, "CartPole-v1"),
    Row("torch-2-cheetah-async", "torch", 2, "HalfCheetah-v5", backends=("async",)),
    Row("torch-2-share-lander", "torch", 2, "LunarLander-v3", (SHARE,)),
    Row("torch-2-share-pendulum", "torch", 2, "Pendulum-v1", (SHARE,), ("sync", "async")),
    Row("torch-3-share-cartpole", "torch", 3, "CartPole-v1", (SHARE,)),
    Row("fabric-1-cartpole", "fabric", 1, "CartPole-v1"),
    Row("fabric-2-lander-async", "fabric", 2, "LunarLander-v3", backends=("async",)),
    Row("fabric-2-share-pendulum", "fabric", 2, "Pendulum-v1", (SHARE,)),
    Row("decoupled-1-cartpole", "decoupled", 2, "CartPole-v1"),
    Row("decoupled-1-overlap-lander", "decoupled", 2, "LunarLander-v3", (OVERLAP,)),
    Row("decoupled-2-pendulum", "decoupled", 3, "Pendulum-v1"),
    Row("decoupled-2-share-cheetah", "decoupled", 3, "HalfCheetah-v5", (SHARE,)),
    Row("decoupled-2-share-overlap-pendulum", "decoupled", 3, "Pendulum-v1", (SHARE, OVERLAP), ("async",)),
    Row("decoupled-2-overlap-cartpole", "decoupled", 3, "CartPole-v1", (OVERLAP,), ("sync", "async")),
    Row("torch-1-normalized-evaluated-hopper", "torch", 1, "Hopper-v5", (*NORMALIZED, *EVALUATED), ("sync", "async")),
    Row("torch-2-share-normalized-cheetah", "torch", 2, "HalfCheetah-v5", (SHARE, *NORMALIZED)),
    Row("torch-1-walker", "torch", 1, "BipedalWalker-v3"),
    Row("fabric-1-nested", "fabric", 1, NESTED, backends=("sync", "async")),
    Row("fabric-2-share-evaluated-masked", "fabric", 2, MASKED, (SHARE, *EVALUATED)),
    Row("fabric-1-images", "fabric", 1, IMAGES),
    Row("decoupled-1-overlap-normalized-evaluated", "decoupled", 2, "Pendulum-v1", (OVERLAP, *NORMALIZED, *EVALUATED)),
    Row("decoupled-2-share-masked", "decoupled", 3, MASKED, (SHARE,), ("async",)),
    Row("torch-2-lstm-lander", "torch", 2, "LunarLander-v3", LSTM, ("sync", "async")),
    Row("fabric-2-share-lstm-pendulum", "fabric", 2, "Pendulum-v1", (SHARE, *LSTM)),
    Row("decoupled-2-overlap-lstm-cartpole", "decoupled", 3, "CartPole-v1", (OVERLAP, *LSTM)),
    Row("launched-torch-1-cartpole", "torch", 1, "CartPole-v1", launched=True),
    Row("launched-torch-2-lander", "torch", 2, "LunarLander-v3", launched=True),
    Row("launched-fabric-2-share-cheetah", "fabric", 2, "HalfCheetah-v5", (SHARE,), launched=True),
    Row("launched-decoupled-1-overlap-pendulum", "decoupled", 2, "Pendulum-v1", (OVERLAP,), launched=True),
)


class Board:
    """Memory that this process shares with the ranks: what each is doing, and how it ended."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, mmap.PAGESIZE)
        self._numbers = memoryview(self._memory).cast("q")

    def clear(self) -> None:
        self._memory[:] = bytes(len(self._memory))

    def __getitem__(self, at: tuple[str, int]) -> int:
        return self._numbers[self._index(at)]

    def __setitem__(self, at: tuple[str, int], value: int) -> None:
        self._numbers[self._index(at)] = value

    def _index(self, at: tuple[str, int]) -> int:
        return ("phase", "pid", "exit", "calls").index(at[0]) * 8 + at[1]


BOARD = Board()


@dataclass
class Process:
    """What a forked rank knows of itself."""

    rank: int = 0
    fatal_call: int = 0
    """Which call that touches a file is its last; 0 for none."""
    part: float = 0.0
    """Of the bytes of a file, how many such a call has written, from 0 to 1."""


THIS = Process()


def in_phase(phase: str, function: Callable[..., Any], afterwards: str = "") -> Callable[..., Any]:
    """`function`, which tells the board that it runs."""

    def told(*args: Any, **named: Any) -> Any:
        before = BOARD["phase", THIS.rank]
        BOARD["phase", THIS.rank] = PHASES.index(phase)
        try:
            return function(*args, **named)
        finally:
            BOARD["phase", THIS.rank] = PHASES.index(afterwards) if afterwards else before

    return told


def fatal(function: Callable[..., Any], after: bool = False) -> Callable[..., Any]:
    """`function`, in whose n-th call, before or after its work, the process is killed."""

    def counted(*args: Any, **named: Any) -> Any:
        dies = is_fatal_call()
        if dies and not after:
            die()
        result = function(*args, **named)
        if dies:
            die()
        return result

    return counted


def is_fatal_call() -> bool:
    if PHASES[BOARD["phase", THIS.rank]] == "end" or THIS.rank != 0:
        return False
    BOARD["calls", 0] += 1
    return BOARD["calls", 0] == THIS.fatal_call


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def fatal_open(path: Any, mode: str = "r", *args: Any, **named: Any) -> Any:
    """`open` for `write_atomically`, whose file may get a part of its bytes only."""
    file = builtins.open(path, mode, *args, **named)  # noqa: SIM115
    if "w" not in mode or not is_fatal_call():
        return file

    class Torn:
        def __enter__(self) -> Torn:
            return self

        def __exit__(self, *_: object) -> None:
            file.close()

        def write(self, content: bytes) -> None:
            file.write(content[: int(len(content) * THIS.part)])
            file.flush()
            die()

    return Torn()


def prepare_for_forks(rows: list[Row]) -> None:
    """Have the functions of this process, and so of its forks, tell what they do and die when they are to."""
    for env_id in sorted({row.env_id for row in rows}):
        gymnasium.make(env_id).close()  # imports what it needs
    for collector in COLLECTORS.values():
        collector.collect = in_phase("rollout", collector.collect, "between")
    for script in SCRIPTS.values():
        script.ppo_update = in_phase("update", script.ppo_update, "between")
    run_setup.find_checkpoint = in_phase("resume", run_setup.find_checkpoint)
    run_setup.restore = in_phase("resume", run_setup.restore)
    Trackers.start = in_phase("resume", Trackers.start)  # cuts back what was logged after the checkpoint
    Run.merge = in_phase("exchange", Run.merge, "between")
    Run.finish = in_phase("end", Run.finish, "end")
    Checkpoints.save = in_phase("checkpoint", Checkpoints.save)
    files_module.open = fatal_open
    os.fsync, os.replace = fatal(os.fsync), fatal(fatal(os.replace), after=True)
    os.unlink = fatal(os.unlink)


@dataclass(frozen=True)
class Aim:
    """How a run is to be killed.

    Attributes:
        victim: `all`, `launcher`, or the number of a rank; rank 0 kills itself where `call` is given.
        seconds: when, from its start.
        call: or in which call that touches a file.
        part: of a file's bytes that such a call writes.
    """

    victim: str
    seconds: float = PATIENCE
    call: int = 0
    part: float = 0.0


@dataclass(frozen=True)
class Ended:
    """How a run ended: killed in a phase, by itself (`phase` empty), and what is wrong with that."""

    phase: str
    seconds: float
    wrong: str


def run_forked(row: Row, args: list[str], log: Path, aim: Aim | None) -> Ended:
    """Run a row's script in forks."""
    BOARD.clear()
    config = resolve(parse_flags(SCRIPT_CONFIGS[row.script], args), row.ranks, row.ranks)
    started = time.monotonic()
    sys.stdout.flush()
    launcher = os.fork()
    if launcher == 0:
        with no_way_back():
            os.setpgid(0, 0)
            redirect_to(log)
            THIS.fatal_call, THIS.part = (aim.call, aim.part) if aim else (0, 0.0)
            if row.ranks == 1:
                BOARD["pid", 0] = os.getpid()
                be_rank(row.script, config, 0, 1, 0)
            else:
                be_launcher(row, config)
    os.setpgid(launcher, launcher)  # here too: whoever is first
    phase = ""
    while is_running(launcher) and (lasted := time.monotonic() - started) < PATIENCE:
        if aim is not None and not aim.call and lasted >= aim.seconds:
            phase = kill_forked(aim, launcher)
            break
        time.sleep(0.002)
    left = reap(launcher, PATIENCE)
    exits = [BOARD["exit", rank] - 1 for rank in range(row.ranks)]
    if any(exits) and aim is not None and (phase or exits[0] == -1):
        phase = phase or PHASES[BOARD["phase", 0]]
        return Ended(phase, time.monotonic() - started, left)
    return Ended("", time.monotonic() - started, left or (f"statuses {exits}" if any(exits) else ""))


def kill_forked(aim: Aim, launcher: int) -> str:
    """Do it; what the victim, or rank 0, was doing."""
    rank = int(aim.victim) if aim.victim.isdigit() else 0
    phase = PHASES[BOARD["phase", rank]]
    if aim.victim == "all":
        os.killpg(launcher, signal.SIGKILL)
    else:
        with contextlib.suppress(ProcessLookupError):  # it has just ended by itself
            os.kill(BOARD["pid", rank] if aim.victim.isdigit() and BOARD["pid", rank] else launcher, signal.SIGKILL)
    return phase


class no_way_back:  # noqa: N801
    """In a fork: whatever happens inside, it does not return to what the parent was doing."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if error is not None:
            sys.excepthook(type(error), error, error.__traceback__)
            sys.stderr.flush()
        os._exit(70)


def redirect_to(log: Path) -> None:
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(handle, 1)
    os.dup2(handle, 2)


def be_launcher(row: Row, config: Any) -> None:
    """Fork the ranks and wait; when one fails, end the others as torchrun does."""
    port = free_port()
    pids = []
    for rank in range(row.ranks):
        pid = os.fork()
        if pid == 0:
            with no_way_back():
                be_rank(row.script, config, rank, row.ranks, port)
        BOARD["pid", rank] = pid
        pids.append(pid)
    failed = False
    while pids:
        pid, status = os.wait()
        pids.remove(pid)
        if status != 0 and not failed:
            failed = True
            for other in pids:
                os.kill(other, signal.SIGTERM)
    os._exit(failed)


def be_rank(script: str, config: Any, rank: int, size: int, port: int) -> None:
    """What a launcher's process does, but for the imports."""
    THIS.rank = rank
    if size > 1:
        place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size, "GROUP_RANK": 0}
        os.environ |= {key: str(value) for key, value in place.items()}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TORCHELASTIC_RUN_ID": "stress"}
        os.environ |= {"LT_CLI_USED": "1", "LT_ACCELERATOR": "cpu", "LT_DEVICES": str(size), "LT_NUM_NODES": "1"}
        os.environ["LT_STRATEGY"] = "ddp"
    die_with_parent()
    signals.install()
    script_module.end_process = functools.partial(leave, rank)
    script_module.run_script(SCRIPTS[script].main, config)


def leave(rank: int, status: int) -> None:
    """As `script.end_process`, seen on the board."""
    BOARD["exit", rank] = 1 + status
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def run_launched(row: Row, args: list[str], log: Path, aim: Aim | None) -> Ended:
    """Run a row's script through its real launcher."""
    started = time.monotonic()
    script = Path(SCRIPTS[row.script].__file__).stem.removeprefix("train_")
    words = command(script, 0 if row.ranks == 1 else row.ranks, *args)
    with log.open("ab") as out:
        launcher = subprocess.Popen(words, cwd=ROOT, stdout=out, stderr=out, env=clean_environment()).pid
    metrics = Path(args[args.index("--run-dir") + 1]) / "metrics.jsonl"
    phase = ""
    while (status := poll(launcher)) is None and (lasted := time.monotonic() - started) < PATIENCE:
        if aim is not None and lasted >= aim.seconds:
            written = metrics.stat().st_mtime if metrics.exists() else 0.0
            phase = "update" if time.time() - written < lasted - 1 else "start-up"
            kill_launched(aim, launcher)
            break
        time.sleep(0.02)
    left = reap(-1, PATIENCE)
    if phase:
        return Ended(phase, time.monotonic() - started, left)
    return Ended("", time.monotonic() - started, left or (f"status {status}" if status else ""))


def kill_launched(aim: Aim, launcher: int) -> None:
    ranks = rank_pids(launcher)
    everybody = [launcher, *descendants(launcher)]
    for pid in everybody if aim.victim == "all" else [ranks.get(aim.victim, launcher)]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def poll(pid: int) -> int | None:
    """A child's exit status, or None while it runs; it stays to be reaped."""
    ended = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    return None if ended is None else ended.si_status


def is_running(pid: int) -> bool:
    return poll(pid) is None


def reap(group: int, seconds: float) -> str:
    """Wait for the children (and orphans, which become ours) of a process group, -1 for all; what is wrong."""
    end = time.monotonic() + seconds
    wanted = -group if group > 0 else -1
    try:
        while time.monotonic() < end:
            if os.waitpid(wanted, os.WNOHANG) == (0, 0):
                time.sleep(0.01)
        for pid in descendants(os.getpid()):
            os.kill(pid, signal.SIGKILL)
        while True:
            os.waitpid(wanted, 0)
    except ChildProcessError:
        return "" if time.monotonic() < end else f"processes were left after {seconds:g} s"


def adopt_orphans() -> None:
    pr_set_child_subreaper = 36
    ctypes.CDLL(None).prctl(pr_set_child_subreaper, 1)


@dataclass(frozen=True)
class Outcome:
    """What a finished run left, without what tells the time."""

    policy: bytes
    metrics: list[dict[str, Any]]
    scalars: list[tuple[str, int, float]]
    summary: dict[str, Any]

    @classmethod
    def of(cls, run_dir: Path) -> Outcome:
        lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
        summary = json.loads((run_dir / "summary.json").read_text())
        timeless = [{key: value for key, value in line.items() if not key.startswith("Time/")} for line in lines]
        for name in ("wall_seconds", "train_seconds", "steps_per_second", "resumes"):
            del summary[name]
        return cls((run_dir / "policy.safetensors").read_bytes(), timeless, sorted(scalars_in(run_dir)), summary)

    def differences(self, other: Outcome) -> list[str]:
        return [name for name in vars(self) if getattr(self, name) != getattr(other, name)]


def scalars_in(run_dir: Path) -> Iterator[tuple[str, int, float]]:
    """Tag, step and value of TensorBoard's points, without those that tell the time."""
    for path in run_dir.glob("events.out.tfevents.*"):
        for record in RawEventFileLoader(str(path)).Load():
            event = Event.FromString(record)
            for value in event.summary.value:
                if not value.tag.startswith(("Time/", "hyperparameters")):
                    number = value.tensor.float_val[0] if value.tensor.float_val else value.simple_value
                    yield value.tag, event.step, number


def what_is_wrong(run_dir: Path, expected: Outcome) -> list[str]:
    """Of a finished run that had been killed."""
    found = Outcome.of(run_dir)
    wrong = [f"another {name}" for name in expected.differences(found)]
    if not found.summary["exact_resume"]:
        wrong.append("exact_resume is false")
    numbered = list(newest_first(run_dir / "checkpoints"))
    newest = Checkpoint.from_bytes(numbered[0].read_bytes())
    if len(numbered) != KEPT or newest.values["update"] != UPDATES:
        wrong.append(f"checkpoints {[path.name for path in numbered]}")
    best = run_dir / "checkpoints" / BEST
    best_return = Checkpoint.from_bytes(best.read_bytes()).values["return_mean"] if best.exists() else None
    if best_return != newest.values["best_return"]:
        wrong.append(f"the return of {BEST} is {best_return}, not {newest.values['best_return']}")
    wrong += [f"{path.name} is left" for path in run_dir.rglob("*") if path.suffix in (".tmp", ".damaged")]
    return wrong


@dataclass
class Tally:
    """What became of a row."""

    phases: collections.Counter[str] = field(default_factory=collections.Counter)
    runs: int = 0
    compared: int = 0
    wrong: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def kills(self) -> int:
        return sum(self.phases.values())


class Stress:
    """A row's runs."""

    def __init__(self, row: Row, folder: Path, rng: random.Random) -> None:
        self._row, self._folder, self._rng = row, folder, rng
        self._folder.mkdir(parents=True)
        self.tally = Tally()

    def run(self, kills: int) -> Tally:
        """Kill until `kills` is reached; what became of it."""
        started = time.monotonic()
        first = self._start("expected", None)
        if first.wrong:
            self.tally.wrong.append(f"uninterrupted: {first.wrong}")
            return self.tally
        self._length, self._calls = first.seconds, BOARD["calls", 0]
        expected = Outcome.of(self._folder / "expected")
        chain = 0
        while self.tally.kills < kills and chain < 10 * kills:
            chain += 1
            if self._is_finished(f"chain{chain}", self._rng.randint(1, min(LONGEST_CHAIN, kills - self.tally.kills))):
                self.tally.compared += 1
                wrong = what_is_wrong(self._folder / f"chain{chain}", expected)
                self.tally.wrong += [f"chain{chain}: {each}" for each in wrong]
                if not wrong:
                    shutil.rmtree(self._folder / f"chain{chain}")
        self.tally.seconds = time.monotonic() - started
        return self.tally

    def _is_finished(self, name: str, kills: int) -> bool:
        """A chain of up to so many kills and a run to the end."""
        while True:
            aim = self._aim(name) if kills > 0 else None
            ended = self._start(name, aim)
            if ended.wrong:
                self.tally.wrong.append(f"{name}: {ended.wrong}; see {self._folder / name}.log")
                return False
            if not ended.phase:
                return True
            kills -= 1
            self.tally.phases[ended.phase] += 1

    def _aim(self, name: str) -> Aim:
        rng = self._rng
        reached = next((int(path.stem[7:]) for path in newest_first(self._folder / name / "checkpoints")), 0)
        remaining = max(0.4, 1 - reached / UPDATES)
        if not self._row.launched and rng.random() < 1 / 3:
            return Aim("0", call=rng.randint(1, max(1, int(self._calls * remaining))), part=rng.random())
        victims = ["all"] if self._row.ranks == 1 else ["all", "launcher", *map(str, range(self._row.ranks))]
        return Aim(rng.choice(victims), rng.uniform(0, self._length * remaining))

    def _start(self, name: str, aim: Aim | None) -> Ended:
        self.tally.runs += 1
        run = run_launched if self._row.launched else run_forked
        log = self._folder / f"{name}.log"
        log.touch()  # a kill may come before the process has opened it
        ended = run(self._row, self._row.args(self._folder / name, self._rng.choice(self._row.backends)), log, aim)
        if not ended.wrong and OUR_TRACEBACK.search(log.read_text()):
            return Ended(ended.phase, ended.seconds, "a traceback")
        return ended


def report(tallies: dict[str, Tally]) -> Table:
    table = Table("row", "kills", *PHASES, "runs", "compared", "wrong", "seconds", title="", show_footer=True)
    for column in table.columns[1:]:
        column.justify = "right"
    lines = [
        [each.kills, *(each.phases[phase] for phase in PHASES), each.runs, each.compared, len(each.wrong), each.seconds]
        for each in tallies.values()
    ]
    for name, line in zip(tallies, lines, strict=True):
        table.add_row(name, *(f"{number:.0f}" for number in line))
    sums = [f"{sum(column):.0f}" for column in zip(*lines, strict=True)]
    for column, footer in zip(table.columns, ["all", *sums], strict=True):
        column.footer = footer
    return table


def shares(rows: list[Row], kills: int) -> list[int]:
    """So many kills over the rows; a row that goes through a launcher, whose runs take long, gets a third as many."""
    weights = [1 if row.launched else 3 for row in rows]
    given = [kills * weight // sum(weights) for weight in weights]
    for index in range(kills - sum(given)):
        given[index % len(rows)] += 1
    return given


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=150, help="in all (default: 150)")
    parser.add_argument("--seed", type=int, default=1, help="of the kills' moments (default: 1)")
    parser.add_argument("--rows", action="append", metavar="PATTERN", help="which rows, such as 'torch-*'; may repeat")
    parser.add_argument("--out", type=Path, help="new folder for run folders and logs (default: a temporary one)")
    parser.add_argument("--list", action="store_true", help="name the rows and end")
    given = parser.parse_args()
    rows = [row for row in ROWS if any(fnmatch.fnmatch(row.name, pattern) for pattern in given.rows or ["*"])]
    if given.list or not rows:
        print(*(row.name for row in ROWS), sep="\n")
        return 0 if given.list else 2
    out = given.out or Path(tempfile.mkdtemp(prefix="stress_"))
    adopt_orphans()
    prepare_for_forks(rows)
    tallies = {}
    for row, kills in zip(rows, shares(rows, given.kills), strict=True):
        tallies[row.name] = tally = Stress(row, out / row.name, random.Random(f"{given.seed} {row.name}")).run(kills)
        print(f"{row.name}: {tally.kills} kills, {tally.runs} runs, {tally.seconds:.0f} s", *tally.wrong, sep="\n  ")
    Console(width=180).print(report(tallies))
    wrong = sum(len(tally.wrong) for tally in tallies.values())
    print(f"seed {given.seed}; {'run folders and logs in ' + str(out) if wrong or given.out else 'nothing is left'}")
    if not wrong and not given.out:
        shutil.rmtree(out)
    return min(wrong, 1)


if __name__ == "__main__":
    sys.exit(main())

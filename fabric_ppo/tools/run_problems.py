"""Files that a run's folder lacks, or that cannot be read, in a sentence each."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from fabric_ppo.process.errors import ConfigError
from fabric_ppo.process.files import newest_first
from fabric_ppo.run.folder import CONFIG_FILE
from fabric_ppo.run.result import RunResult
from fabric_ppo.run.trackers.json_lines import METRICS_FILE

SUMMARY_FILE, POLICY_FILE = "summary.json", "policy.safetensors"
"""Results of a run, which its end writes."""


def problems_of(run: RunResult, state: str, made_all: bool) -> Iterator[str]:
    """Yield a text for each file that is missing, or cannot be read to its end.

    Args:
        run: the run.
        state: as `RunState` has it.
        made_all: true if all updates are made.
    """
    if not run.flags:
        yield f"{CONFIG_FILE} {_missing_or(run / CONFIG_FILE, 'cannot be read')}"
    yield from result_problems(run, state, made_all)
    try:
        with (run / METRICS_FILE).open("rb") as file:
            lines = sum(1 for _ in file)
    except OSError as error:
        if not isinstance(error, FileNotFoundError):
            yield f"{METRICS_FILE} cannot be read ({error.strerror})"
        return
    try:
        read = run.num_lines
    except ConfigError as error:
        yield str(error)
        return
    if read < lines:
        yield f"{METRICS_FILE} cannot be read after line {read} of {lines}"
    if left_out := read - len(run.metrics.get("update", ())):
        yield f"{METRICS_FILE} has updates more than once: {left_out} of {read} lines are left out"


def result_problems(run: RunResult, state: str, made_all: bool) -> Iterator[str]:
    """Yield a text for each result that a run should have; arguments as of `problems_of`."""
    has_checkpoint = any(newest_first(run / "checkpoints"))
    if state == "stopped" and made_all and not any((run / name).exists() for name in (SUMMARY_FILE, POLICY_FILE)):
        again = "; --resume writes them" if has_checkpoint else ""
        yield f"all updates are made, but {SUMMARY_FILE} and {POLICY_FILE} are missing{again}"
    again = "; --resume writes it again" if has_checkpoint and state == "done" else ""
    if (state == "done" or (run / SUMMARY_FILE).exists()) and not run.has_summary:
        yield f"{SUMMARY_FILE} {_missing_or(run / SUMMARY_FILE, 'cannot be read')}{again}"
    if state == "done" and not _is_whole(run / POLICY_FILE):
        yield f"{POLICY_FILE} {_missing_or(run / POLICY_FILE, 'is damaged')}{again}"


def _missing_or(path: Path, damaged: str) -> str:
    return damaged if path.exists() else "is missing"


def _is_whole(path: Path) -> bool:
    """Return True if a safetensors file is as long as its header says; its numbers are not read."""
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            size = path.stat().st_size
            header = json.loads(file.read(min(length, size)))
        ends = [int(each["data_offsets"][1]) for name, each in header.items() if name != "__metadata__"]
    except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError):
        return False
    return size == 8 + length + max(ends, default=0)

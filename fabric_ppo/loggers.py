"""Where metrics go: TensorBoard, one event an update, and `metrics.jsonl`, the same scalars, one line an update."""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fabric_ppo.checkpoint import write_atomically
from fabric_ppo.envs.base import Recorder
from fabric_ppo.errors import NotAllWrittenError
from fabric_ppo.launch import tell

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


class Writes:
    """Goes on where the disk is full or read-only; says so at once and at the end."""

    def __init__(self) -> None:
        """Nothing has failed yet."""
        self._failed: dict[str, str] = {}
        Recorder.unwritten = ""

    def do(self, what: str, write: Callable[..., object], *args: Any) -> bool:
        """Call `write(*args)`; whether that worked."""
        with self.tolerating(what):
            write(*args)
            return True
        return False

    @contextlib.contextmanager
    def tolerating(self, what: str) -> Iterator[None]:
        """Do what is inside, as far as `what` can be written."""
        try:
            yield
        except OSError as error:
            if what not in self._failed:
                tell(f"warning: {what} could not be written ({error}); the training goes on")
            self._failed[what] = str(error)

    def raise_if_incomplete(self) -> None:
        """Raise a NotAllWrittenError that names what could not be written."""
        failed = [f"{what} ({why})" for what, why in self._failed.items()]
        failed += [Recorder.unwritten] if Recorder.unwritten else []
        if failed:
            raise NotAllWrittenError(f"done, but not everything could be written: {'; '.join(failed)}")


class JsonLines:
    """Appends one JSON object a line, whole or not at all."""

    def __init__(self, path: Path) -> None:
        """Open `path` for appending."""
        self._file = path.open("ab", buffering=0)

    def write(self, values: Mapping[str, Any]) -> None:
        """Append one line.

        Raises:
            OSError: it cannot be written; the file ends with the line before.
        """
        line = json.dumps(values).encode() + b"\n"
        end = self._file.seek(0, os.SEEK_END)
        written = 0
        try:
            written = self._file.write(line)
            if written < len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError:
            self._file.truncate(end)
            raise

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def add_scalars(writer: SummaryWriter, metrics: Mapping[str, float], step: int) -> None:
    """`writer.add_scalar` for all `metrics`, as one event: a seventh of the price of as many events, and read alike."""
    from tensorboard.compat.proto.summary_pb2 import Summary

    values = [Summary.Value(tag=tag, simple_value=value) for tag, value in metrics.items()]
    file_writer: Any = writer.file_writer
    file_writer.add_summary(Summary(value=values), step)


def cut_back(run_dir: Path, updates: int, env_steps: int) -> None:
    """Take what was logged after an update out of a run's folder, so that a run that goes on there has one curve.

    Args:
        run_dir: with `metrics.jsonl` and TensorBoard's event files, which become one.
        updates: how many updates remain.
        env_steps: transitions until there.

    Raises:
        OSError: it cannot be written.
    """
    lines = run_dir / "metrics.jsonl"
    if lines.exists():
        os.truncate(lines, sum(map(len, _lines_until(lines.read_bytes(), updates))))
    events = sorted(run_dir.glob("events.out.tfevents.*"))
    if events:
        # TensorBoard reads files by name, which holds the time: this one comes first also where the clock went back
        whole = run_dir / "events.out.tfevents.0"
        write_atomically(whole, b"".join(_scalars_until(events, env_steps)))
        for path in events:
            if path != whole:
                path.unlink()


def _lines_until(content: bytes, updates: int) -> Iterator[bytes]:
    """The lines up to an update, or to one that is damaged."""
    for line in content.splitlines(keepends=True):
        try:
            goes_on = line.endswith(b"\n") and json.loads(line)["update"] <= updates
        except (ValueError, KeyError, TypeError, RecursionError):
            goes_on = False
        if not goes_on:
            return
        yield line


def _scalars_until(paths: list[Path], env_steps: int) -> Iterator[bytes]:
    """The records of event files that say what the file is, or a scalar up to `env_steps`; tests come again."""
    from tensorboard.summary.writer.record_writer import RecordWriter

    seen = set()  # a kill in the middle of cutting back leaves records in two files
    for path in paths:
        for event, record in _events(path):
            tags = tuple(value.tag for value in event.summary.value)
            key = (event.step, event.file_version, tags)
            is_scalar = 0 < event.step <= env_steps and not any(tag.startswith("Test/") for tag in tags)
            if (is_scalar or event.file_version) and key not in seen:
                seen.add(key)
                kept = io.BytesIO()
                RecordWriter(kept).write(record)
                yield kept.getvalue()


def _events(path: Path) -> Iterator[tuple[Any, bytes]]:
    """The events of a file and what they were read from, until the end or what is damaged."""
    from google.protobuf.message import DecodeError
    from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.tensorflow_stub.errors import OpError

    with contextlib.suppress(OpError, DecodeError):
        for record in RawEventFileLoader(str(path)).Load():
            yield Event.FromString(record), record


def markdown_table(values: Mapping[str, Any]) -> str:
    """Hyperparameters as TensorBoard's text plugin shows them."""
    rows = "\n".join(f"|{name}|{value}|" for name, value in values.items())
    return f"|hyperparameter|value|\n|-|-|\n{rows}"

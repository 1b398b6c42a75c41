"""TensorBoard: one event for each update, and the hyperparameters as text."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from fabric_ppo.process.files import write_atomically
from fabric_ppo.run.trackers.tracker import Position, Tracker


class TensorBoard(Tracker):
    """Tracker that writes event files directly into the run's folder."""

    label = "TensorBoard's events"

    def start(self, config: Mapping[str, Any], run_dir: Path, resumed_at: Position) -> None:
        """Open an event file, and remove events from older ones that will be logged again."""
        from torch.utils.tensorboard import SummaryWriter

        if events := sorted(run_dir.glob("events.out.tfevents.*")):
            _cut_back(events, resumed_at.env_steps)
        self._writer = SummaryWriter(run_dir)
        self._writer.add_text("hyperparameters", markdown_table(config))

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Write the scalars of an update as one event."""
        # one event takes a seventh of the time of one for each scalar, and TensorBoard reads both
        from tensorboard.compat.proto.summary_pb2 import Summary

        values = [Summary.Value(tag=tag, simple_value=value) for tag, value in metrics.items()]
        file_writer: Any = self._writer.file_writer
        file_writer.add_summary(Summary(value=values), step)

    def flush(self) -> None:
        """Write logged events to the disk."""
        self._writer.flush()

    def finish(self, summary: Mapping[str, Any] | None) -> None:
        """Write the test's mean return, if there was a test, and close the file."""
        try:
            if summary is not None and summary["test"].get("return_mean") is not None:
                score = {"Test/cumulative_reward": summary["test"]["return_mean"]}
                self.log(score, summary["env_steps"])
        finally:
            self._writer.close()


def _cut_back(events: list[Path], env_steps: int) -> None:
    """Merge `events` into one file, without those after `env_steps`, so that there is one curve."""
    # TensorBoard reads files in order of their names, which begin with the time: `0` comes first,
    # also where the clock was set back
    whole = events[0].with_name("events.out.tfevents.0")
    write_atomically(whole, b"".join(_scalars_until(events, env_steps)))
    for path in events:
        if path != whole:
            path.unlink()


def _scalars_until(paths: list[Path], env_steps: int) -> Iterator[bytes]:
    """Yield the records with a version or a scalar up to `env_steps`, except those of the test."""
    from tensorboard.summary.writer.record_writer import RecordWriter

    # a kill in the middle of `_cut_back` leaves records in two files
    seen = set()
    for path in paths:
        for event, record in _events(path):
            tags = tuple(value.tag for value in event.summary.value)
            key = (event.step, event.file_version, tags)
            is_test = any(tag.startswith("Test/") for tag in tags)
            is_scalar = 0 < event.step <= env_steps and not is_test
            if (is_scalar or event.file_version) and key not in seen:
                seen.add(key)
                kept = io.BytesIO()
                RecordWriter(kept).write(record)
                yield kept.getvalue()


def _events(path: Path) -> Iterator[tuple[Any, bytes]]:
    """Yield the events of a file with their records, up to the first damaged one."""
    from google.protobuf.message import DecodeError
    from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.tensorflow_stub.errors import OpError

    with contextlib.suppress(OpError, DecodeError):
        for record in RawEventFileLoader(str(path)).Load():
            yield Event.FromString(record), record


def markdown_table(values: Mapping[str, Any]) -> str:
    """Format hyperparameters for TensorBoard's text plugin."""
    rows = "\n".join(f"|{name}|{value}|" for name, value in values.items())
    return f"|hyperparameter|value|\n|-|-|\n{rows}"

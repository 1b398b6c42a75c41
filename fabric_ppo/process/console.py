"""Lines on the console, which may be closed, a full disk or a reader that has gone."""

from __future__ import annotations

import contextlib
import io
import math
import os
import sys
from collections.abc import Iterator
from contextvars import ContextVar
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer


_is_muted: ContextVar[bool] = ContextVar("is_muted", default=False)
_has_notes: ContextVar[bool] = ContextVar("has_notes", default=True)


@contextlib.contextmanager
def muted() -> Iterator[None]:
    """Print no line of this program in the block; what the user's own code prints is printed."""
    token = _is_muted.set(True)
    try:
        yield
    finally:
        _is_muted.reset(token)


@contextlib.contextmanager
def without_notes() -> Iterator[None]:
    """Print no notes in the block, as with `--quiet`; what is wrong is printed."""
    token = _has_notes.set(False)
    try:
        yield
    finally:
        _has_notes.reset(token)


def print_note(message: str) -> None:
    """Print one line on stderr that tells of nothing wrong, from rank 0 only."""
    if _has_notes.get():
        print_from_rank_zero(message)


def is_rank_zero() -> bool:
    """Return whether this process prints for all ranks; without a launcher it does."""
    return os.environ.get("RANK", "0") == "0"


def is_terminal(stream: TextIO | None) -> bool:
    """Return True if a stream is a terminal; a daemon has none, and an environment may close it."""
    with contextlib.suppress(OSError, ValueError):
        return stream is not None and stream.isatty()
    return False


def print_from_rank_zero(message: str) -> None:
    """Print one line on stderr, from rank 0 only."""
    if is_rank_zero():
        print_line(message, sys.stderr)


def print_line(message: str, stream: TextIO | None) -> None:
    """Print a line and flush; where nobody can read it, it is lost and the training goes on."""
    if stream is None or _is_muted.get():
        return
    with contextlib.suppress(OSError, ValueError):
        stream.write(f"{message}\n")  # in one piece: other ranks may write at the same time
    flush(stream)


def flush(stream: TextIO | None) -> None:
    """Flush a stream; where that fails, send what it holds and will hold to the null device."""
    if stream is None:
        return
    try:
        stream.flush()
    except (OSError, ValueError):
        # Python flushes once more when it ends, and would then exit with a status of its own
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


class _Tolerant(io.FileIO):
    """A descriptor whose output is lost, without an error, where it cannot be written.

    Attributes:
        error: of the first write that failed.
    """

    error: OSError | None = None

    def write(self, data: ReadableBuffer, /) -> int:
        """Write as `FileIO` does; return the size of what is lost, too."""
        try:
            return super().write(data)
        except OSError as error:
            self.error = self.error or error
            return memoryview(data).nbytes


def open_streams() -> None:
    """Give this process a stdout and a stderr that everybody can print on, libraries included.

    Closed descriptors are opened on the null device: otherwise the next file, such as a checkpoint,
    would get the number of stdout, and what C code prints with it. What the stream's encoding does
    not have is escaped. To be called once, first of all, by a process of this program.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            # it is the lowest that is free, and launched processes inherit it
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    sys.stdout, sys.stderr = _tolerant(sys.stdout, 1), _tolerant(sys.stderr, 2)


def _tolerant(stream: TextIO | None, descriptor: int) -> TextIO:
    """Return a stream like Python's own of a descriptor, on which printing raises nothing."""
    if stream is None:
        return io.TextIOWrapper(io.BufferedWriter(_Tolerant(descriptor, "w", closefd=False)), "utf-8")
    if not isinstance(stream, io.TextIOWrapper):
        return stream  # somebody else's, such as a notebook's
    stream.flush()
    raw = _Tolerant(stream.fileno(), "w", closefd=False)
    buffer = raw if stream.write_through else io.BufferedWriter(raw)
    return io.TextIOWrapper(
        buffer,
        stream.encoding,
        "backslashreplace",
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )


def lost_output(stream: TextIO | None) -> OSError | None:
    """Return why a stream of `open_streams` could not take all that was printed, as on a full disk.

    None where it could, and where nobody wanted to read on.
    """
    flush(stream)
    buffer = getattr(stream, "buffer", None)
    raw = getattr(buffer, "raw", buffer)
    error = raw.error if isinstance(raw, _Tolerant) else None
    return None if isinstance(error, BrokenPipeError) else error


@contextlib.contextmanager
def stdout_on_stderr() -> Iterator[None]:
    """Send to stderr what is printed on stdout meanwhile: by Python, by C code, by children."""
    stdout = sys.stdout
    _flush_all(stdout)
    with contextlib.ExitStack() as stack:
        stack.enter_context(contextlib.redirect_stdout(sys.stderr))
        kept = os.dup(1)
        stack.callback(os.close, kept)
        stack.callback(os.dup2, kept, 1)
        os.dup2(2, 1)
        stack.callback(_flush_all, stdout)
        yield


def end_stdout() -> None:
    """Send to stderr what is printed on stdout from here on, as by code that runs at exit."""
    _flush_all(sys.stdout)
    os.dup2(2, 1)


def _flush_all(stdout: TextIO | None) -> None:
    """Flush Python's streams, and what C code has printed."""
    import ctypes

    for stream in (stdout, sys.__stdout__, sys.stdout, sys.stderr):
        flush(stream)
    ctypes.CDLL(None).fflush(None)


def format_number(value: float) -> str:
    """Return a number in a few characters: three digits, or one decimal from 10 on."""
    if not math.isfinite(value):
        return str(value)
    return f"{value:,.1f}" if 10 <= abs(value) < 1e6 else f"{value:.3g}"

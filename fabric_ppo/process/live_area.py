"""An area below the text on a terminal that is drawn again and again, such as a panel.

The cursor rests on the empty line above the area. Whatever writes, this process or another one,
writes there, and the next drawing begins below that text: nothing is lost, and a terminal may
change its size at any time. No mode of the terminal is changed, so a process that is killed leaves
one that works.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from typing import Any, TextIO

from fabric_ppo.process.console import flush, is_terminal

_ERASE_LINE, _ERASE_BELOW = "\x1b[K", "\x1b[J"
_SECONDS_TO_WAIT = 0.5
"""Seconds that a print waits for another thread's, which may hang where a terminal is stopped."""
_MOST_HELD = 1000
"""Characters of a line without an end, above which it is printed."""


class LiveArea:
    """The last lines of the terminal that stdout is; what is printed meanwhile appears above them.

    From its making until `close` it stands in for `sys.stdout`, and for `sys.stderr` where that is
    the same terminal.
    """

    def __init__(self) -> None:
        """Begin empty; stdout must be a terminal."""
        assert is_terminal(sys.stdout)
        self._out, self._lines = sys.stdout, list[str]()
        self._lock, self._pid = threading.Lock(), os.getpid()
        self._was_suspended = self._is_closed = False
        self._streams = {"stdout": _Above(sys.stdout, self)}
        if is_terminal(sys.stderr) and _device(sys.stderr) == _device(sys.stdout):
            self._streams["stderr"] = _Above(sys.stderr, self)
        for name, stream in self._streams.items():
            setattr(sys, name, stream)
        self._handles_suspension = False
        # not where somebody else handles it, nor in a thread, which cannot set a handler
        if signal.getsignal(signal.SIGTSTP) == signal.SIG_DFL:
            with contextlib.suppress(ValueError):
                signal.signal(signal.SIGTSTP, self._suspend)
                self._handles_suspension = True

    def size(self) -> tuple[int, int]:
        """Return the columns and rows of the terminal, 80 and 24 where it has none."""
        with contextlib.suppress(OSError, ValueError):
            columns, rows = os.get_terminal_size(self._out.fileno())
            return columns or 80, rows or 24
        return 80, 24

    def draw(self, lines: Sequence[str]) -> None:
        """Show some lines, each narrower than the terminal, and fewer than it has rows."""
        with self._alone() as is_alone:
            if is_alone and not self._is_closed:
                self._lines = list(lines)
                self._write(self._out, self._frame())

    def print_above(self, stream: TextIO, text: str) -> None:
        """Print whole lines on `stream` above the area."""
        with self._alone() as is_alone:
            shows = is_alone and self._lines and not self._is_closed
            self._write(stream, f"{_ERASE_BELOW}{text}{self._frame()}" if shows else text)

    def is_left(self) -> bool:
        """Return True if the area is closed, or of another process, which this is a fork of."""
        return self._is_closed or os.getpid() != self._pid

    def close(self) -> None:
        """Leave the lines where they are, with the cursor below them; give the streams back."""
        if self.is_left():
            return
        for name, stream in self._streams.items():
            stream.release()
            if getattr(sys, name) is stream:
                setattr(sys, name, stream.stream)
        if self._handles_suspension:
            with contextlib.suppress(ValueError):
                signal.signal(signal.SIGTSTP, signal.SIG_DFL)
        with self._alone() as is_alone:
            if is_alone and self._lines and self._is_in_front():
                self._write(self._out, f"{self._shown()}\r\n")
            self._is_closed = True

    def _frame(self) -> str:
        """Return what draws the lines below the cursor, and takes it back to its line."""
        if not self._lines or not self._is_in_front():
            return ""
        return f"{self._shown()}\r\x1b[{len(self._lines)}A"

    def _shown(self) -> str:
        # in place, and what is left of longer lines after that: erased first, they would flicker
        lines = "".join(f"\r\n{line}{_ERASE_LINE}" for line in self._lines)
        return f"{_ERASE_LINE}{lines}{_ERASE_BELOW}"

    def _is_in_front(self) -> bool:
        """Return False where a shell has sent this process to the background."""
        if not self._was_suspended:
            return True  # some commands, such as timeout, run others in a group of their own
        with contextlib.suppress(OSError, ValueError):
            return os.tcgetpgrp(self._out.fileno()) == os.getpgrp()
        return True

    def _suspend(self, number: int, _: Any) -> None:
        """Take the lines away before Ctrl-Z stops the process; draw them again when it goes on."""
        if not self.is_left():
            with self._alone() as is_alone:
                if is_alone:
                    self._write(self._out, _ERASE_BELOW)
        signal.signal(number, signal.SIG_DFL)
        signal.raise_signal(number)  # the process stops here
        if not self.is_left():
            signal.signal(number, self._suspend)
            self._was_suspended = True
            self.draw(self._lines)

    @contextlib.contextmanager
    def _alone(self) -> Iterator[bool]:
        """Yield True if no other thread of this process writes meanwhile."""
        # a signal's handler may come in the middle of a drawing by its own thread, hence the limit;
        # in a fork the lock may be that of a thread that is not there
        has_lock = os.getpid() == self._pid and self._lock.acquire(timeout=_SECONDS_TO_WAIT)
        try:
            yield has_lock
        finally:
            if has_lock:
                self._lock.release()

    @staticmethod
    def _write(stream: TextIO, text: str) -> None:
        with contextlib.suppress(OSError, ValueError):
            stream.write(text)  # in one piece
        flush(stream)


class _Above:
    """Stream that prints above an area: line by line, as the cursor must be at a line's beginning.

    Attributes:
        stream: the stream that it stands in for, which has all else that is asked of it.
    """

    def __init__(self, stream: TextIO, area: LiveArea) -> None:
        self.stream, self._area, self._held = stream, area, ""

    def write(self, text: str) -> int:
        """Print the lines that have ended, and hold the rest back."""
        if self._area.is_left():
            return self.stream.write(text)
        lines, newline, rest = (self._held + text).rpartition("\n")
        # a bar of another program begins its line again and again
        self._held = rest.rpartition("\r")[2] if not rest.endswith("\r") else rest
        if len(self._held) > _MOST_HELD:
            lines, newline, self._held = f"{lines}{newline}{self._held}", "\n", ""
        if newline:
            self._area.print_above(self.stream, lines + newline)
        return len(text)

    def writelines(self, lines: Sequence[str]) -> None:
        """Write each of some texts."""
        for line in lines:
            self.write(line)

    def release(self) -> None:
        """Print what was held back, as a line."""
        if self._held and not self._area.is_left():
            self._area.print_above(self.stream, f"{self._held}\n")
        self._held = ""

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def _device(stream: TextIO) -> int:
    """Return the number of the terminal that a stream is; -1 where it has no descriptor."""
    with contextlib.suppress(OSError, ValueError):
        return os.fstat(stream.fileno()).st_rdev
    return -1

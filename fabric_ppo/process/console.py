"""Lines on the console, which may be a full disk or a closed terminal."""

from __future__ import annotations

import contextlib
import os
import sys
from typing import TextIO


def is_rank_zero() -> bool:
    """Return whether this process prints for all ranks; without a launcher it does."""
    return os.environ.get("RANK", "0") == "0"


def print_from_rank_zero(message: str) -> None:
    """Print one line on stderr, from rank 0 only."""
    if is_rank_zero():
        print_line(message, sys.stderr)


def print_line(message: str, stream: TextIO) -> None:
    """Print a line and flush; where nobody can read it, it is lost and the training goes on."""
    with contextlib.suppress(OSError, ValueError):
        stream.write(f"{message}\n")  # in one piece: other ranks may write at the same time
    flush(stream)


def flush(stream: TextIO) -> None:
    """Flush a stream; where that fails, send what it holds and will hold to the null device."""
    try:
        stream.flush()
    except (OSError, ValueError):
        # Python flushes once more when it ends, and would then exit with a status of its own
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())

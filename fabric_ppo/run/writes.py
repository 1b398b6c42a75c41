"""Writing that may fail: training continues if the disk is full or read-only."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from fabric_ppo.process.console import print_from_rank_zero
from fabric_ppo.process.errors import NotAllWrittenError, one_line, reason_line
from fabric_ppo.process.frames import locate_error


class Writes:
    """Record of failed writes: each is printed at once, and named again at the end of the run."""

    def __init__(self) -> None:
        """Start without a failed write."""
        self._failed: dict[str, str] = {}

    def do(self, what: str, write: Callable[..., object], *args: Any) -> bool:
        """Call `write(*args)`, which writes `what`; return False if it raised an OSError."""
        with self.tolerating(what):
            write(*args)
            return True
        return False

    @contextlib.contextmanager
    def tolerating(
        self, what: str, errors: type[Exception] | tuple[type[BaseException], ...] = OSError
    ) -> Iterator[None]:
        """Suppress `errors` of the block, and record that `what` was not written."""
        try:
            yield
        except errors as error:
            why = one_line(str(error)) if isinstance(error, OSError) else reason_line(locate_error(error))
            # once, not in every update: what failed will mostly fail again
            if what not in self._failed:
                message = f"warning: {what} could not be written ({why}); the run goes on without"
                print_from_rank_zero(message)
            self._failed[what] = why

    def note(self, error: OSError) -> None:
        """Record an error that was already printed, with text that names the unwritten files."""
        self._failed[str(error)] = ""

    def raise_if_incomplete(self) -> None:
        """Raise a NotAllWrittenError that names what could not be written."""
        if self._failed:
            named = [f"{what} ({why})" if why else what for what, why in self._failed.items()]
            raise NotAllWrittenError(f"done, but not everything could be written: {'; '.join(named)}")

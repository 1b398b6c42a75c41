"""Wording of what ended a rank: one line for a known kind of failure, a traceback for a bug."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
import traceback

from fabric_ppo.process.errors import EnvironmentFault, LostContactError, TrainingError, describe_error, first_line
from fabric_ppo.process.frames import user_frames

ENVIRONMENTAL_ERRNOS = (*(errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EFBIG, errno.EIO),)
"""Errors of the machine, not of the program: full, read-only, forbidden or broken disks."""
_CALLBACK_TRACE = "_trace_in_callback"
"""Attribute of an error that came from a callback: its text for the terminal."""


def format_failure(error: BaseException) -> str:
    """Return the text of a failed rank: a known failure in one line, a bug with its traceback."""
    rank = os.environ.get("RANK", "0")
    if trace := getattr(error, _CALLBACK_TRACE, ""):
        return f"error: rank {rank}: {trace}"
    if isinstance(error, (EnvironmentFault, TrainingError)):
        return f"error: rank {rank}: {error}"
    if isinstance(error, OSError) and error.errno in ENVIRONMENTAL_ERRNOS:
        return f"error: rank {rank}: {error}"
    if is_lost_contact(error):
        return f"rank {rank} stops: it lost contact with another rank ({first_line(error)})"
    return "".join(traceback.format_exception(error)).rstrip()


def mark_callback(error: BaseException, callback: str, method: str) -> None:
    """Have the failure that an error of a user's callback becomes name that, with the user's lines alone.

    The error itself stays as it is: a program around the training gets it.
    """
    lines = "".join(traceback.format_list(user_frames(error)))
    with contextlib.suppress(AttributeError, TypeError):  # some errors take no attributes
        trace = f"the callback {callback}: {method} raised {describe_error(error)}\n{lines}".rstrip()
        setattr(error, _CALLBACK_TRACE, trace)


def is_lost_contact(error: BaseException) -> bool:
    """Return whether a collective failed because another rank died or did not answer."""
    # a process that never imported torch.distributed cannot hold one of its errors
    distributed = sys.modules.get("torch.distributed")
    is_dist_error = distributed is not None and isinstance(error, distributed.DistError)
    return (
        is_dist_error
        or isinstance(error, LostContactError)
        # gloo raises no type of its own
        or (isinstance(error, RuntimeError) and "gloo" in str(error))
    )

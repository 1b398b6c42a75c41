"""Lines of code that an error came through: which of them are the user's own."""

from __future__ import annotations

import sysconfig
import traceback
from pathlib import Path

from fabric_ppo.process.errors import describe_error

_PACKAGE = Path(__file__).parents[1]
_INSTALLED = tuple(Path(sysconfig.get_path(name)) for name in ("stdlib", "purelib", "platlib"))
"""Folders of Python's own modules and of libraries, which have versions."""


def is_installed(path: Path) -> bool:
    """Return True if a file belongs to Python, to a library or to this package."""
    folders = path.resolve().parents
    is_library = any(part in path.parts for part in ("site-packages", "dist-packages"))
    return is_library or _PACKAGE in folders or any(each.resolve() in folders for each in _INSTALLED)


def user_frames(error: BaseException) -> list[traceback.FrameSummary]:
    """Return the frames of an error's traceback that are the user's own code, the outermost first."""
    return [each for each in traceback.extract_tb(error.__traceback__) if _is_users(each.filename)]


def _is_users(filename: str) -> bool:
    if not Path(filename).is_absolute():
        return not filename.startswith("<frozen")  # of a notebook's cell, or of `python -c`
    return not is_installed(Path(filename))


def telling_frame(error: BaseException) -> traceback.FrameSummary | None:
    """Return the frame that says most about an error: the user's last one, else where this package raised it.

    None for an error of a library: its place there says nothing to a user.
    """
    if own := user_frames(error):
        return own[-1]
    frames = traceback.extract_tb(error.__traceback__)
    return frames[-1] if frames and _PACKAGE in Path(frames[-1].filename).parents else None


def locate_error(error: BaseException) -> str:
    """Return the type and text of an error, and the line of code that raised it, as `telling_frame` has it."""
    frame = telling_frame(error)
    return describe_error(error) + (f" in {frame.filename}, line {frame.lineno}" if frame else "")

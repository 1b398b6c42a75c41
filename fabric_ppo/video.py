"""A recorded episode as a GIF, small enough for a README."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

_FRAMES_PER_SECOND = 20
_HEIGHT = 240


@contextlib.contextmanager
def recorded_gif(path: str | None) -> Iterator[str]:
    """A folder to record into, empty for no recording; what lies there at the end becomes the GIF `path`."""
    if path is None:
        yield ""
        return
    from moviepy import VideoFileClip

    with tempfile.TemporaryDirectory() as folder:
        yield folder
        (video,) = Path(folder).glob("*.mp4")
        with VideoFileClip(str(video)) as clip:
            clip.resized(height=_HEIGHT).write_gif(path, fps=_FRAMES_PER_SECOND, logger=None)

"""GIF of a recorded episode, small enough for a README."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

from fabric_ppo.process.errors import ConfigError

_FRAMES_PER_SECOND = 20
_HEIGHT = 240
"""Height of the GIF in pixels."""


@contextlib.contextmanager
def recorded_gif(path: str | None, video_dir: str) -> Iterator[str]:
    """Yield a folder to record into, and at the end convert the video in it to a GIF.

    Args:
        path: GIF to write; None for none.
        video_dir: folder in which the video is to stay; empty for none.

    Raises:
        ConfigError: `path` is no file in an existing folder.
    """
    if path is None:
        yield video_dir
        return
    if not Path(path).absolute().parent.is_dir() or Path(path).is_dir():
        raise ConfigError(f"--gif {path}: a file in an existing folder is expected")
    from moviepy import VideoFileClip

    with tempfile.TemporaryDirectory() as folder:
        recorded = video_dir or str(Path(folder) / "video")
        yield recorded
        if not (videos := list(Path(recorded).glob("*.mp4"))):
            return  # the reason has been printed
        video = max(videos, key=lambda file: file.stat().st_mtime)
        with VideoFileClip(str(video)) as clip:
            clip.resized(height=_HEIGHT).write_gif(path, fps=_FRAMES_PER_SECOND, logger=None)

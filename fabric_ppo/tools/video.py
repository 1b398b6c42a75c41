"""GIF of a recorded episode, small enough for a README."""

from __future__ import annotations

import contextlib
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from fabric_ppo.process.console import print_line
from fabric_ppo.process.errors import USER_ERRORS, ConfigError, first_line
from fabric_ppo.process.files import write_atomically

_FRAMES_PER_SECOND = 20
_HEIGHT = 240
"""Height of the GIF in pixels."""


@dataclass
class Recording:
    """A folder to record into, and "FILE (REASON)" if the GIF could not be written, else empty."""

    folder: str
    unwritten: str = ""


@contextlib.contextmanager
def recorded_gif(path: str | None, video_dir: str) -> Iterator[Recording]:
    """Yield a folder to record into, and at the end convert the video in it to a GIF.

    A GIF that cannot be written costs a warning, and is noted in the recording.

    Args:
        path: GIF to write; None for none.
        video_dir: folder in which the video is to stay; empty for none.

    Raises:
        ConfigError: `path` is no file in an existing folder.
    """
    if path is None:
        yield Recording(video_dir)
        return
    if not Path(path).absolute().parent.is_dir() or (Path(path).exists() and not Path(path).is_file()):
        raise ConfigError(f"--gif {path}: a file in an existing folder is expected")
    with tempfile.TemporaryDirectory() as folder:
        recording = Recording(video_dir or str(Path(folder) / "video"))
        before = _videos(recording.folder)
        yield recording
        new = {video: time for video, time in _videos(recording.folder).items() if before.get(video) != time}
        if not new:
            return  # the reason has been printed
        try:
            write_atomically(Path(path), _convert(max(new, key=lambda video: new[video]), Path(folder)))
        except USER_ERRORS as error:
            reason = getattr(error, "strerror", None) or first_line(error)
            recording.unwritten = f"{path} ({reason})"
            print_line(f"warning: {recording.unwritten} could not be written", sys.stderr)


def _videos(folder: str) -> dict[Path, int]:
    """Return the videos in a folder, and when each was written, in nanoseconds."""
    return {video: video.stat().st_mtime_ns for video in Path(folder).glob("*.mp4")}


def _convert(video: Path, folder: Path) -> bytes:
    """Return a video as a GIF, for which `folder` has room."""
    from moviepy import VideoFileClip

    gif = folder / "episode.gif"
    with VideoFileClip(str(video)) as clip:
        clip.resized(height=_HEIGHT).write_gif(str(gif), fps=_FRAMES_PER_SECOND, logger=None)
    return gif.read_bytes()

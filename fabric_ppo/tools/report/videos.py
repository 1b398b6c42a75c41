"""Videos of test episodes inside the page."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fabric_ppo.tools.report.runs import ReportRun

_MEGABYTE = 1_000_000


@dataclass(frozen=True)
class Video:
    """Video of a run's test: its bytes as a `data:` address, empty where it is left out; and why."""

    run: str
    source: str
    note: str = ""


def videos_of(groups: Sequence[Sequence[ReportRun]], megabytes: float) -> list[Video]:
    """Return the newest test video of the first run of each group that has one.

    Args:
        groups: runs of each group.
        megabytes: bound on all of them; one that does not fit in is left out with a note.
    """
    found, left = [], megabytes * _MEGABYTE
    for runs in groups:
        recorded = ((run, path) for run in runs for path in [newest_video(run)] if path is not None)
        run, path = next(recorded, (None, None))
        if run is None or path is None:
            continue
        try:
            size = path.stat().st_size
            content = path.read_bytes() if size <= left else b""
        except OSError as error:
            found.append(Video(run.short, "", f"test_videos/{path.name} cannot be read ({error.strerror})."))
            continue
        if size > left:
            reason = f"test_videos/{path.name} is left out: its {size / _MEGABYTE:.1f} MB do not fit in"
            found.append(Video(run.short, "", f"{reason} --video-megabytes {megabytes:g}."))
            continue
        left -= size
        found.append(Video(run.short, f"data:video/mp4;base64,{base64.b64encode(content).decode()}"))
    return found


def newest_video(run: ReportRun) -> Path | None:
    """Return the newest video of a test of a run; None for none."""
    files = [path for path in (run.result / "test_videos").glob("*.mp4") if path.is_file()]
    return max(files, key=lambda path: path.stat().st_mtime, default=None)

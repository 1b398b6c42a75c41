"""`report`: runs as one HTML file, which needs no network."""

from __future__ import annotations

import argparse
import math
from pathlib import Path

from fabric_ppo.process.errors import ConfigError
from fabric_ppo.process.files import require_text_path
from fabric_ppo.tools.command_parser import CommandParser
from fabric_ppo.tools.help import Entry

ENTRY = Entry("report RUN_DIR ... --out FILE", "Write a page about runs: scores, curves, diagnostics.")
"""Row of this command on the page of all."""


def run(args: list[str]) -> int:
    """Write the report of runs."""
    from fabric_ppo.tools.find_runs import named_runs
    from fabric_ppo.tools.report.page import VIDEO_MEGABYTES, write_report

    parser = CommandParser("fabric-ppo report")
    parser.description = "Write one HTML file about runs, which opens without a network."
    parser.add_argument("run_dirs", metavar="RUN_DIR", nargs="+", help="Folders of runs, or of folders with runs.")
    parser.add_argument("--out", required=True, metavar="FILE", help="Page to write: .html.")
    megabytes = f"Bound on the videos inside the page, in MB; 0: none. (default: {VIDEO_MEGABYTES:g})"
    parser.add_argument("--video-megabytes", type=_size, default=VIDEO_MEGABYTES, metavar="X", help=megabytes)
    given = parser.parse_args(args)
    runs = named_runs(given.run_dirs)
    require_text_path("--out", given.out)
    if Path(given.out).suffix.lower() not in (".html", ".htm"):
        raise ConfigError(f"--out {given.out}: a file that ends with .html is expected")
    write_report([run.run_dir for run in runs], Path(given.out), given.video_megabytes)
    print(given.out)
    return 0


def _size(text: str) -> float:
    """Return a size from 0 up."""
    try:
        size = float(text)
    except ValueError:
        size = math.nan
    if not 0 <= size < math.inf:
        raise argparse.ArgumentTypeError(f"{text}: a number from 0 up is expected")
    return size

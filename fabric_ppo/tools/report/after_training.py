"""Report of the run that a training has just made, for `make train`.

    python -m fabric_ppo.tools.report.after_training MARKER FLAGS ...

MARKER is a file that was written before the training started; FLAGS are those of the training, of
which `--run-dir` and `--log-dir` say where its folder is. `report.html` is written into the folder,
and its path is printed. What keeps it from being written costs a warning: the training is done.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from fabric_ppo.config import Config
from fabric_ppo.process.console import print_line
from fabric_ppo.process.errors import ConfigError
from fabric_ppo.tools.report.page import write_report

REPORT_FILE = "report.html"
"""Name of a report in the folder of its run."""


def main(args: Sequence[str]) -> None:
    """Write the report of the run that has finished since the marker, if there is one."""
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("marker", type=Path)
    given, flags = parser.parse_known_args(args)
    run_dir = finished_since(given.marker, flags)
    if run_dir is not None:
        report_beside([run_dir], run_dir)


def finished_since(marker: Path, flags: Sequence[str]) -> Path | None:
    """Return the folder of the run that finished last, after `marker` was written; None for none."""
    parser = argparse.ArgumentParser(allow_abbrev=False, add_help=False)
    for names in (("--run-dir", "--run_dir"), ("--log-dir", "--log_dir")):
        parser.add_argument(*names)
    given, _ = parser.parse_known_args(list(flags))
    folder, pattern = (given.run_dir, "summary.json") if given.run_dir else (given.log_dir, "**/summary.json")
    times = {path.parent: path.stat().st_mtime_ns for path in Path(folder or Config.log_dir).glob(pattern)}
    started = marker.stat().st_mtime_ns
    return max((path for path, at in times.items() if at >= started), key=lambda path: times[path], default=None)


def report_beside(run_dirs: Sequence[Path], folder: Path) -> None:
    """Write the report of runs into a folder, and print where it is, or a warning."""
    try:
        write_report(run_dirs, folder / REPORT_FILE)
    except ConfigError as error:
        print_line(f"warning: no report: {error}", sys.stderr)
    else:
        print_line(f"report  {folder / REPORT_FILE}", sys.stdout)


if __name__ == "__main__":
    main(sys.argv[1:])

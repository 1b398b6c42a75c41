"""`plot`: curves of runs, as a picture."""

from __future__ import annotations

import argparse
import re
import sys
from dataclasses import replace
from pathlib import Path

from fabric_ppo.process.console import print_line
from fabric_ppo.process.errors import ConfigError
from fabric_ppo.process.files import require_text_path
from fabric_ppo.tools.command_parser import CommandParser, count, names
from fabric_ppo.tools.help import Entry

ENTRY = Entry("plot RUN_DIR ... --out FILE", "Draw learning curves.")
"""Row of this command on the page of all."""
_LARGEST = 100.0
"""Inches that a picture may be wide or high."""


def run(args: list[str]) -> int:
    """Draw curves of runs into a picture."""
    given = _parser().parse_args(args)
    require_text_path("--out", given.out)
    if given.smooth < 1:
        raise ConfigError(f"--smooth {given.smooth}: a number of updates from 1 up is expected")
    from fabric_ppo.tools.find_runs import named_runs
    from fabric_ppo.tools.plot import Look, draw_panels, panels_size, require_kind
    from fabric_ppo.tools.plot_legend import Room
    from fabric_ppo.tools.plot_lines import (
        Drawn,
        above_zero,
        escaped,
        panels_of,
        remarks,
        seed_groups,
        single_runs,
        with_labels,
        without_empty,
    )
    from fabric_ppo.tools.run_names import in_numeric_order

    require_kind(Path(given.out))
    # labels are given in the order of the lines
    runs = named_runs(given.run_dirs if given.labels else in_numeric_order(given.run_dirs))
    found = seed_groups(runs, given.group_by) if given.bands or given.group_by else single_runs(runs)
    drawn = Drawn(given.metric, given.x, given.smooth)
    look = Look("", given.title, given.size, given.style, given.log_y)
    longest = Room.below(*panels_size(len(drawn.metrics), look)).longest_label(len(found))
    labelled = with_labels(found, given.labels) if given.labels else escaped(found, longest)
    panels, x_title = panels_of(labelled, drawn, given.log_y)
    panels, lost = above_zero(panels) if given.log_y else (panels, [])
    draw_panels(Path(given.out), without_empty(panels), replace(look, x_title=x_title))
    for line in (*remarks(found, drawn), *lost):
        print_line(f"note: {line}", sys.stderr)
    print(given.out)
    return 0


def _parser() -> CommandParser:
    parser = CommandParser("fabric-ppo plot")
    parser.description = (
        "Draw curves of runs into a picture: a line for each run, or with --bands or --group-by the interquartile "
        "mean of a group's runs and its 95 % bootstrap interval, where all of them have values."
    )
    folders = "Folders of runs, folders with runs in them, or patterns."
    parser.add_argument("run_dirs", metavar="RUN_DIR", nargs="+", help=folders)
    parser.add_argument("--out", required=True, metavar="FILE", help="Picture to write: .svg, .png or .pdf.")
    metric = "Metrics of metrics.jsonl, a panel each. (default: Rewards/rew_avg)"
    parser.add_argument("--metric", type=names, default=["Rewards/rew_avg"], metavar="NAME[,NAME]", help=metric)
    axis = "Horizontal axis; wall-time is time of training, without start, test and interruptions. "
    axes = ("transitions", "wall-time", "updates")
    parser.add_argument("--x", choices=axes, default=axes[0], help=f"{axis}(default: transitions)")
    bands = "One line with a band for all runs that differ only by seed, or by flags that only look at a run."
    parser.add_argument("--bands", action="store_true", help=bands)
    by = "One line with a band for all runs with the same values of these flags."
    parser.add_argument("--group-by", type=names, metavar="FLAG[,FLAG]", help=by)
    smooth = "Draw the mean of each value of a run and the N - 1 logged before it, fewer at the start. (default: 1)"
    parser.add_argument("--smooth", type=count, default=1, help=smooth)
    parser.add_argument("--log-y", action="store_true", help="Logarithmic vertical axes.")
    parser.add_argument("--title", default="", metavar="TEXT", help="Text above the picture.")
    labels = "Texts of the legend, in the order of the lines."
    parser.add_argument("--labels", type=names, metavar="TEXT[,TEXT]", help=labels)
    size = "Width and height in inches, as 7x4."
    parser.add_argument("--size", type=_size, metavar="WxH", help=size)
    style = "Style sheet of matplotlib: a file, or the name of one of its own."
    parser.add_argument("--style", default="", metavar="FILE|NAME", help=style)
    return parser


def _size(text: str) -> tuple[float, float]:
    """Return width and height."""
    numbers = re.fullmatch(r"(\d+\.?\d*|\.\d+)[x,](\d+\.?\d*|\.\d+)", text.strip())
    if numbers is None or not all(0.5 <= float(each) <= _LARGEST for each in numbers.groups()):
        raise argparse.ArgumentTypeError(
            f"{text}: width and height from 0.5 to {_LARGEST:g} inches, as 7x4, are expected"
        )
    return float(numbers[1]), float(numbers[2])

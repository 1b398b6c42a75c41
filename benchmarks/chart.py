"""A picture of the results: for each workload a bar for every program, as an SVG for README and docs.

    python -m benchmarks.chart                      # all workloads in benchmarks/results
    python -m benchmarks.chart p1 p5 --out some.svg

A bar is the median of the seconds from start to end; the full part of it is training, where the program tells
that. Bars of a workload share a scale; its first row has the ratio 1. A row that could not run is left out.
"""

from __future__ import annotations

import argparse
import json
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

from benchmarks.install import ROOT
from benchmarks.report import Run, good, ratios, spread
from benchmarks.workloads import Work, Workload, workloads

RESULTS = ROOT / "benchmarks" / "results"
WIDTH = 830  # of README on GitHub
LABELS, BARS = 316, 640  # where labels end and bars may end; figures stand behind the bars
LABEL_WIDTH = 34  # characters; bold ones of a wide font take 8.5 units each
LINE, GAP, TITLE, MARGIN = 16, 10, 46, 20

STYLE = """
  svg { --page: #ffffff; --text: #1f2328; --weak: #59636e; --ours: #0550ae; --theirs: #818b98; }
  @media (prefers-color-scheme: dark) {
    svg { --page: #0d1117; --text: #f0f6fc; --weak: #9198a1; --ours: #58a6ff; --theirs: #7d8590; }
  }
  text { font: 13px ui-sans-serif, system-ui, "Segoe UI", Helvetica, Arial, sans-serif; fill: var(--text); }
  .page { fill: var(--page); stroke: var(--weak); stroke-opacity: 0.3; }
  .title { font-size: 15px; font-weight: 600; }
  .weak { fill: var(--weak); font-size: 12px; }
  .label { text-anchor: end; }
  .us { font-weight: 600; }
  .ours { fill: var(--ours); }
  .theirs { fill: var(--theirs); }
  .rest { opacity: 0.45; }
"""


@dataclass(frozen=True)
class Bar:
    """A row of a workload: medians in seconds, or the problem for which it has none."""

    row: str
    seconds: float = 0.0
    training: float | None = None
    ratio: float | None = None
    problem: str = ""

    @property
    def ours(self) -> bool:
        """True for the scripts of this program."""
        return self.row.startswith("train_")

    @property
    def label(self) -> list[str]:
        """The row's name, in lines."""
        short = self.row.replace(" --env-backend envpool", ", EnvPool").replace(
            " --shared-trunk", ", shared\u00a0trunk"
        )
        return textwrap.wrap(short.replace("--config configs/", ""), LABEL_WIDTH, break_on_hyphens=False)

    @property
    def figures(self) -> str:
        """`10.5 s, 1.29 times`, or what went wrong."""
        if self.problem:
            return self.problem
        return f"{self.seconds:,.1f} s" + (f", {self.ratio:.2f} times" if self.ratio is not None else "")


@dataclass(frozen=True)
class Group:
    """A workload's part of the picture."""

    title: str
    about: str
    bars: list[Bar]


def read_group(path: Path) -> Group:
    """Read the results of a workload, as `benchmarks.compare` wrote them.

    Raises:
        KeyError: no workload has the file's name.
    """
    told: dict[str, Any] = json.loads(path.read_text())
    known = {each.name for each in fields(Work)}
    work = Work(**{name: value for name, value in told["workload"].items() if name in known})
    title = workloads("", 1, 0.0)[told["workload"]["name"]].title
    workload = Workload(told["workload"]["name"], title, work, (), "")
    runs = [Run(**run) for run in told["runs"]]
    bars = [make_bar(workload, runs, row) for row in dict.fromkeys(run.row for run in runs)]
    aim = f"{work.env_steps:,} transitions" if work.stop_at_return is None else f"until {work.stop_at_return:g}"
    machine = f"{told['machine']['cpu']}, {told['machine']['cores']} cores"
    return Group(f"{workload.name.upper()}: {title}", f"{aim}; {told['date'].split()[0]}, {machine}", bars)


def make_bar(workload: Workload, runs: Sequence[Run], row: str) -> Bar:
    """Take the medians of a row's good runs, and how many times as long as the first row's they are."""
    own = [run for run in runs if run.row == row]
    fine = good(own)
    if not fine:
        return Bar(row, problem=textwrap.shorten(own[0].problem, 54, placeholder=" ..."))
    trained = [run.train_seconds for run in fine if run.train_seconds is not None]
    ratio = ratios(workload, runs, row, "wall_seconds")
    return Bar(
        row,
        spread([run.wall_seconds for run in fine]).median,
        spread(trained).median if trained else None,
        ratio.median if ratio is not None else None,
    )


def text(x: float, y: float, words: str, kind: str = "") -> str:
    """Return a line of text whose baseline is at `y`."""
    of_kind = f' class="{kind}"' if kind else ""
    return f'<text x="{x:g}" y="{y:g}"{of_kind}>{escape(words)}</text>'


def draw_bar(bar: Bar, longest: float, top: float) -> tuple[list[str], float]:
    """Draw a row from `top` down; what was drawn, and its height."""
    lines, whose = bar.label, "ours" if bar.ours else "theirs"
    height, scale = LINE * len(lines), (BARS - LABELS - 8) / longest
    middle = top + height / 2
    drawn = [
        text(LABELS, top + LINE * number + 12, line, "label us" if bar.ours else "label")
        for number, line in enumerate(lines)
    ]
    parts = [(bar.seconds, f"{whose} rest")] if bar.seconds else []
    parts += [(bar.training, whose)] if bar.training else []
    where = f'x="{LABELS + 8}" y="{middle - LINE / 2 + 1:g}" height="{LINE - 2}"'
    drawn += [f'<rect {where} width="{seconds * scale:.1f}" class="{kind}"/>' for seconds, kind in parts]
    return [*drawn, text(LABELS + 16 + bar.seconds * scale, middle + 4, bar.figures)], height


def draw_legend(top: float) -> list[str]:
    """Draw a line that names colours and parts of a bar."""
    drawn, left = [], float(MARGIN)
    for words, kind in (
        ("ours, training", "ours"),
        ("start and end", "ours rest"),
        ("other programs, training", "theirs"),
        ("start and end, or not told", "theirs rest"),
    ):
        drawn += [f'<rect x="{left:g}" y="{top - 11:g}" width="14" height="12" class="{kind}"/>']
        drawn += [text(left + 20, top, words, "weak")]
        left += 20 + 6.4 * len(words) + 24
    return drawn


def draw(groups: Sequence[Group]) -> str:
    """Return the whole picture as SVG; it has its own background, light or dark as its reader prefers."""
    drawn, top = draw_legend(MARGIN + 14), float(MARGIN + 24)
    for group in groups:
        longest = max(bar.seconds for bar in group.bars) or 1.0
        drawn += [text(MARGIN, top + 24, group.title, "title"), text(MARGIN, top + 40, group.about, "weak")]
        top += TITLE + 6
        for bar in group.bars:
            of_bar, height = draw_bar(bar, longest, top)
            drawn += of_bar
            top += height + GAP
    height = top + MARGIN - GAP
    name = "Seconds from start to end of PPO programs on the same work"
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:g}" width="{WIDTH}" role="img">'
    page = f'<rect x="0.5" y="0.5" width="{WIDTH - 1}" height="{height - 1:g}" rx="6" class="page"/>'
    return "\n".join([head, f"<title>{name}</title>", f"<style>{STYLE}</style>", page, *drawn, "</svg>"]) + "\n"


def main() -> int:
    """Draw what is named; 2 where results are missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workloads", nargs="*", metavar="WORKLOAD", help="such as p1; all that have results (none)")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the JSON files")
    parser.add_argument("--out", type=Path, default=RESULTS / "programs.svg")
    given = parser.parse_args()
    names = given.workloads or [name for name in workloads("", 1, 0.0) if (given.results / f"{name}.json").is_file()]
    for name in names:
        if not (given.results / f"{name}.json").is_file():
            parser.error(f"{name}: no {name}.json in {given.results}; python -m benchmarks.compare {name} writes it")
    if not names:
        parser.error(f"{given.results}: no results; python -m benchmarks.compare writes them")
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(draw([read_group(given.results / f"{name}.json") for name in names]))
    print(given.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())

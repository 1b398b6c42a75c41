"""Page of a benchmark's scores: a table with statistics over runs, a section for each preset.

`results.json`, beside the page, holds every finished run; table and curves are made from it.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from fabric_ppo.process.files import write_atomically
from fabric_ppo.tools.plot import draw
from fabric_ppo.tools.scores import interquartile_mean, interval

TEST_EPISODES = 100
"""Number of test episodes whose mean return is the score of a run."""
UNSEEN = 101
"""First seed with which no preset of this project was chosen."""


@dataclass(frozen=True)
class Row:
    """Row of the table: a preset, published scores, and a goal if there is one."""

    preset: str
    published: str = "-"
    goal: float | None = None
    every: float | None = None
    """Score that each single run is to reach."""
    seeds: int = 5
    """Number of runs that a verdict takes."""
    note: str = ""
    """Sentence on how its preset came about, for its section."""


@dataclass(frozen=True)
class Result:
    """Result of a finished run: its test's returns and its learning curve."""

    preset: str
    env_id: str
    seed: int
    transitions: int
    test_return: float
    test_std: float
    minutes: float
    date: str
    made_with: str
    flags: dict[str, Any]
    """Flags of its preset."""
    curve: list[tuple[float, float]] = field(repr=False)
    """Points (transitions, return)."""
    file: str = ""
    """YAML file of a preset that is none of `configs/`."""
    success: float | None = None
    """Share of its test episodes with `is_success`; None where no episode has it."""
    devices: int = 1
    """Number of its processes; each has the environments of the preset."""


def add_result(out: Path, result: Result, rows: Mapping[str, Row]) -> None:
    """Add a result to `results.json` of the page `out`; it replaces an earlier one of the same run.

    Args:
        out: the page.
        result: what is added.
        rows: preset -> its row, in the order of the page; others come last.
    """
    others = [each for each in _read_results(out) if (each.preset, each.seed) != (result.preset, result.seed)]
    order = list(_all_rows(rows, [*others, result]))
    results = sorted([*others, result], key=lambda each: (order.index(each.preset), each.seed))
    _folder(out).mkdir(parents=True, exist_ok=True)
    lines = ",\n".join(json.dumps(asdict(each)) for each in results)
    write_atomically(_folder(out) / "results.json", f"[\n{lines}\n]\n".encode())


def _read_results(out: Path) -> list[Result]:
    path = _folder(out) / "results.json"
    return [Result(**values) for values in json.loads(path.read_text())] if path.is_file() else []


def _all_rows(rows: Mapping[str, Row], results: Sequence[Result]) -> dict[str, Row]:
    """Return the rows, and one for each other preset that has results: a file of the user's own."""
    return {**rows, **{each.preset: Row(each.preset) for each in results if each.preset not in rows}}


def _folder(out: Path) -> Path:
    """Return the folder of `results.json` and of the curves of a page."""
    return out.with_suffix("")


def write_page(out: Path, preset: str, rows: Mapping[str, Row]) -> None:
    """Write the page of all results so far, and draw the curves of one preset.

    Args:
        out: the page.
        preset: a preset with a new result.
        rows: preset -> its row, in the order of the page; others come last.
    """
    results = _read_results(out)
    every = _all_rows(rows, results)
    groups = [(row, [each for each in results if each.preset == name]) for name, row in every.items()]
    groups = [(row, runs) for row, runs in groups if runs]
    (runs,) = (runs for row, runs in groups if row.preset == preset)
    curves = [np.array(run.curve).T for run in runs]
    draw(_folder(out) / f"{preset}.svg", curves, title=_title(runs[0]), goal=every[preset].goal)
    write_atomically(out, "\n".join(_page(groups, rows, _folder(out).name)).encode())


def _page(groups: list[tuple[Row, list[Result]]], rows: Mapping[str, Row], folder: str) -> Iterator[str]:
    """Yield the lines of the page."""
    has_presets = any(row.preset in rows for row, _ in groups)
    yield "# Scores\n"
    yield _introduction(has_presets)
    yield from _table(groups)
    yield "\nMinutes are of the wall clock, with other work on the machine.\n"
    if has_presets:
        yield from _verdicts(groups, rows)
    for row, runs in groups:
        yield from _section(row, runs, folder)


def _table(groups: list[tuple[Row, list[Result]]]) -> Iterator[str]:
    """Yield the lines of the table; it has a column of successes if an environment tells them."""
    heads = ["environment", "transitions", "runs", "mean +- deviation over runs", "interquartile mean", "worst run"]
    heads += ["goal", "published", "minutes a run"]
    tells_success = any(run.success is not None for _, runs in groups for run in runs)
    if tells_success:
        heads.append("success")
    yield f"| {' | '.join(heads)} |"
    yield "|---" * len(heads) + "|"
    for row, runs in groups:
        cells = [*_cells(row, runs), *([_success(runs)] if tells_success else [])]
        yield f"| {' | '.join(cells)} |"


def _success(runs: list[Result]) -> str:
    """Return the mean over runs of the share of test episodes that succeeded, with its deviation."""
    shares = [100 * run.success for run in runs if run.success is not None]
    if not shares:
        return "-"
    return f"{np.mean(shares):.1f} %" + (f" +- {np.std(shares):.1f}" if len(shares) > 1 else "")


def _introduction(has_presets: bool) -> str:
    """Return how the scores come about; of presets with a row of their own also how these were chosen."""
    trained = "a preset of [configs](../configs)" if has_presets else "the YAML file of flags that is named below"
    chosen, published = "", ""
    if has_presets:
        chosen = f" Presets were chosen by scores of seeds below {UNSEEN}: such scores, of which the sections tell, "
        chosen += "flatter a preset a little."
        published = " Published figures are from the programs' own pages, of one agent or three, partly of older "
        published += "versions of the environments."
    return (
        f"Each run trains with {trained} and then plays {TEST_EPISODES} greedy episodes, with seeds that training "
        "cannot draw, with its final policy: no run is picked, and no policy along the way. Its score is the mean "
        f"return of these.{chosen} The interval is the 95 % percentile bootstrap of the interquartile mean over runs, "
        f"as in rliable (arXiv 2108.13264).{published}\n"
    )


def _verdicts(groups: list[tuple[Row, list[Result]]], rows: Mapping[str, Row]) -> Iterator[str]:
    """Yield which goals of the presets are missed, and which presets have too few runs or none."""
    missed = [_title(runs[0]) for row, runs in groups if not _is_goal_reached(row, runs)]
    few = [_title(runs[0]) for row, runs in groups if row.goal is not None and len(runs) < row.seeds]
    yield f"Goals missed: {', '.join(missed) or 'none'}."
    yield f"Fewer runs than a verdict takes (five or ten): {', '.join(few) or 'none'}."
    yield f"Not run: {', '.join(name for name in rows if name not in {row.preset for row, _ in groups}) or 'none'}.\n"


def _cells(row: Row, runs: list[Result]) -> Iterator[str]:
    """Yield the cells of a row of the table."""
    scores = [run.test_return for run in runs]
    low, high = interval(scores)
    form = _number_format(runs)
    yield _title(runs[0])
    yield f"{round(np.median([run.transitions for run in runs])):,}"
    yield f"{len(runs)}"
    yield f"{np.mean(scores):{form}}" + (f" +- {np.std(scores):{form}}" if len(runs) > 1 else "")
    yield f"{interquartile_mean(scores):{form}}" + (f" [{low:{form}}, {high:{form}}]" if len(runs) > 1 else "")
    yield f"{min(scores):{form}}"
    every = "" if row.every is None else f", each run {row.every:g}"
    verdict = ("reached" if _is_goal_reached(row, runs) else "missed") + ("" if len(runs) >= row.seeds else " so far")
    yield "-" if row.goal is None else f"{row.goal:g}{every}: {verdict}"
    yield row.published
    yield f"{np.median([run.minutes for run in runs]):.1f}"


def _section(row: Row, runs: list[Result], folder: str) -> Iterator[str]:
    """Yield the lines of a preset's section: its commands, its scores and its curves."""
    dates = sorted({run.date for run in runs})
    scores = ", ".join(f"{run.test_return:{_number_format(runs)}}" for run in runs)
    yield f"## {_title(runs[0])}\n"
    yield "```sh"
    file = shlex.quote(runs[-1].file) if runs[-1].file else ""
    config = file or f"configs/{row.preset}.yaml"
    seeds = [run.seed for run in runs]
    first, count = min(seeds), max(seeds) - min(seeds) + 1
    numbers = f"--seeds {count}" + (f" --first-seed {first}" if first > 1 else "")
    devices = f" --devices {runs[0].devices}" if runs[0].devices > 1 else ""
    program = f"-m fabric_ppo train torch{devices}" if devices else "train_torch.py"
    yield f"python -m fabric_ppo benchmark {file or row.preset} {numbers}{devices}"
    yield f"python {program} --config {config} --test-episodes {TEST_EPISODES} --seed {first}"
    yield "```\n"
    yield f"Trained {' to '.join(dates[:1] + dates[1:][-1:])}; {'; '.join(sorted({run.made_with for run in runs}))}. "
    with_it = ", with some of which the preset was chosen" if first < UNSEEN and not file else ""
    yield f"Scores of seeds {', '.join(map(str, seeds))}{with_it}: {scores}.{row.note and f' {row.note}'}\n"
    yield f"![Learning curves of {_title(runs[0])}]({folder}/{row.preset}.svg)\n"


def _is_goal_reached(row: Row, runs: list[Result]) -> bool:
    scores = [run.test_return for run in runs]
    return row.goal is None or (bool(np.mean(scores) >= row.goal) and (row.every is None or min(scores) >= row.every))


def _number_format(runs: list[Result]) -> str:
    """Return the format of the runs' scores, with fewer decimals for large ones."""
    return ".1f" if max(abs(run.test_return) for run in runs) > 10 else ".3f"


def _title(run: Result) -> str:
    """Return the environment's id, followed by the name of a user's file, or by the recurrent layer if there is one."""
    if run.file:
        return f"{run.env_id}, {run.preset}"
    recurrent = run.flags.get("recurrent", "none")
    return run.env_id if recurrent == "none" else f"{run.env_id} ({recurrent})"

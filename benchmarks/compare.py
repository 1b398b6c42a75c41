"""Other PPO programs and ours on the same work, in turn; writes a table for each workload.

    python -m benchmarks.compare all                      # rounds of A B C A B C ..., as Markdown and JSON
    python -m benchmarks.compare p1 --only SBX --scale 0.0625 --rounds 1

Times are of the whole process, from outside. A run whose counted work is not the agreed one is refused. To be run
from the root of the repository, after `python -m benchmarks.install`.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import re
import shlex
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from benchmarks.install import ROOT
from benchmarks.programs import PROGRAMS, read_counts
from benchmarks.report import UNSOLVED, Run, failures, good, reference, table, unequal_work
from benchmarks.workloads import Contender, Setting, Workload, workloads

TRIALS = 3
TRIAL, SHORT_TRIAL = 0.125, 0.03  # share of the work; where it may end early, the latter
QUIET_LOAD, QUIET_TRIES = 0.5, 60
"""Below this load (of one minute) the machine is quiet; so often, every five seconds, it is looked at."""


def execute(args: list[str], variables: dict[str, str], folder: Path, limit: float) -> tuple[int | None, float, str]:
    """Run a command in `folder`: its exit status (None: over `limit` seconds, and killed), seconds, and output."""
    kept = {key: value for key, value in os.environ.items() if key not in ("OMP_NUM_THREADS", "RANK", "WORLD_SIZE")}
    output = folder / "output.txt"
    with output.open("w") as out:
        started = time.perf_counter()
        process = subprocess.Popen(
            args,
            cwd=folder,
            env=kept | variables,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        status: int | None = None
        try:
            status = process.wait(limit)
        except subprocess.TimeoutExpired:
            pass
        finally:
            seconds = time.perf_counter() - started
            if status is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    return status, seconds, output.read_text(errors="replace")


def reason(output: str) -> str:
    """The first line of a failed run's output that names an error, or else its last one, cut to 200 characters."""
    lines = [line.strip().replace("|", "/") for line in output.splitlines() if line.strip()] or ["no output"]
    return next((line for line in lines if re.match(r"(error|[\w.]*(Error|Exception))\b", line)), lines[-1])[:200]


def run_once(workload: Workload, contender: Contender, setting: Setting, number: int) -> Run:
    """Run a contender once; whatever goes wrong is the run's problem."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        args = [*PROGRAMS[contender.program].command(contender.work, number, folder), *setting.flags]
        status, seconds, output = execute(args, dict(setting.variables), folder, workload.limit_seconds)
        run = Run(contender.row, number, setting.name, seconds, None, 0, 0)
        if status is None:
            return replace(run, problem=f"{UNSOLVED[1]} {workload.limit_seconds:g} s")
        if status != 0:
            return replace(run, problem=f"status {status}: {reason(output)}")
        try:
            counted = read_counts(folder, output)
        except ValueError as error:
            return replace(run, problem=str(error))
    problem = unequal_work(workload, counted.env_steps, counted.gradient_steps, counted.return_mean)
    return replace(run, **asdict(counted), problem=problem)


def tell(run: Run, what: str) -> None:
    """Show a run as soon as it is over."""
    train = "-" if run.train_seconds is None else f"{run.train_seconds:.1f}"
    did = f"{run.env_steps:,} transitions, {run.gradient_steps:,} gradient steps"
    said = run.problem or "ok"
    print(f"{what}: {run.row} ({run.setting}): {run.wall_seconds:.1f} s, training {train} s, {did}: {said}", flush=True)


def choose_setting(workload: Workload, contender: Contender) -> tuple[Setting, list[Run]]:
    """The setting whose median of some runs on a part of the work is the quickest, and those runs."""
    if len(contender.settings) == 1:
        return contender.settings[0], []
    scale = TRIAL if workload.agreed.stop_at_return is None else SHORT_TRIAL
    part = replace(workload, agreed=replace(workload.agreed, stop_at_return=None).scaled(scale))
    smaller = replace(contender, work=replace(contender.work, stop_at_return=None).scaled(scale))
    trials = []
    for number in range(1, TRIALS + 1):
        for setting in contender.settings:
            trials.append(run_once(part, smaller, setting, number))
            tell(trials[-1], f"{workload.name} trial {number}")
    return min(contender.settings, key=lambda setting: _median_seconds(trials, setting)), trials


def _median_seconds(trials: list[Run], setting: Setting) -> float:
    """Of training, where that is told; infinite without a good run."""
    seconds = [run.train_seconds or run.wall_seconds for run in good(trials) if run.setting == setting.name]
    return statistics.median(seconds) if seconds else math.inf


def wait_for_quiet() -> None:
    """Wait until nothing else runs, but not for ever: the load before the first run goes on record."""
    for _ in range(QUIET_TRIES):
        if os.getloadavg()[0] < QUIET_LOAD:
            return
        time.sleep(5)
    print(f"the machine is busy: load {os.getloadavg()[0]:.1f}", flush=True)


def compare(workload: Workload, rounds: int) -> tuple[list[Run], list[Run], dict[str, str], dict[str, Setting]]:
    """All runs, the trials of settings before them, which rows are skipped and why, and the settings of the others."""
    skipped = {each.row: why for each in workload.contenders if (why := PROGRAMS[each.program].why_not(each.work))}
    for row, why in skipped.items():
        print(f"{workload.name}: {row} is skipped: {why}", flush=True)
    able = [each for each in workload.contenders if each.row not in skipped]
    chosen, trials = {}, []
    for each in able:
        chosen[each.row], tried = choose_setting(workload, each)
        trials += tried
    runs = []
    for number in range(1, rounds + 1):
        for each in able:
            if each.most_rounds is not None and number > each.most_rounds:
                continue
            runs.append(run_once(workload, each, chosen[each.row], number))
            tell(runs[-1], f"{workload.name} round {number}")
    return runs, trials, skipped, chosen


def machine() -> dict[str, Any]:
    """Describe the machine and versions that the figures depend on."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        first = info.read_text().split("\n\n")[0].splitlines()
        told = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in first)}
        if "model name" in told:
            cpu = f"{told['model name']} (family {told.get('cpu family')}, model {told.get('model')})"
    load = os.getloadavg()[0]
    return {"cpu": cpu, "cores": os.cpu_count(), "system": platform.platform(), "load_before": round(load, 2)}


def commands(workload: Workload, chosen: dict[str, Setting]) -> dict[str, str]:
    """Row -> its command, with FOLDER for the folder that a run writes to and no path of this machine."""
    shown = {}
    for each in workload.contenders:
        if setting := chosen.get(each.row):
            words = [*PROGRAMS[each.program].command(each.work, 1, Path("FOLDER")), *setting.flags]
            words = ["python" if word == sys.executable else word.removeprefix(f"{ROOT}/") for word in words]
            shown[each.row] = " ".join([*(f"{name}={value}" for name, value in setting.variables), shlex.join(words)])
    return shown


def write(
    out: Path,
    workload: Workload,
    here: dict[str, Any],
    runs: list[Run],
    trials: list[Run],
    skipped: dict[str, str],
    chosen: dict[str, Setting],
) -> str:
    """Write `<workload>.json` and `<workload>.md`; the latter's text. `here` is the machine before the first run."""
    rows = [each for each in workload.contenders if each.row not in skipped]
    versions = {each.row: PROGRAMS[each.program].versions() for each in rows}
    about = {
        "workload": asdict(workload.agreed) | {"name": workload.name, "gradient_steps": workload.agreed.gradient_steps},
        "date": time.strftime("%Y-%m-%d %H:%M"),
        "machine": here,
        "python": platform.python_version(),
        "command": shlex.join(["python", "-m", "benchmarks.compare", *sys.argv[1:]]),
        "versions": versions,
        "commands": commands(workload, chosen),
    }
    each_run = {"runs": [asdict(run) for run in runs], "trials": [asdict(run) for run in trials], "skipped": skipped}
    out.mkdir(parents=True, exist_ok=True)
    (out / f"{workload.name}.json").write_text(json.dumps(about | each_run, indent=2) + "\n")
    text = markdown(workload, about, table(workload, runs, skipped), reference(runs), trials)
    (out / f"{workload.name}.md").write_text(text)
    return text


def markdown(workload: Workload, about: dict[str, Any], rows: str, first: str, trials: list[Run]) -> str:
    """The page of a workload."""
    here, agreed = about["machine"], workload.agreed
    work = f"Agreed: {agreed.env_steps:,} transitions of {agreed.env_id} and {agreed.gradient_steps:,} gradient steps."
    if agreed.stop_at_return is not None:
        work = f"Agreed: {agreed.env_id}, mean return {agreed.stop_at_return:g}."
    within = f" Counts may differ by {workload.tolerance:.0%}." if workload.tolerance else ""
    where = f"{about['date']}, {here['cpu']}, {here['cores']} cores, Python {about['python']}, {here['system']}"
    lines = [f"# {workload.title}", "", f"{work}{within} {workload.note}", "", rows, ""]
    lines += [
        f"Figures are `median (least .. most)`; ratios are to `{first}`, round by round"
        + (", per transition." if agreed.stop_at_return is None else "."),
        "",
    ]
    for trial in trials:
        lines.append(
            f"- tried on a part: {trial.row}, {trial.setting}: training {trial.train_seconds or math.nan:.2f} s, "
            f"from start to end {trial.wall_seconds:.1f} s {trial.problem}".rstrip()
        )
    lines += ["", f"{where}; load before: {here['load_before']}. `{about['command']}`", ""]
    for row, command in about["commands"].items():
        versions = ", ".join(f"{name} {version}" for name, version in about["versions"][row].items())
        lines += [f"- {row} ({versions}): `{command}`"]
    return "\n".join(lines) + "\n"


def parse_args() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = ["p1", "p1-2", "p2", "p3", "p4", "p5", "p7", "p8", "p9"]
    parser.add_argument("workloads", nargs="+", choices=[*names, "all"])
    parser.add_argument("--rounds", type=int, default=5, help="more than one: wait first until nothing else runs (5)")
    parser.add_argument("--scale", type=float, default=1.0, help="share of the transitions (not of p4)")
    parser.add_argument("--only", nargs="+", default=[], metavar="ROW", help="rows besides the first one")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    parser.add_argument("--preset", default="configs/lunarlander-fast.yaml", help="p4: our flags")
    parser.add_argument("--preset-ranks", type=int, default=1, help="p4: our ranks with the preset")
    parser.add_argument("--limit", type=float, default=900.0, help="p4: seconds after which a run has failed")
    given = parser.parse_args()
    if "all" in given.workloads:
        given.workloads = names
    of_all = workloads(given.preset, given.preset_ranks, given.limit)
    rows = [each.row for name in given.workloads for each in of_all[name].contenders[1:]]
    if unknown := [row for row in given.only if row not in rows]:
        parser.error(f"--only {unknown[0]}: no such row; expected of {', '.join(map(repr, rows))}")
    return given


def main() -> int:
    """Compare; 1 if a run was refused."""
    given = parse_args()
    refused = False
    for name in given.workloads:
        workload = workloads(given.preset, given.preset_ranks, given.limit)[name].scaled(given.scale)
        if given.only:
            first, *others = workload.contenders
            workload = replace(workload, contenders=(first, *(each for each in others if each.row in given.only)))
        if given.rounds > 1:
            wait_for_quiet()
        here = machine()
        runs, trials, skipped, chosen = compare(workload, given.rounds)
        print(write(given.out, workload, here, runs, trials, skipped, chosen), flush=True)
        refused |= any(failures(workload, runs))
    return int(refused)


if __name__ == "__main__":
    sys.exit(main())

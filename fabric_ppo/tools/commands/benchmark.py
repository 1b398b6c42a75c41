"""`benchmark`: presets trained over several seeds, and the page of their scores."""

from __future__ import annotations

import os
from pathlib import Path

from fabric_ppo.process.errors import FAILED, ConfigError
from fabric_ppo.process.files import require_text_path
from fabric_ppo.run.folder import CONFIG_FILE
from fabric_ppo.tools.command_parser import CommandParser, count
from fabric_ppo.tools.help import Entry
from fabric_ppo.tools.locate import preset_names

ENTRY = Entry("benchmark SUITE ...", "Train presets with several seeds, and write their scores.")
"""Row of this command on the page of all."""


_OWN_PAGE = "docs/results.md"
"""Page of this project's own presets."""


def run(args: list[str]) -> int:
    """Train presets over seeds and write their scores."""
    from fabric_ppo.process.launch import cores_per_rank
    from fabric_ppo.tools.suite import SUITES, check_presets, presets_of, run_suite

    parser = CommandParser("fabric-ppo benchmark")
    parser.description = "Train presets with several seeds, test each run, and write a page of scores."
    suites = f"{', '.join(SUITES)}, a preset such as cartpole, a YAML file of flags, or a folder of such files."
    parser.add_argument("suites", metavar="SUITE", nargs="+", help=suites)
    parser.add_argument("--seeds", type=count, default=5, help="Runs of each preset. (default: 5)")
    first = "Seed of the first of them; the others follow. (default: 1)"
    parser.add_argument("--first-seed", type=count, default=1, help=first)
    parser.add_argument("--devices", type=count, default=1, help="Processes of each run, with torchrun. (default: 1)")
    parser.add_argument("--jobs", type=count, help="Runs side by side. (default: the cores divided by --devices)")
    parser.add_argument(
        "--log-dir", default="logs/benchmark", metavar="DIR", help="Run folders. (default: logs/benchmark)"
    )
    out = f"Page to write. (default: {_OWN_PAGE}; with files of your own: results.md in --log-dir)"
    parser.add_argument("--out", metavar="FILE", help=out)
    given = parser.parse_args(args)
    if given.jobs is None:
        given.jobs = max(1, cores_per_rank() // max(1, given.devices))
    if min(given.seeds, given.devices, given.jobs) < 1:
        numbers = f"--seeds {given.seeds} --devices {given.devices} --jobs {given.jobs}"
        raise ConfigError(f"{numbers}: numbers from 1 up are expected")
    seeds = range(given.first_seed, given.first_seed + given.seeds)
    if not (seeds.start >= 0 and seeds.stop <= 2**32):
        raise ConfigError(f"--first-seed {given.first_seed}: a seed from 0 up is expected, with all others below 2^32")
    require_text_path("--log-dir", given.log_dir)
    require_text_path("--out", given.out)
    if given.out is None:
        is_ours = all(each in SUITES or each in preset_names() for each in given.suites)
        given.out = _OWN_PAGE if is_ours else os.path.join(given.log_dir, "results.md")
    presets = presets_of(given.suites)
    check_presets(presets, given.devices)
    log_dir = Path(given.log_dir)
    failed = run_suite(presets, seeds, given.jobs, given.devices, log_dir, Path(given.out))
    print(given.out, flush=True)
    _report(log_dir, list(presets), seeds)
    return FAILED if failed else 0


def _report(log_dir: Path, presets: list[str], seeds: range) -> None:
    """Write a report of each preset's runs into its folder, and print where it is."""
    from fabric_ppo.tools.report.after_training import report_beside

    for preset in presets:
        folders = [log_dir / preset / f"seed_{seed}" for seed in seeds]
        if trained := [folder for folder in folders if (folder / CONFIG_FILE).is_file()]:
            report_beside(trained, log_dir / preset)

"""Install the other programs, each set of requirements into a virtual environment of its own in .venv-bench.

    python -m benchmarks.install [stable-baselines3 sheeprl sheeprl-decoupled sample-factory rejax cleanrl ...]

Their pins exclude each other. What cannot be installed is told, and skipped by the benchmarks with the same words.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
ENVIRONMENTS = ROOT / ".venv-bench"
REQUIREMENTS = ROOT / "benchmarks" / "requirements"
LIGHTNING_EXAMPLE = ENVIRONMENTS / "lightning-example"
"""Where `examples/fabric/reinforcement_learning` of Lightning's repository is looked for; no package has it."""
CLEANRL = ENVIRONMENTS / "cleanrl-scripts"
"""Where the folder `cleanrl` of CleanRL's repository is looked for; no package has today's."""
LEANRL = ENVIRONMENTS / "leanrl-scripts"
"""Where the folder `leanrl` of LeanRL's repository is looked for; no package has it."""


def python_of(name: str) -> Path:
    """The interpreter of an environment, installed or not."""
    return ENVIRONMENTS / name / "bin" / "python"


def why_missing(name: str) -> str:
    """Why an environment cannot be used; empty if it can."""
    failure = ENVIRONMENTS / f"{name}.failed"
    if failure.exists():
        return failure.read_text().strip()
    return "" if (ENVIRONMENTS / name / "installed.txt").exists() else "not installed: make bench-install"


def install(name: str) -> str:
    """Make an environment, unless it has just these requirements already; why it failed, or nothing."""
    folder, wanted = ENVIRONMENTS / name, (REQUIREMENTS / f"{name}.txt").read_text()
    installed, failure = folder / "installed.txt", ENVIRONMENTS / f"{name}.failed"
    if installed.exists() and installed.read_text() == wanted:
        return ""
    shutil.rmtree(folder, ignore_errors=True)
    failure.unlink(missing_ok=True)
    print(f"installing {name} into {folder.relative_to(ROOT)}", flush=True)
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    pip = [str(python_of(name)), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    done = subprocess.run([*pip, "-r", str(REQUIREMENTS / f"{name}.txt")], capture_output=True, text=True)
    if done.returncode == 0:
        installed.write_text(wanted)
        return ""
    said = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or ["pip failed"]
    failure.write_text(f"cannot be installed: {said[-1].removeprefix('ERROR: ')}\n")
    return why_missing(name)


def main() -> None:
    """Install what is named, or everything."""
    names = sys.argv[1:] or sorted(path.stem for path in REQUIREMENTS.glob("*.txt"))
    for name in names:
        if why := install(name):
            print(f"{name}: {why}", flush=True)


if __name__ == "__main__":
    main()

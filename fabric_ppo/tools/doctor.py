"""The machine and the packages as training finds them; nothing here imports what may be broken.

Versions are read from the packages' metadata. What has to be tried runs in processes of its own,
with a limit: a package that raises, exits, crashes or hangs is a row of the table.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fabric_ppo.process.errors import reason_line
from fabric_ppo.process.extras import CORE, CORE_MODULES, EXTRAS, install, pip_install
from fabric_ppo.process.machine import c_compiler, cache_folder, machine

LEAST_PYTHON = (3, 10)
_SECONDS = 60
"""Seconds that a process has for all that it tries; a cold disk of a cluster takes half of it."""
_MODULES = {
    **CORE_MODULES,
    **{"lightning": "lightning.fabric", "gymnasium[mujoco]": "mujoco"},
    **{"gymnasium[box2d]": "Box2D", "ale-py": "ale_py", "opencv-python-headless": "cv2"},
    **{"mlflow-skinny": "mlflow"},
}
"""Package -> module to import, where it has another name."""
_TITLES = {
    **{"atari": "Atari", "envpool": "EnvPool", "hub": "Hugging Face Hub", "jax": "JAX environments"},
    **{"minari": "Minari", "minigrid": "MiniGrid", "mlflow": "MLflow", "mujoco": "MuJoCo"},
    **{"postgresql": "PostgreSQL", "sweep": "sweeps"},
    **{"onnx": "ONNX export", "pettingzoo": "PettingZoo", "plot": "plots", "trackio": "Trackio", "wandb": "W&B"},
}
"""Extra -> its name in the table, where that is another."""
_OF_CORE = {"Box2D": "gymnasium[box2d]", "video": "moviepy"}
"""Feature whose package comes with the core -> that package."""
_START = "import json, sys; sys.path[:] = json.loads(sys.argv[1]); import fabric_ppo.tools.doctor_probe as probe; "
_START += "probe.main(sys.argv[2:])"


@dataclass(frozen=True)
class Row:
    """Something that was looked at.

    Attributes:
        state: `ok`, `missing`, or `failed` for what is there and does not work.
        text: what was found, or what is wrong.
        command: what adds or mends it; empty for nothing.
        facts: the same as numbers, for other programs.
    """

    state: str
    text: str
    command: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Diagnosis:
    """All rows, by name.

    Attributes:
        machine: the machine, and what processes can do on it.
        packages: packages without which nothing is trained.
        features: parts that need a package more.
    """

    machine: Mapping[str, Row]
    packages: Mapping[str, Row]
    features: Mapping[str, Row]

    @property
    def problems(self) -> list[str]:
        """Lines that say why nothing can be trained; empty where training works."""
        rows = {"Python": self.machine["Python"]} | dict(self.packages)
        return [f"{name}: {row.text}" for name, row in rows.items() if row.state != "ok"]


def examine(imports: bool = False) -> Diagnosis:
    """Look at the machine, the core packages, which are imported, and the optional ones.

    Args:
        imports: True: import the optional packages, too, each in a process of its own.
    """
    core = {name: _module(name) for name in CORE}
    features = dict(_features())
    # torch and lightning take the longest: beside each other
    others = [module for name, module in core.items() if name not in ("torch", "lightning")]
    jobs = [[":fork", "torch", ":gpus", ":group", *others], [core["lightning"]]]
    if imports:
        jobs += [list(modules) for modules, row in features.values() if row.state == "ok"]
    with ThreadPoolExecutor(max(2, os.cpu_count() or 1)) as pool:
        answers = {name: answer for found in pool.map(_answers, jobs) for name, answer in found.items()}
    return Diagnosis(
        _machine_rows(answers),
        {name: _core_row(name, answers[core[name]]) for name in CORE},
        {name: _imported_row(modules, row, answers) for name, (modules, row) in features.items()},
    )


def _answers(names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return what a process answers that tries `names`, one after the other: its facts or an error."""
    words = [sys.executable, "-c", _START, json.dumps(sys.path), *names]
    out, why = "", ""
    try:
        # its own group: what it has started ends with it; files, since a pipe stays open as long as any of them lives
        with tempfile.TemporaryFile("w+") as file:
            null = subprocess.DEVNULL
            child = subprocess.Popen(words, stdin=null, stdout=file, stderr=null, start_new_session=True)
            try:
                status = child.wait(_SECONDS)
                why = f"ended by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"
            except subprocess.TimeoutExpired:
                why = f"no answer within {_SECONDS} s"
            finally:
                with contextlib.suppress(OSError):
                    os.killpg(child.pid, signal.SIGKILL)
                child.wait()
            file.seek(0)
            out = file.read()
    except OSError as error:
        why = f"a process to try it in cannot be started ({error})"
    found = {}
    for line in out.splitlines():
        with contextlib.suppress(ValueError):  # cut off where it was killed
            answer = json.loads(line)
            found[answer["name"]] = answer
    unanswered = [name for name in names if name not in found]
    for name in unanswered:
        # the first is the one that it was busy with
        reason = why if name == unanswered[0] else f"not tried, since {unanswered[0].strip(':')} came before: {why}"
        found[name] = {"error": reason}
    return found


def _machine_rows(answers: Mapping[str, Mapping[str, Any]]) -> dict[str, Row]:
    """Return the rows about the machine."""
    version = platform.python_version()
    is_python = sys.version_info >= LEAST_PYTHON
    wanted = "" if is_python else f", {'.'.join(map(str, LEAST_PYTHON))} or newer is needed"
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    limited = "" if usable == os.cpu_count() else f", {usable} of them for this process"
    system = f"{platform.system()} {platform.release()} {platform.machine()}"
    return {
        "system": Row("ok", system),
        "Python": Row(
            "ok" if is_python else "failed", f"{version}{wanted} ({sys.executable})", facts={"version": version}
        ),
        "processor": Row("ok", machine() + limited, facts={"cores": usable}),
        "memory": _memory_row(),
        "GPU": _gpu_row(answers[":gpus"]),
        "C compiler": _compiler_row(),
        "kernel cache": _cache_row(),
        "worker processes": _tried_row(answers[":fork"], "can be forked"),
        "process group": _tried_row(answers[":group"], "two ranks met over gloo"),
    }


def _tried_row(answer: Mapping[str, Any], works: str) -> Row:
    return Row("failed", answer["error"]) if "error" in answer else Row("ok", works)


def _memory_row() -> Row:
    """Return the memory of the machine, or of the control group that it is limited by."""
    try:
        text = Path("/proc/meminfo").read_text()
        total, free = (
            int(re.findall(rf"^{key}:\s*(\d+)", text, re.M)[0]) << 10 for key in ("MemTotal", "MemAvailable")
        )
    except (OSError, IndexError):  # not on Linux
        return Row("ok", "unknown")
    with contextlib.suppress(OSError, ValueError):  # no limit is the word "max"
        total = min(total, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    free = min(total, free)
    facts = {"total_bytes": total, "available_bytes": free}
    return Row("ok", f"{total / 2**30:.1f} GiB, {free / 2**30:.1f} GiB of it available", facts=facts)


def _gpu_row(answer: Mapping[str, Any]) -> Row:
    """Return the GPUs that PyTorch sees, with the driver and the CUDA version."""
    driver = ""
    with contextlib.suppress(OSError, IndexError):
        driver = re.findall(r"Module\b.*?\s(\d+\.[\d.]+)", Path("/proc/driver/nvidia/version").read_text())[0]
    if "error" in answer:
        return Row("failed", answer["error"])
    facts = {**answer["facts"], "driver": driver or None}
    cuda, gpus = facts["cuda"], facts["gpus"]
    if gpus:
        names = ", ".join(f"{each['name']} ({each['memory_bytes'] / 2**30:.0f} GiB)" for each in gpus)
        return Row("ok", f"{len(gpus)}: {names}; driver {driver or 'unknown'}, CUDA {cuda}", facts=facts)
    if driver:
        why = f"driver {driver} is loaded, but PyTorch sees none: it is built for {f'CUDA {cuda}' if cuda else 'CPUs'}"
        return Row("failed", why, facts=facts)
    return Row("ok", "none", facts=facts)


def _compiler_row() -> Row:
    """Return the compiler of the compiled kernels; training takes longer without one."""
    try:
        command = c_compiler()
    except ValueError as error:  # quotes in CC that do not close
        return Row("failed", f"CC={os.environ.get('CC')}: {error}")
    if not command:
        return Row("missing", "none: training takes longer", install("native"))
    if shutil.which(command[0]) is None:
        return Row("failed", f"{shlex.join(command)}: not found; CC names another")
    try:
        done = subprocess.run([*command, "--version"], capture_output=True, text=True, errors="replace", timeout=10)
    except (OSError, subprocess.SubprocessError) as error:
        return Row("failed", f"{shlex.join(command)}: {reason_line(str(error))}")
    version = (done.stdout.strip().splitlines() or [""])[0]
    if done.returncode:
        return Row("failed", f"{shlex.join(command)} --version ended with status {done.returncode}")
    return Row("ok", f"{shlex.join(command)} ({reason_line(version)}), compiles the kernels")


def _cache_row() -> Row:
    """Return whether compiled kernels can be kept; nothing is left behind."""
    folder = cache_folder()
    # the folder is made when it is needed: until then its parents say whether it can be
    there = next(path for path in (folder, *folder.parents) if os.path.exists(path))
    if there.is_dir() and os.access(there, os.W_OK | os.X_OK):
        return Row("ok", f"{folder} is writable")
    return Row("failed", f"{folder} is not writable: kernels are compiled in each run; FABRIC_PPO_CACHE names another")


def _core_row(name: str, answer: Mapping[str, Any]) -> Row:
    """Return the row of a core package: its version must be one of those that are meant, and it must be importable."""
    wanted = f"{'gymnasium[box2d]' if name == 'gymnasium' else name}{CORE[name]}"
    version, command = _version(name), pip_install(wanted)
    if version is None and importlib.util.find_spec(_module(name).partition(".")[0]) is None:
        return Row("missing", "not installed", command)
    facts = {"version": version}
    if "error" in answer:
        again = command.replace("install", "install --force-reinstall", 1)
        return Row("failed", f"cannot be imported: {answer['error']}", again, facts)
    if version is not None and not _is_among(version, CORE[name]):
        return Row("failed", f"{version}, {CORE[name]} is needed", command, facts)
    return Row("ok", version or "of unknown version", facts=facts)


def _is_among(version: str, versions: str) -> bool:
    """Return whether a version is one of `versions`, such as `>=1.0,<2`; True where it cannot be told."""
    try:
        from packaging.specifiers import SpecifierSet

        return SpecifierSet(versions).contains(version, prereleases=True)
    except Exception:  # a version that is none; a package that is broken itself
        return True


def _features() -> Iterator[tuple[str, tuple[Sequence[str], Row]]]:
    """Yield name, modules and row of each optional part, as the metadata has it."""
    needs: dict[str, Sequence[str]] = {name: (package,) for name, package in _OF_CORE.items()}
    # the row of the compiler has that of PyPI
    needs |= {_TITLES.get(extra, extra): packages for extra, packages in EXTRAS.items() if extra != "native"}
    for name in sorted(needs, key=str.lower):
        packages, modules = needs[name], [_module(package) for package in needs[name]]
        missing = [package for package in packages if not _is_there(_module(package))]
        if missing:
            yield name, (modules, Row("missing", f"needs {' and '.join(missing)}", pip_install(*packages)))
        else:
            found = {_distribution(package): _version(package) for package in packages}
            texts = [f"{package} {version}" if version else package for package, version in found.items()]
            yield name, (modules, Row("ok", ", ".join(texts), facts={"versions": found}))


def _imported_row(modules: Sequence[str], row: Row, answers: Mapping[str, Mapping[str, Any]]) -> Row:
    """Return a row with the error of an import, where one was tried and failed."""
    for module in modules:
        if "error" in answers.get(module, {}):
            return Row("failed", f"{module} cannot be imported: {answers[module]['error']}", facts=row.facts)
    return row


def _module(package: str) -> str:
    return _MODULES.get(package, package.partition("[")[0].replace("-", "_"))


def _distribution(package: str) -> str:
    """Return the name of what is installed for a package: of an extra of Gymnasium's the simulator."""
    return _module(package).lower() if "[" in package else package


def _is_there(module: str) -> bool:
    """Return whether a module could be imported; a folder of that name, which is no package, does not count."""
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError):  # a module of the name is loaded, and has no spec
        return False
    return spec is not None and spec.origin is not None


def _version(package: str) -> str | None:
    """Return the version that a package's metadata have; None where they are missing or damaged."""
    try:
        return importlib.metadata.version(_distribution(package))
    except Exception:  # damaged metadata raise KeyError, TypeError, UnicodeDecodeError, ...
        return None

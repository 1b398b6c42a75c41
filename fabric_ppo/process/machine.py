"""The machine: name of its processor, its compilers, and the folder for what is compiled."""

from __future__ import annotations

import importlib.util
import os
import platform
import re
import shlex
import shutil
import sys
import sysconfig
from pathlib import Path


def machine() -> str:
    """Return the name of the processor, with family and model where there are any, and its cores."""
    try:
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
    except OSError:  # not on Linux
        lines = []
    cpu = dict(re.split(r"\s*:\s*", line, maxsplit=1) for line in reversed(lines) if ":" in line)
    family = f" (family {cpu.get('cpu family')}, model {cpu.get('model')})" if "cpu family" in cpu else ""
    name = cpu.get("model name") or platform.processor() or platform.machine()
    return f"{name}{family}, {os.cpu_count()} cores"


def why_no_compiler() -> str:
    """Return what torch.compile would lack on this machine, a C++ compiler or Python's headers; empty for nothing."""
    compiler = os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")
    if shutil.which(compiler) is None:
        return f"a C++ compiler is needed, {compiler} is not found; CXX names another one"
    if not Path(sysconfig.get_path("include"), "Python.h").is_file():
        return "Python's headers are needed (package python3-dev or similar)"
    return ""


def c_compiler() -> list[str]:
    """Return the command of a C compiler: `CC`, one in the path, or ziglang's; empty without one."""
    if given := os.environ.get("CC"):
        return shlex.split(given)
    for name in ("cc", "gcc", "clang"):
        if path := shutil.which(name):
            return [path]
    return [sys.executable, "-m", "ziglang", "cc"] if importlib.util.find_spec("ziglang") else []


def cache_folder() -> Path:
    """Return the folder that compiled functions are kept in."""
    if given := os.environ.get("FABRIC_PPO_CACHE"):
        return Path(given)
    folder = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    # without a home there is no place to keep anything
    return Path(os.devnull if folder.startswith("~") else folder) / "fabric-ppo"

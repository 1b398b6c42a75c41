"""The machine: name of its processor, and whether it can compile."""

from __future__ import annotations

import os
import platform
import re
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

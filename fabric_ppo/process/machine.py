"""Name of the machine's processor."""

from __future__ import annotations

import os
import platform
import re
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

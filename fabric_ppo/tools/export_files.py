"""The two files of an export: their names, and how they are written without a loss for the user."""

from __future__ import annotations

import hashlib
from pathlib import Path

from fabric_ppo.process.errors import ConfigError
from fabric_ppo.process.files import require_text_path, write_atomically

SUFFIXES = {"onnx": (".onnx",), "torchscript": (".pt", ".pth", ".ts", ".torchscript")}
"""Endings of a policy's name, by its format."""
_SUM = "\n# As export wrote it; sum: "


def program_path(out: Path) -> Path:
    """Return the path of the program beside a policy: `policy.onnx` -> `policy_onnx_run.py`.

    The ending is in it, so that a policy in two formats has two programs.
    """
    return out.with_name(f"{out.stem}_{out.suffix[1:]}_run.py")


def require_paths(to: str, out: Path) -> None:
    """Raise a ConfigError where a policy cannot be written to `out`, or its program replaces another file."""
    require_text_path("--out", str(out))
    if out.is_dir() or not out.parent.is_dir():
        what = "is a folder; a file" if out.is_dir() else "its folder does not exist; a file in one that does"
        raise ConfigError(f"--out {out}: {what} is expected")
    if out.suffix.lower() not in SUFFIXES[to]:
        raise ConfigError(f"--out {out}: for --to {to} a name that ends with {' or '.join(SUFFIXES[to])} is expected")
    program = program_path(out)
    if program.is_symlink() or (program.exists() and not _is_as_written(program)):
        raise ConfigError(
            f"--out {out}: its program would replace {program}, which is not as export writes it; remove that file, "
            "or give another name"
        )


def write_both(out: Path, content: bytes, text: str) -> None:
    """Write the policy `content`, and beside it the program `text`; or neither.

    Raises:
        ConfigError: one cannot be written.
    """
    program = program_path(out)
    is_new = not program.exists()
    try:
        write_atomically(program, text.encode() + f"{_SUM}{_sum(text.encode())}\n".encode())
        write_atomically(out, content)
    except OSError as error:
        if is_new:
            program.unlink(missing_ok=True)
        raise ConfigError(f"--out {out}: cannot be written ({error.strerror})") from None


def _sum(text: bytes) -> str:
    return hashlib.sha256(text).hexdigest()[:16]


def _is_as_written(program: Path) -> bool:
    """Return True if a file is a program that an export has written, and nobody has changed since."""
    try:
        text, mark, found = program.read_bytes().rpartition(_SUM.encode())
    except OSError:  # a folder, or not to be read
        return False
    return bool(mark) and found.decode(errors="replace").strip() == _sum(text)

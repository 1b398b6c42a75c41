"""Which rank prints, and streams on which printing raises nothing."""

from __future__ import annotations

import io
import os
import sys

import pytest

from fabric_ppo.process.console import (
    flush,
    is_rank_zero,
    lost_output,
    open_streams,
    print_line,
    stdout_on_stderr,
)
from tests.fixtures.launching import in_fork

pytestmark = pytest.mark.usefixtures("no_launcher")

NO_TEXT = "caf\udce9 \N{SNOWMAN}"
"""A name of bytes that are no UTF-8, and a character that ASCII does not have."""


def test_rank_zero(monkeypatch):
    assert is_rank_zero()
    monkeypatch.setenv("RANK", "0")
    assert is_rank_zero()
    monkeypatch.setenv("RANK", "1")
    assert not is_rank_zero()


def test_a_stream_that_is_none_takes_everything():
    print_line("a line", None)
    flush(None)
    assert lost_output(None) is None


def printed_on(descriptor, encoding="utf-8", text="a line"):
    """Print `text` on a stdout that Python would make of a descriptor; what was lost, as `errno`."""
    os.dup2(descriptor, 1)
    sys.stdout = io.TextIOWrapper(io.BufferedWriter(io.FileIO(1, "w", closefd=False)), encoding)
    open_streams()
    for _ in range(3):  # more than once: what could not be written is not tried again for ever
        print(text)
        sys.stdout.flush()
    error = lost_output(sys.stdout)
    return error and error.errno


def test_a_full_disk_loses_lines_and_says_so():
    with open("/dev/full", "w") as full:
        assert in_fork(printed_on, full.fileno()) == 28


def test_a_reader_that_has_gone_is_no_loss():
    read, write = os.pipe()
    os.close(read)
    assert in_fork(printed_on, write) is None
    os.close(write)


@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "latin-1"])
def test_what_an_encoding_does_not_have_is_escaped(encoding, tmp_path):
    with (tmp_path / "out").open("w") as out:
        assert in_fork(printed_on, out.fileno(), encoding, NO_TEXT) is None
    snowman = "\N{SNOWMAN}" if encoding == "utf-8" else r"\u2603"
    assert (tmp_path / "out").read_text(encoding) == f"caf\\udce9 {snowman}\n" * 3


def closed_at_the_start(path):
    """The number of the first file that is opened, and what its stdout is, in a process without streams."""
    for descriptor in range(3):
        os.close(descriptor)
    sys.stdin = sys.stdout = sys.stderr = sys.__stdout__ = sys.__stderr__ = None
    open_streams()
    print("lost")
    print("lost", file=sys.stderr)
    sys.stdout.flush()
    inheritable = [os.get_inheritable(each) for each in range(3)]
    file = os.open(path, os.O_WRONLY | os.O_CREAT)
    os.system("echo lost; echo lost >&2")
    return file, inheritable, os.path.getsize(path)


def test_no_file_gets_the_number_of_a_closed_stream(tmp_path):
    """Otherwise a checkpoint would hold what C code and other programs print."""
    file, inheritable, size = in_fork(closed_at_the_start, tmp_path / "checkpoint")
    assert file > 2
    assert inheritable == [True] * 3
    assert size == 0


def test_prints_of_every_kind_go_to_stderr_meanwhile(capfd):
    import ctypes

    libc = ctypes.CDLL(None)
    print("before")
    with stdout_on_stderr():
        print("python")
        libc.puts(b"c")
        os.write(1, b"raw\n")
        os.system("echo child")
    print("after")
    printed = capfd.readouterr()
    assert printed.out == "before\nafter\n"
    assert sorted(printed.err.split()) == ["c", "child", "python", "raw"]


def test_a_stdout_that_is_somebody_elses_is_left_alone(monkeypatch):
    notebook = io.StringIO()
    monkeypatch.setattr(sys, "stdout", notebook)
    monkeypatch.setattr(sys, "stderr", sys.stderr)
    open_streams()
    print("a line")
    assert notebook.getvalue() == "a line\n"

"""Files on a disk that is full, and writers that are killed."""

from __future__ import annotations

import os
import resource
import signal

import pytest

from fabric_ppo.process.files import write_atomically
from fabric_ppo.run.checkpoint import save_checkpoint
from tests.fixtures.checkpoints import checkpoint_at, contents
from tests.fixtures.launching import in_fork


def test_a_write_that_fails_at_any_byte_leaves_the_old_file(tmp_path):
    """No file may grow beyond k bytes, for each k: the kernel then refuses the next one."""
    path, new = tmp_path / "file", bytes(range(200))
    path.write_bytes(b"old")

    def attempts():
        _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        for limit in range(len(new)):
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
            with pytest.raises(OSError, match="File too large"):
                write_atomically(path, new)
            assert contents(tmp_path) == {"file": b"old"}
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(new), hard))
        write_atomically(path, new)

    in_fork(attempts)
    assert contents(tmp_path) == {"file": new}


@pytest.mark.parametrize(("call", "kept"), [("fsync", b"old"), ("replace", b"old"), ("rename_done", b"new")])
def test_a_process_killed_while_it_writes_leaves_one_of_both(tmp_path, monkeypatch, call, kept):
    """Before the data is on the disk, before the file is renamed, and after."""
    path = tmp_path / "file"
    path.write_bytes(b"old")
    replace = os.replace

    def die(*args):
        if call == "rename_done":
            replace(*args)
        os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(os, "fsync" if call == "fsync" else "replace", die)
    if (pid := os.fork()) == 0:
        write_atomically(path, b"new")
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
    assert path.read_bytes() == kept


def test_a_checkpoint_that_cannot_be_written_leaves_the_older_ones(tmp_path):
    for update in (1, 2, 3):
        save_checkpoint(tmp_path, update, checkpoint_at(update), keep=3, is_best=False)
    before = contents(tmp_path)

    def attempts():
        _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        for limit in range(0, len(checkpoint_at(4)), 7):
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
            with pytest.raises(OSError, match="File too large"):
                save_checkpoint(tmp_path, 4, checkpoint_at(4), keep=1, is_best=True)
            assert contents(tmp_path) == before

    in_fork(attempts)

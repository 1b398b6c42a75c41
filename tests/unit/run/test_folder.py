"""A run's folder: nobody else's."""

from __future__ import annotations

import errno
import os

from fabric_ppo.config import Config
from fabric_ppo.run import folder


def test_runs_that_start_in_the_same_second_have_folders_of_their_own(tmp_path, monkeypatch):
    monkeypatch.setattr(folder.time, "strftime", lambda _: "2026-01-02_03-04-05")
    config = Config(log_dir=str(tmp_path))
    names = [folder.new_run_dir(config).name for _ in range(3)]
    first = "2026-01-02_03-04-05_CartPole-v1_default_42"
    assert names == [first, f"{first}_2", f"{first}_3"]


def test_a_file_system_without_locks_is_no_hindrance(tmp_path, monkeypatch):
    """As NFS and Lustre are mounted at times."""

    def lockf(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(folder.fcntl, "lockf", lockf)
    folder.lock_folder(tmp_path)()

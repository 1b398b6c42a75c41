"""`fabric-ppo runs` beside a process that trains: it sees the lock, and takes nothing from it."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import time

import pytest

from fabric_ppo.process.errors import ConfigError
from fabric_ppo.run import folder
from fabric_ppo.tools.cli import main
from tests.fixtures.logged_runs import write_run
from tests.fixtures.processes import FOREVER, wait_until


def hold(run, ready):
    unlock = folder.lock_folder(run)
    ready.touch()
    time.sleep(FOREVER)
    unlock()


def test_a_run_is_training_as_long_as_its_process_lives(tmp_path, monkeypatch, capsys):
    run = write_run(tmp_path / "logs/run", [1.0, 2.0], test=[1.0])
    (run / "failure.txt").write_text("an earlier failure\n")

    def state():
        assert main(["runs", str(tmp_path / "logs"), "--json"]) == 0
        return json.loads(capsys.readouterr().out)[0]["state"]

    assert state() == "failed"
    process = multiprocessing.get_context("fork").Process(target=hold, args=(run, tmp_path / "ready"))
    process.start()
    try:
        assert wait_until((tmp_path / "ready").exists)
        assert [state() for _ in range(3)] == ["training"] * 3
        monkeypatch.setattr(folder, "_LOCK_SECONDS", 0)
        with pytest.raises(ConfigError, match="another process trains there"):
            folder.lock_folder(run)
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.join()
    (run / "failure.txt").unlink()
    assert state() == "done"
    folder.lock_folder(run)()

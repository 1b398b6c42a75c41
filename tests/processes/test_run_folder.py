"""The folder of a run of several processes: one for all ranks, never left empty, with one trainer at a time."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time

import train_torch
from fabric_ppo.config import Config, TorchConfig
from fabric_ppo.run import folder as folder_module
from fabric_ppo.run import setup as run_setup
from tests.fixtures.launching import ROOT, SCRIPTS, clean_environment, run_ranks
from tests.fixtures.processes import FOREVER, PATIENCE, wait_until
from tests.fixtures.resuming import config_of, finish, train


def test_all_ranks_have_rank_zeros_folder(tmp_path, monkeypatch):
    """Also where a second begins between their starts."""
    monkeypatch.setattr(folder_module.time, "strftime", lambda _: f"second_{os.environ['RANK']}")
    config = Config(
        log_dir=str(tmp_path), profile=True, num_steps=8, num_envs=1, total_timesteps=16, test_episodes=1, num_threads=1
    )
    assert run_ranks("fabric", [config] * 2) == ["", ""]
    (folder,) = tmp_path.glob("fabric_logs/*")
    assert folder.name.startswith("second_0")
    assert len(list(folder.glob("trace_rank_?.json"))) == 2


def test_a_folder_that_stays_empty_goes_with_its_process(tmp_path):
    code = "from fabric_ppo.run.folder import new_run_dir; from fabric_ppo.config import Config\n"
    code += "path = new_run_dir(Config()); print(path.is_dir())"
    args, env = [sys.executable, "-c", code], clean_environment(PYTHONPATH=str(ROOT))
    done = subprocess.run(args, cwd=tmp_path, capture_output=True, text=True, timeout=PATIENCE, env=env)
    assert done.stdout == "True\n", done.stderr
    assert list(tmp_path.iterdir()) == []


def test_only_one_process_trains_in_a_folder(tmp_path, monkeypatch):
    """The second is refused in one line; a run that was killed leaves nothing in the way."""
    monkeypatch.setattr(folder_module, "_LOCK_SECONDS", 0)
    config = config_of("torch", 1, tmp_path / "run", resume=True)
    with monkeypatch.context() as patch:
        patch.setattr(SCRIPTS["torch"], "ppo_update", lambda *_: time.sleep(FOREVER))
        first = multiprocessing.get_context("fork").Process(target=train_torch.main, args=(config,))
        first.start()
    try:
        assert wait_until((tmp_path / "run/config.yaml").exists)  # written when the folder is locked
        (said,) = train("torch", 1, tmp_path / "run", resume=True)
        assert f"ConfigError: --run-dir {tmp_path / 'run'}: another process trains there" in said
        assert first.is_alive()
    finally:
        os.kill(first.pid, signal.SIGKILL)
        first.join()
    finish("torch", 1, tmp_path / "run", resume=True)


def test_a_folder_is_locked_before_anything_is_written_in_it(tmp_path, monkeypatch):
    """Of two runs that begin in a new folder at the same moment, the one that is refused overwrites nothing."""
    lock, seen = run_setup.lock_folder, tmp_path / "seen"

    def locked(run_dir):
        names = [path.name for path in run_dir.iterdir()] if run_dir.exists() else []
        unlock = lock(run_dir)
        with seen.open("a") as file:
            file.write(f"{names}\n")
        return unlock

    monkeypatch.setattr(run_setup, "lock_folder", locked)
    for name, flags in (("named", {}), ("resumed", {"resume": True})):
        finish("torch", 1, tmp_path / name, 1, **flags)
    assert seen.read_text() == "[]\n[]\n"


def test_a_run_leaves_a_trace_for_each_rank(tmp_path):
    config = TorchConfig(
        profile=True, num_steps=8, total_timesteps=64, update_epochs=1, test_episodes=1, run_dir=str(tmp_path / "run")
    )
    assert run_ranks("torch", [config] * 2) == ["", ""]
    for rank in range(2):
        events = json.loads((tmp_path / f"run/trace_rank_{rank}.json").read_text())["traceEvents"]
        spans = [event for event in events if event["ph"] == "X"]
        assert sum(event["name"] == "environment" for event in spans) == 2 * 8
        assert {"policy", "values", "batch", "loss", "backward", "optimizer", "report"} <= {e["name"] for e in spans}
        assert all(event["dur"] >= 0 and event["ts"] >= 0 for event in spans)

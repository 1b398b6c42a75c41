"""A run that ends before its first checkpoint leaves nothing that blocks the repaired command."""

from __future__ import annotations

import errno
import math
import os
import signal

import pytest

import train_torch
from fabric_ppo.api import train
from fabric_ppo.config import Config, TorchConfig
from fabric_ppo.process.errors import ConfigError, EnvironmentFault, TrainingError
from fabric_ppo.run import folder
from fabric_ppo.run.callbacks import Callback
from fabric_ppo.run.trackers.tracker import Tracker
from tests.fixtures.configs import TINY

POLICY = "policy.safetensors"


class Edited(Exception):
    """An error of a line that somebody has just written."""


class CannotStart(Tracker):
    def start(self, config, run_dir, resumed_at):
        (run_dir / "metrics.csv").write_text("step\n")
        raise Edited


class FailsAtStart(Callback):
    def on_start(self, run):
        raise Edited


class Interrupts(Callback):
    def on_start(self, run):
        os.kill(os.getpid(), signal.SIGINT)


class FailsLater(Callback):
    def on_update(self, run, metrics):
        raise Edited


def edited(monkeypatch, name, change):
    """Change what a function of the script returns."""
    own = getattr(train_torch, name)
    monkeypatch.setattr(train_torch, name, lambda *given: change(own(*given)))


def raises(result):
    raise Edited


def taken_name(stats):
    return stats.with_metric("Loss/policy_loss", 1.0)


def name_of_the_run(stats):
    return stats.with_metric("Rewards/rew_avg", 1.0)


def not_finite(stats):
    return type(stats)(**vars(stats) | {"policy_loss": math.nan})


FAULTY_ENV = {"env_id": "tests.fixtures.toy_envs:ToyRaise-v0"}
EDITS = {
    "an error in the loss": (("ppo_update", raises), {}, Edited),
    "in the batch": (("make_batch", raises), {}, Edited),
    "a metric that is refused": (("ppo_update", taken_name), {}, ConfigError),
    "and one by the run": (("ppo_update", name_of_the_run), {}, ConfigError),
    "a loss that is not finite": (("ppo_update", not_finite), {}, TrainingError),
    "an environment's fault": (None, FAULTY_ENV, EnvironmentFault),
    "a tracker": (None, {"track": f"{__name__}:CannotStart"}, ConfigError),
    "a callback": (None, {"callback": f"{__name__}:FailsAtStart"}, Edited),
    "an interrupt": (None, {"callback": f"{__name__}:Interrupts"}, KeyboardInterrupt),
}


@pytest.mark.parametrize("beside", [[], ["slurm-7.out"]], ids=["alone", "beside other files"])
@pytest.mark.parametrize(("edit", "flags", "error"), EDITS.values(), ids=EDITS)
def test_the_repaired_command_works(edit, flags, error, beside, tmp_path, monkeypatch):
    run_dir = tmp_path / "run"
    if beside:
        run_dir.mkdir()
        (run_dir / beside[0]).write_text("a job's\n")
    with monkeypatch.context() as patch:
        if edit is not None:
            edited(patch, *edit)
        with pytest.raises(error):
            train(Config(**TINY | flags, run_dir=run_dir))
    repaired = train(Config(**TINY, run_dir=run_dir))
    assert repaired.metrics["update"].tolist() == [1, 2, 3]
    assert not (run_dir / "failure.txt").exists()
    assert all((run_dir / name).read_text() == "a job's\n" for name in beside)


def test_without_a_named_folder_nothing_is_in_the_way_either(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        edited(patch, "ppo_update", taken_name)
        with pytest.raises(ConfigError):
            train(Config(**TINY, log_dir=tmp_path / "logs"))
    assert not (tmp_path / "logs").exists() or not any((tmp_path / "logs/torch_logs").iterdir())
    assert train(Config(**TINY, log_dir=tmp_path / "logs")).is_finished


def test_what_a_tracker_of_ones_own_has_written_stays(tmp_path):
    with pytest.raises(ConfigError):
        train(Config(**TINY, track=f"{__name__}:CannotStart", run_dir=tmp_path / "run"))
    assert [each.name for each in (tmp_path / "run").iterdir()] == ["metrics.csv"]


def test_a_replaced_run_leaves_no_lines_and_a_line_says_so(tmp_path, capfd):
    """As after a kill, which notes no failure."""
    whole = train(Config(**TINY, run_dir=tmp_path / "run"))
    alone = (whole / POLICY).read_bytes()
    for name in (POLICY, "summary.json", *[f"checkpoints/{each}" for each in os.listdir(whole / "checkpoints")]):
        (whole / name).unlink()
    events = [*whole.run_dir.glob("events.*")]
    capfd.readouterr()
    again = train(Config(**TINY, run_dir=tmp_path / "run", track="tensorboard"))
    assert (
        f"replacing the run in {tmp_path / 'run'}, which ended before its first checkpoint\n" in capfd.readouterr().err
    )
    assert (again / POLICY).read_bytes() == alone
    assert not (again / "metrics.jsonl").exists()
    assert not any(each.exists() for each in events)


@pytest.mark.parametrize(
    "name", ["checkpoints/update_1.ckpt", "checkpoints/update_1.ckpt.damaged", POLICY, "summary.json"]
)
def test_what_there_is_to_go_on_from_is_not_replaced(name, tmp_path):
    begun(tmp_path / "run")
    (tmp_path / "run/checkpoints").mkdir()
    (tmp_path / "run" / name).write_text("")
    refused(tmp_path / "run")
    with pytest.raises(ConfigError, match="holds a run already"):  # under the lock, where it came meanwhile
        folder.replace_run(tmp_path / "run")


def test_nor_a_run_that_failed_after_its_first_update(tmp_path):
    with pytest.raises(Edited):
        train(Config(**TINY, run_dir=tmp_path / "run", callback=f"{__name__}:FailsLater"))
    refused(tmp_path / "run")


def test_nor_a_file_of_flags_that_no_run_has_begun_with(tmp_path):
    """Another program's, or a copy of a run's."""
    (tmp_path / "own").mkdir()
    (tmp_path / "own/config.yaml").write_text("a: 1\n")
    refused(tmp_path / "own")
    begun(tmp_path / "run")
    (tmp_path / "run/.lock").unlink()
    refused(tmp_path / "run")


def test_nor_a_run_that_may_still_train(tmp_path, monkeypatch):
    """Where the file system has no locks, `failure.txt` alone says that it has ended."""

    def lockf(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(folder.fcntl, "lockf", lockf)
    begun(tmp_path / "run")
    refused(tmp_path / "run")
    (tmp_path / "run/failure.txt").write_text("it failed\n")
    folder.require_usable(TorchConfig(run_dir=str(tmp_path / "run")))


def begun(run_dir):
    """A run that was killed as soon as it had begun."""
    folder.lock_folder(run_dir)()
    folder.make_folder(run_dir, TorchConfig())


def refused(run_dir):
    before = sorted(run_dir.rglob("*"))
    with pytest.raises(ConfigError, match="holds a run already; a new folder or --resume is expected"):
        train(Config(**TINY, run_dir=run_dir))
    assert sorted(run_dir.rglob("*")) == before

"""A run's folder: nobody else's."""

from __future__ import annotations

import errno
import os
import subprocess
import sys

import pytest

from fabric_ppo.config import Config, TorchConfig
from fabric_ppo.process.errors import ConfigError
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


OTHER_THINGS = {
    "notes": ["notes.txt"],
    "a project": ["src/main.py", ".git/HEAD", "config.yaml"],
    "another program's run": ["checkpoints/epoch_3.pt", "train.log"],
    "a picture beside a tracker's file": ["metrics.jsonl", "curve.svg"],
}
LIKE_NEW = {
    "empty": [],
    "a start that was killed": [".lock", ".config.yaml.tmp", "train_videos/0.mp4"],
    "its config.yaml is lost": ["checkpoints/update_3.ckpt", "notes.txt"],
    "its checkpoint is damaged": ["checkpoints/update_3.ckpt.damaged", "notes.txt"],
    "a new disk": ["lost+found/", ".DS_Store"],
    "files of a run alone": ["summary.json", "events.out.tfevents.1.host.2.0", "policy.safetensors"],
}


def fill(run_dir, names):
    run_dir.mkdir()
    for name in names:
        path = run_dir / name
        path.parent.mkdir(exist_ok=True, parents=True)
        path.mkdir() if name.endswith("/") else path.write_text("")


@pytest.mark.parametrize("names", OTHER_THINGS.values(), ids=OTHER_THINGS)
def test_a_folder_with_other_things_is_no_run_to_go_on_with(tmp_path, names):
    fill(tmp_path / "a", names)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(
        ConfigError, match=r"holds no run, but .*; the folder of a run, or a new or empty one"
    ) as caught:
        folder.new_run_dir(Config(run_dir=str(tmp_path / "a"), resume=True))
    assert str(caught.value).startswith(f"--resume --run-dir {tmp_path / 'a'}: ")
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("names", LIKE_NEW.values(), ids=LIKE_NEW)
def test_what_a_run_or_the_system_has_left_is_no_hindrance(tmp_path, names):
    fill(tmp_path / "a", names)
    assert folder.new_run_dir(Config(run_dir=str(tmp_path / "a"), resume=True)) == tmp_path / "a"


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_the_file_that_a_run_prints_into_may_lie_in_its_folder(tmp_path, stream):
    """As `> runs/a/output.txt`, and the benchmark's runs."""
    code = "from fabric_ppo.run.folder import new_run_dir; from fabric_ppo.config import Config\n"
    code += "new_run_dir(Config(run_dir='.', resume=True))"
    with (tmp_path / "output.txt").open("w") as output:
        env = os.environ | {"PYTHONPATH": os.getcwd()}
        subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, env=env, **{stream: output})


def test_a_run_with_other_things_beside_it_goes_on(tmp_path):
    """As a report, or what a tracker of one's own writes."""
    folder.make_folder(tmp_path, TorchConfig())
    (tmp_path / "notes.txt").touch()
    assert folder.new_run_dir(TorchConfig(run_dir=str(tmp_path), resume=True)) == tmp_path


@pytest.mark.parametrize("below", ["first", "torch_logs/first"])
def test_a_folder_of_runs_names_the_newest(tmp_path, below):
    for name, second in ((below, 2), ("older", 1)):
        folder.make_folder(tmp_path / name, TorchConfig())
        os.utime(tmp_path / name / "config.yaml", (second, second))
    with pytest.raises(ConfigError) as caught:
        folder.new_run_dir(TorchConfig(run_dir=str(tmp_path), resume=True))
    expected = f"holds no run, but others below it; one, as {tmp_path / below}, is expected"
    assert str(caught.value) == f"--resume --run-dir {tmp_path}: {expected}"


def test_a_folder_that_cannot_be_read_is_left_to_the_lock(tmp_path):
    """It is the lock that says why nothing can be written there."""
    assert folder.new_run_dir(Config(run_dir=str(tmp_path / "missing"), resume=True)) == tmp_path / "missing"


def test_a_line_says_what_is_waited_for(tmp_path, monkeypatch, capsys):
    """Once, before the first wait."""
    printed = []

    def lockf(*_):
        raise OSError(errno.EAGAIN, "taken")

    monkeypatch.setattr(folder.fcntl, "lockf", lockf)
    monkeypatch.setattr(folder.time, "sleep", lambda _: printed.append(capsys.readouterr().err))
    with pytest.raises(ConfigError, match="another process trains there"):
        folder.lock_folder(tmp_path)
    assert printed[0] == f"waiting for {tmp_path}, where another process trains\n"
    assert not any(printed[1:])

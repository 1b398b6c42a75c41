"""Full or read-only disks, and output that goes nowhere: they cost what cannot be written, not the training."""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import subprocess
from pathlib import Path

import pytest

import train_torch
from fabric_ppo.process.errors import NOT_ALL_WRITTEN
from fabric_ppo.process.files import Checkpoint
from tests.fixtures.launching import COLLECTORS, command, exit_codes, start_ranks
from tests.fixtures.processes import PATIENCE
from tests.fixtures.resuming import (
    assert_same_run,
    checkpoints,
    config_of,
    finish,
    metrics,
    on_call,
    summary,
)


def no_large_files(limit):
    """From now on no file of this process may grow beyond `limit` bytes."""

    def act():
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))

    return act


@contextlib.contextmanager
def small_disk(folder: Path, size: int):
    """A file system of so many bytes."""
    folder.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], capture_output=True)
    if made.returncode:
        pytest.skip("a file system cannot be mounted here")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def told_incomplete(said: str) -> list[str]:
    """What a run that could not write everything said: each thing once when it failed, and all at the end."""
    assert "Traceback" not in said
    lines = said.splitlines()
    warnings = [
        line.removeprefix("warning: ").partition(" could not be written (")[0]
        for line in lines
        if line.startswith("warning: ")
    ]
    assert len(set(warnings)) == len(warnings)
    assert all(line.endswith("; the run goes on without") for line in lines if line.startswith("warning: "))
    assert lines[-1].startswith("done, but not everything could be written: ")
    assert all(what in lines[-1] for what in warnings)
    return warnings


def intact(run_dir: Path) -> list[int]:
    """The updates of the checkpoints; every file there is one, whole."""
    for path in (run_dir / "checkpoints").iterdir():
        Checkpoint.from_bytes(path.read_bytes())
    return checkpoints(run_dir)


@pytest.mark.parametrize(("script", "size"), [("torch", 2), ("decoupled", 2)])
def test_where_files_cannot_grow_the_training_goes_on(tmp_path, monkeypatch, script, size):
    """Status 3 at the end, nothing half-written; with room again, `--resume` makes up for it, bit for bit."""
    updates = 30
    with monkeypatch.context() as patch:
        collector = COLLECTORS[script]
        patch.setattr(collector, "collect", on_call(4, 0, no_large_files(8192), collector.collect))
        config = config_of(script, size, tmp_path / "run", updates)
        statuses = exit_codes(start_ranks(script, [config] * size, tmp_path / "out"))
    said = (tmp_path / "out/0.txt").read_text()
    assert statuses == [NOT_ALL_WRITTEN, *[0] * (size - 1)], said
    warnings = told_incomplete(said)
    assert {"a checkpoint", "metrics.jsonl", "TensorBoard's events", "policy.safetensors"} <= set(warnings)
    assert intact(tmp_path / "run") == [2]
    assert not (tmp_path / "run/policy.safetensors").exists()
    assert 10 < len(metrics(tmp_path / "run")) < updates  # all lines are whole
    assert summary(tmp_path / "run")["updates"] == updates
    finish(script, size, tmp_path / "run", updates, resume=True)
    assert_same_run(tmp_path / "run", finish(script, size, tmp_path / "expected", updates), resumes=1)


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a file system")
def test_a_full_disk(tmp_path):
    """Room for the first checkpoint, which is the best one too, and half of another."""
    content = (finish("torch", 1, tmp_path / "expected") / "checkpoints/update_6.ckpt").read_bytes()
    with small_disk(tmp_path / "disk", len(content) * 5 // 2 + 40000):
        run_dir = tmp_path / "disk/run"
        config = config_of("torch", 1, run_dir)
        statuses = exit_codes(start_ranks("torch", [config], tmp_path / "out"))
        said = (tmp_path / "out/0.txt").read_text()
        assert statuses == [NOT_ALL_WRITTEN], said
        assert "a checkpoint" in told_incomplete(said)
        assert "No space left on device" in said
        assert intact(run_dir)[0] == 2
        lines = metrics(run_dir)
        assert lines == metrics(tmp_path / "expected")[: len(lines)]


def test_a_folder_that_cannot_be_written(tmp_path, monkeypatch):
    """Where checkpoints should go lies a file."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run/checkpoints").write_text("in the way")
    config = config_of("torch", 1, tmp_path / "run")
    statuses = exit_codes(start_ranks("torch", [config], tmp_path / "out"))
    said = (tmp_path / "out/0.txt").read_text()
    assert statuses == [NOT_ALL_WRITTEN], said
    assert told_incomplete(said) == ["a checkpoint"]
    (tmp_path / "run/checkpoints").unlink()
    expected = finish("torch", 1, tmp_path / "expected")
    assert (tmp_path / "run/policy.safetensors").read_bytes() == (expected / "policy.safetensors").read_bytes()


def test_a_folder_that_becomes_read_only(tmp_path, monkeypatch):
    """Older checkpoints stay."""
    run_dir = tmp_path / "run"
    monkeypatch.setattr(train_torch, "collect", on_call(4, 0, lambda: forbid(run_dir), train_torch.collect))
    statuses = exit_codes(start_ranks("torch", [config_of("torch", 1, run_dir)], tmp_path / "out"))
    said = (tmp_path / "out/0.txt").read_text()
    assert statuses == [NOT_ALL_WRITTEN], said
    assert "a checkpoint" in told_incomplete(said)
    assert "Permission denied" in said
    assert intact(run_dir) == [2]
    assert len(metrics(run_dir)) == 6  # that file was open


def forbid(run_dir: Path) -> None:
    (run_dir / "checkpoints").chmod(0o555)
    # root is not held by modes, unless it gives up that capability (CAP_DAC_OVERRIDE, bit 1)
    libc, header, sets = ctypes.CDLL(None), (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    assert libc.capget(header, sets) == 0
    sets[0] &= ~2
    assert libc.capset(header, sets) == 0


def overflow():
    """Both streams lead to a full disk from now on."""
    full = os.open("/dev/full", os.O_WRONLY)
    os.dup2(full, 1)
    os.dup2(full, 2)


def test_what_cannot_be_said_costs_no_training(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(train_torch, "collect", on_call(2, 0, overflow, train_torch.collect))
        ranks = start_ranks("torch", [config_of("torch", 1, tmp_path / "run", 4)], tmp_path / "out")
        assert exit_codes(ranks) == [0]
    expected = finish("torch", 1, tmp_path / "expected", 4)
    assert (tmp_path / "run/policy.safetensors").read_bytes() == (expected / "policy.safetensors").read_bytes()
    assert summary(tmp_path / "run")["test"] == summary(expected)["test"]


def test_a_script_that_nobody_listens_to_ends_as_ever(tmp_path):
    """Python's own last flush, too."""
    flags = ["--total-timesteps", "64", "--num-steps", "16", "--num-envs", "2", "--run-dir", str(tmp_path / "run")]
    with open("/dev/full", "w") as full:
        done = subprocess.run([*command("torch", 0), *flags], cwd=tmp_path, stdout=full, stderr=full, timeout=PATIENCE)
    assert done.returncode == 0
    assert summary(tmp_path / "run")["updates"] == 2


@pytest.mark.parametrize("name", ["train_videos", "test_videos"])
def test_a_folder_for_videos_that_cannot_be_made_costs_the_videos(tmp_path, name):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / name).touch()
    config = config_of("torch", 1, tmp_path / "run", 2, capture_video=True)
    statuses = exit_codes(start_ranks("torch", [config], tmp_path / "out"))
    said = (tmp_path / "out/0.txt").read_text()
    assert statuses == [NOT_ALL_WRITTEN]
    assert "Traceback" not in said
    assert said.splitlines()[-1] == (
        f"done, but not everything could be written: a video in {tmp_path}/run/{name} (File exists)"
    )
    assert summary(tmp_path / "run")["test"]["episodes"] == 1

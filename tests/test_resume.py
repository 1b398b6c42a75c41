"""H4: a run that is killed, anywhere, and resumed ends as the one that was left alone, bit for bit."""

from __future__ import annotations

import json
import os
import shutil
from collections import defaultdict
from itertools import pairwise

import pytest
import torch
from safetensors.torch import load_file

from fabric_ppo import checkpoint as checkpoint_module
from fabric_ppo import envs as envs_module
from fabric_ppo import run as run_module
from fabric_ppo.checkpoint import Checkpoint
from fabric_ppo.run import Run
from tests.resuming import (
    assert_same_run,
    checkpoints,
    curves,
    die,
    finish,
    metrics,
    newest_checkpoint,
    on_call,
    summary,
    train,
)
from tests.runs import SCRIPTS

PENDULUM = {"env_id": "Pendulum-v1"}
ASYNC = {"env_backend": "async"}
SHARED = {"share_data": True}
OVERLAP = {"overlap": True}


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory):
    """The run that was left alone, once for each script, number of ranks and flags."""
    runs = {}

    def get(script, size, **flags):
        key = (script, size, *sorted(flags.items()))
        if key not in runs:
            runs[key] = finish(script, size, tmp_path_factory.mktemp("undisturbed") / "run", **flags)
        return runs[key]

    return get


def interrupt(monkeypatch, script, point, number, rank, act=die):
    """Have forked ranks `act` where they call `point` for the `number`-th time.

    `rename FILE` is the moment at which FILE lies complete beside its name.
    """
    point, _, about = point.partition(" ")
    owner, name = {
        "collect": (SCRIPTS[script], "collect"),
        "update": (SCRIPTS[script], "ppo_update"),
        "log": (Run, "finish_update"),
        "keep": (run_module.Checkpoints, "keep"),
        "rename": (checkpoint_module.os, "replace"),
    }[point]
    monkeypatch.setattr(owner, name, on_call(number, rank, act, getattr(owner, name), about))


@pytest.mark.parametrize(
    ("script", "size", "flags", "point", "rank"),
    [
        ("torch", 1, {}, "collect", 0),
        ("torch", 1, PENDULUM | ASYNC, "update", 0),
        ("torch", 2, SHARED, "update", 1),
        ("torch", 2, PENDULUM | ASYNC, "log", 0),
        ("fabric", 2, PENDULUM, "log", 1),
        ("fabric", 2, SHARED | ASYNC, "collect", 0),
        ("decoupled", 2, {}, "update", 1),
        ("decoupled", 2, PENDULUM | OVERLAP, "collect", 0),
        ("decoupled", 3, SHARED | OVERLAP | ASYNC, "log", 0),
        ("decoupled", 3, PENDULUM | SHARED, "update", 2),
    ],
)
def test_a_killed_run_goes_on_to_the_same_bits(tmp_path, monkeypatch, undisturbed, script, size, flags, point, rank):
    with monkeypatch.context() as patch:
        interrupt(patch, script, point, 4, rank)
        said = train(script, size, tmp_path / "run", **flags)
    assert said[rank] == "exit code 9"
    assert all(said)
    # a rank that dies leaves rank 0 with the newest state; a rank 0 that dies leaves what is in the last file
    assert checkpoints(tmp_path / "run")[0] in ((2,) if rank == 0 else (3,))
    finish(script, size, tmp_path / "run", resume=True, **flags)
    assert_same_run(tmp_path / "run", undisturbed(script, size, **flags), resumes=1)


@pytest.mark.parametrize(
    ("point", "number", "kept"),
    [
        ("collect", 6, 4),
        ("log", 3, 2),
        ("keep", 4, 2),  # the line of update 4 is written, its checkpoint is not
        ("rename config.yaml", 1, 0),
        ("rename update_2.ckpt", 1, 0),
        ("rename best.ckpt", 1, 0),
        ("rename update_4.ckpt", 1, 2),
        ("rename best.ckpt", 2, 2),
        ("rename update_6.ckpt", 1, 4),
        ("rename summary.json", 1, 6),
        ("rename summary.json", 2, 6),
    ],
)
def test_at_any_point_of_a_run(tmp_path, monkeypatch, undisturbed, point, number, kept):
    with monkeypatch.context() as patch:
        interrupt(patch, "torch", point, number, 0)
        assert train("torch", 1, tmp_path / "run") == ["exit code 9"]
    assert (checkpoints(tmp_path / "run") or [0])[0] == kept
    finish("torch", 1, tmp_path / "run", resume=True)
    assert_same_run(tmp_path / "run", undisturbed("torch", 1), resumes=1 if kept else 0)
    best, wanted = (
        Checkpoint.from_bytes((path / "checkpoints/best.ckpt").read_bytes()).values
        for path in (tmp_path / "run", undisturbed("torch", 1))
    )
    assert (best["update"], best["return_mean"]) == (wanted["update"], wanted["return_mean"])
    assert sorted(path.name for path in (tmp_path / "run/checkpoints").iterdir()) == [
        "best.ckpt",
        "update_2.ckpt",
        "update_4.ckpt",
        "update_6.ckpt",
    ]

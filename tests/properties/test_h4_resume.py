"""H4: a run that is killed, anywhere, and resumed ends as the one that was left alone, bit for bit."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from fabric_ppo.architectures.exchange import Exchange
from fabric_ppo.process.files import Checkpoint
from fabric_ppo.run.checkpoint import Checkpoints
from fabric_ppo.run.run import Run
from fabric_ppo.run.trackers import tensorboard
from tests.fixtures.launching import COLLECTORS, SCRIPTS
from tests.fixtures.resuming import (
    NUM_UPDATES,
    assert_same_run,
    checkpoints,
    die,
    finish,
    metrics,
    on_call,
    summary,
    train,
)

pytestmark = pytest.mark.processes

PENDULUM = {"env_id": "Pendulum-v1"}


TENSORS = {"env_id": "tensor/CartPole-v1"}


PARTS = {"env_id": "tests.fixtures.mixed_envs:PartsMasks-v0"}


STEERED = {"env_id": "tests.fixtures.functional:Steered", "env_backend": "vector"}


ASYNC = {"env_backend": "async"}


SHARED = {"share_data": True}


OVERLAP = {"overlap": True}


NORMALIZED = {"normalize_observations": True, "normalize_rewards": True}


EARLY_END = {"target_kl": 1e-4}


EVALUATED = {"eval_every": 1, "eval_episodes": 1}


SOMETIMES = {"eval_every": 2, "eval_episodes": 2}


ADAPTED = {"desired_kl": 2e-3, "anneal_lr": False}


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
        "collect": (COLLECTORS[script], "collect"),
        "update": (SCRIPTS[script], "ppo_update"),
        "merge": (Run, "merge"),
        "keep": (Checkpoints, "keep"),
        "rename": (os, "replace"),
    }[point]
    monkeypatch.setattr(owner, name, on_call(number, rank, act, getattr(owner, name), about))


@pytest.mark.parametrize(
    ("script", "size", "flags", "point", "rank"),
    [
        ("torch", 1, {}, "collect", 0),
        ("torch", 1, PENDULUM | ASYNC, "update", 0),
        ("torch", 2, SHARED, "update", 1),
        ("torch", 2, PENDULUM | ASYNC | NORMALIZED, "merge", 0),
        ("torch", 1, ADAPTED | EVALUATED, "merge", 0),
        ("fabric", 2, PENDULUM | EARLY_END, "merge", 1),
        ("fabric", 2, PENDULUM | ADAPTED, "merge", 1),
        ("fabric", 2, SHARED | ASYNC, "collect", 0),
        ("torch", 2, TENSORS | SHARED, "update", 1),
        ("fabric", 1, TENSORS | {"recurrent": "gru", "per_rank_batch_size": 16}, "merge", 0),
        ("decoupled", 2, TENSORS | OVERLAP | NORMALIZED, "collect", 0),
        ("decoupled", 2, {}, "update", 1),
        ("decoupled", 2, PENDULUM | OVERLAP | NORMALIZED, "collect", 0),
        ("decoupled", 3, SHARED | OVERLAP | ASYNC, "merge", 0),
        ("decoupled", 3, PENDULUM | SHARED | NORMALIZED | EARLY_END, "update", 2),
        ("decoupled", 2, ADAPTED, "collect", 0),
        ("decoupled", 3, PENDULUM | OVERLAP | ADAPTED | EVALUATED, "update", 2),
        ("torch", 1, {"env_id": "HalfCheetah-v5"} | NORMALIZED, "merge", 0),
        ("fabric", 2, {"env_id": "LunarLander-v3"}, "update", 1),
        ("decoupled", 2, {"env_id": "tests.fixtures.nested_envs:Masked-v0"} | SOMETIMES, "collect", 0),
        ("fabric", 2, {"env_id": "tests.fixtures.nested_envs:Nested-v0"} | ASYNC | SOMETIMES, "merge", 1),
        ("torch", 1, PARTS | SOMETIMES, "collect", 0),
        ("fabric", 2, PARTS | ASYNC, "update", 0),
        ("decoupled", 2, PARTS | OVERLAP, "collect", 0),
        ("torch", 1, STEERED, "merge", 0),
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
        ("merge", 3, 2),
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


def test_a_run_killed_again_and_again(tmp_path, monkeypatch, undisturbed):
    """At its beginning, while it takes out what was logged after the checkpoint, and twice later."""
    run_dir = tmp_path / "run"
    for resume, point, number in (
        (False, "collect", 4),
        (True, "rename events.out.tfevents.0", 1),
        (True, "merge", 2),
        (True, "keep", 2),
    ):
        with monkeypatch.context() as patch:
            interrupt(patch, "torch", point, number, 0)
            assert train("torch", 1, run_dir, resume=resume) == ["exit code 9"]
    finish("torch", 1, run_dir, resume=True)
    # the second leg wrote no checkpoint: nothing remembers it; nor did the third
    assert_same_run(run_dir, undisturbed("torch", 1), resumes=summary(run_dir)["resumes"])
    assert summary(run_dir)["resumes"] in (1, 2, 3)


def test_a_run_killed_before_it_dropped_an_old_checkpoint_drops_it(tmp_path, monkeypatch):
    """Also where there is nothing left to write."""
    flags = {"checkpoint_every": 1, "keep_checkpoints": 2}
    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", on_call(NUM_UPDATES - 2, 0, die, Path.unlink, about=".ckpt"))
        train("torch", 1, tmp_path, **flags)
    assert checkpoints(tmp_path) == [6, 5, 4]
    finish("torch", 1, tmp_path, resume=True, **flags)
    assert checkpoints(tmp_path) == [6, 5]


def test_resumes_are_counted(tmp_path, monkeypatch, undisturbed):
    for leg in range(3):
        with monkeypatch.context() as patch:
            interrupt(patch, "torch", "update", 3 if leg == 0 else 2, 0, explode)
            (said,) = train("torch", 1, tmp_path / "run", resume=leg > 0)
            assert "RuntimeError: told to fail" in said
        assert checkpoints(tmp_path / "run")[0] == (2, 3, 4)[leg]
    finish("torch", 1, tmp_path / "run", resume=True)
    assert_same_run(tmp_path / "run", undisturbed("torch", 1), resumes=3)


def explode():
    raise RuntimeError("told to fail")


@pytest.mark.parametrize(
    ("script", "size", "flags", "rank"),
    [("torch", 2, {}, 0), ("torch", 2, {}, 1), ("decoupled", 2, OVERLAP, 0), ("decoupled", 2, OVERLAP, 1)],
)
def test_a_run_that_fails_keeps_the_state_from_before_the_update(
    tmp_path, monkeypatch, undisturbed, capfd, script, size, flags, rank
):
    """Also between two checkpoints; whichever rank failed; and rank 0 says where it lies."""
    with monkeypatch.context() as patch:
        interrupt(patch, script, "collect" if (script, rank) == ("decoupled", 0) else "update", 4, rank, explode)
        said = train(script, size, tmp_path / "run", **flags)
    assert "RuntimeError: told to fail" in said[rank]
    newest = checkpoints(tmp_path / "run")[0]
    # the overlapping player fails while it collects the fourth rollout, and update 3 is still under way
    assert newest == (2 if (script, rank) == ("decoupled", 0) else 3)
    path = tmp_path / "run/checkpoints" / f"update_{newest}.ckpt"
    run_dir = str(tmp_path / "run")
    (line,) = (each for each in capfd.readouterr().err.splitlines() if each.startswith("the run has failed"))
    assert line.startswith(f"the run has failed; saved {path}: go on with ")
    assert line.count(f"train(Config(run_dir={run_dir!r}, resume=True))") == 1
    finish(script, size, tmp_path / "run", resume=True, **flags)
    assert_same_run(tmp_path / "run", undisturbed(script, size, **flags), resumes=1)


def test_three_ranks_over_gloo(tmp_path, monkeypatch):
    """DDP's own sums, whose order depends on its buckets, which DDP builds anew after its first backward pass."""
    monkeypatch.setattr(SCRIPTS["torch"], "reduce_in_shared_memory", lambda *_: None)
    expected = finish("torch", 3, tmp_path / "expected")
    with monkeypatch.context() as patch:
        interrupt(patch, "torch", "merge", 4, 2)
        train("torch", 3, tmp_path / "run")
    finish("torch", 3, tmp_path / "run", resume=True)
    assert_same_run(tmp_path / "run", expected, resumes=1)


@pytest.mark.parametrize(("script", "size"), [("torch", 1), ("decoupled", 2)])
def test_resuming_a_finished_run_changes_nothing(tmp_path, undisturbed, script, size):
    expected = undisturbed(script, size)
    shutil.copytree(expected, tmp_path / "run")
    finish(script, size, tmp_path / "run", resume=True)
    assert_same_run(tmp_path / "run", expected, resumes=1)
    assert summary(tmp_path / "run")["train_seconds"] == pytest.approx(summary(expected)["train_seconds"])


@pytest.mark.parametrize(("script", "size", "flags"), [("torch", 1, {}), ("decoupled", 2, OVERLAP)])
def test_a_finished_run_can_be_made_longer(tmp_path, undisturbed, script, size, flags):
    """With a learning rate that does not depend on the length, it ends where the longer run does."""
    flags = flags | {"anneal_lr": False}
    finish(script, size, tmp_path / "run", updates=4, **flags)
    finish(script, size, tmp_path / "run", resume=True, **flags)
    assert_same_run(tmp_path / "run", undisturbed(script, size, **flags), resumes=1)


def test_without_a_checkpoint_a_run_begins(tmp_path, monkeypatch, undisturbed):
    """In a folder that does not exist, in an empty one, and in one of a run that was killed too early."""
    (tmp_path / "empty").mkdir()
    with monkeypatch.context() as patch:
        interrupt(patch, "torch", "update", 2, 0)
        assert train("torch", 1, tmp_path / "killed") == ["exit code 9"]
    assert checkpoints(tmp_path / "killed") == []
    for name in ("none", "empty", "killed"):
        finish("torch", 1, tmp_path / name, resume=True)
        assert_same_run(tmp_path / name, undisturbed("torch", 1), resumes=0)


def test_a_run_that_reached_its_goal_stays_there(tmp_path, monkeypatch):
    """The window of 100 episodes is part of the state."""
    flags = {"num_steps": 128, "update_epochs": 1, "per_rank_batch_size": 64, "stop_at_return": 15.0}
    expected = finish("torch", 1, tmp_path / "expected", updates=40, **flags)
    reached = len(metrics(expected))
    assert 5 < reached < 40
    with monkeypatch.context() as patch:
        interrupt(patch, "torch", "merge", reached, 0)
        assert train("torch", 1, tmp_path / "run", updates=40, **flags) == ["exit code 9"]
    for resumes in (1, 2):
        finish("torch", 1, tmp_path / "run", updates=40, resume=True, **flags)
        assert_same_run(tmp_path / "run", expected, resumes)


def test_tensorboard_reads_in_order_also_where_the_clock_went_back(tmp_path, monkeypatch, undisturbed):
    """It takes files by name, which holds the time at which they were begun, and drops what a lower step follows."""
    with monkeypatch.context() as patch:
        interrupt(patch, "torch", "merge", 4, 0)
        train("torch", 1, tmp_path / "run")
    (events,) = (tmp_path / "run").glob("events.out.tfevents.*")
    events.rename(events.with_name("events.out.tfevents.9999999999.ahead"))
    finish("torch", 1, tmp_path / "run", resume=True)
    assert_same_run(tmp_path / "run", undisturbed("torch", 1), resumes=1)
    read = EventAccumulator(str(tmp_path / "run")).Reload().Scalars("Loss/policy_loss")
    assert [event.step for event in read] == [32 * update for update in range(1, NUM_UPDATES + 1)]


@pytest.mark.parametrize(("script", "size"), [("torch", 1), ("decoupled", 2)])
def test_a_run_that_goes_on_does_not_need_what_it_was_begun_from(tmp_path, monkeypatch, undisturbed, script, size):
    """The other run may have dropped that checkpoint, or be gone."""
    shutil.copytree(undisturbed("torch", 1), tmp_path / "first")
    flags = {"init_from": str(tmp_path / "first"), "seed": 7}
    expected = finish(script, size, tmp_path / "expected", **flags)
    with monkeypatch.context() as patch:
        interrupt(patch, script, "merge", 4, 0)
        train(script, size, tmp_path / "run", **flags)
    shutil.rmtree(tmp_path / "first")
    finish(script, size, tmp_path / "run", resume=True, **flags)
    assert_same_run(tmp_path / "run", expected, resumes=1)
    said = train(script, size, tmp_path / "new", **flags)
    assert f"ConfigError: --init-from {tmp_path / 'first'}: " in said[0]


def test_videos_go_on(tmp_path, monkeypatch):
    """Episodes keep their numbers, so the schedule picks the same ones; a video that was cut off is made anew."""
    flags = {"capture_video": True, "num_envs": 1}
    expected = finish("torch", 1, tmp_path / "expected", updates=12, **flags)
    with monkeypatch.context() as patch:
        interrupt(patch, "torch", "update", 4, 0)
        assert train("torch", 1, tmp_path / "run", updates=12, **flags) == ["exit code 9"]
    finish("torch", 1, tmp_path / "run", updates=12, resume=True, **flags)
    assert_same_run(tmp_path / "run", expected, resumes=1)
    for folder in ("train_videos", "test_videos"):
        names = [sorted(path.name for path in (run / folder).iterdir()) for run in (expected, tmp_path / "run")]
        assert names[0] == names[1] != []


def test_the_backend_may_change(tmp_path, monkeypatch, undisturbed):
    with monkeypatch.context() as patch:
        interrupt(patch, "torch", "collect", 4, 1)
        train("torch", 2, tmp_path / "run", **PENDULUM)
    finish("torch", 2, tmp_path / "run", resume=True, env_backend="async", **PENDULUM)
    assert_same_run(tmp_path / "run", undisturbed("torch", 2, **PENDULUM), resumes=1)


@pytest.mark.parametrize("env_id", ["CartPole-v1", "Pendulum-v1"])
@pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 1)])
def test_ranks_may_change_with_shared_data(tmp_path, env_id, before, after, capfd):
    """The same environments, spread otherwise: the same result but for rounding, and the summary says so."""

    def flags(size):
        spread = {"num_envs": 4 // size, "per_rank_batch_size": 12 // size}
        more = NORMALIZED if env_id == "Pendulum-v1" else {}
        return {"env_id": env_id, "share_data": True, "precision": "64-true", "anneal_lr": False} | spread | more

    expected = finish("fabric", before, tmp_path / "expected", updates=3, **flags(before))
    finish("fabric", before, tmp_path / "run", updates=2, **flags(before))
    finish("fabric", after, tmp_path / "run", updates=3, resume=True, **flags(after))
    assert "the result will not be the same bit for bit" in capfd.readouterr().err
    assert (summary(tmp_path / "run")["exact_resume"], summary(tmp_path / "run")["resumes"]) == (False, 1)
    weights = load_file(expected / "policy.safetensors")
    for name, tensor in load_file(tmp_path / "run/policy.safetensors").items():
        assert tensor.dtype == torch.float64
        assert (tensor - weights[name]).abs().max() < 1e-9
    for ours, theirs in zip(metrics(tmp_path / "run"), metrics(expected), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-6, abs=1e-6)


def test_trainers_may_change_with_shared_data(tmp_path, capfd):
    flags = {"share_data": True, "anneal_lr": False}
    finish("decoupled", 2, tmp_path / "run", updates=2, per_rank_batch_size=12, **flags)
    finish("decoupled", 3, tmp_path / "run", updates=3, per_rank_batch_size=6, resume=True, **flags)
    assert "the result will not be the same bit for bit" in capfd.readouterr().err
    assert summary(tmp_path / "run")["exact_resume"] is False


def test_an_update_counts_though_what_follows_cannot_be_sent(tmp_path, monkeypatch, undisturbed):
    """With --overlap the next rows go out before an update is reported: if that fails, it is kept all the same."""

    def fail():
        raise RuntimeError("gone")

    with monkeypatch.context() as patch:
        patch.setattr(Exchange, "_transmit", on_call(4, 0, fail, Exchange._transmit))
        said = train("decoupled", 2, tmp_path / "run", **OVERLAP)
    assert "gone" in said[0]
    assert checkpoints(tmp_path / "run")[0] == 3
    finish("decoupled", 2, tmp_path / "run", resume=True, **OVERLAP)
    assert_same_run(tmp_path / "run", undisturbed("decoupled", 2, **OVERLAP), resumes=1)


@pytest.mark.parametrize(("script", "size"), [("torch", 1), ("fabric", 1), ("decoupled", 2)])
def test_what_can_be_saved_has_been_logged(tmp_path, monkeypatch, undisturbed, script, size):
    """A late signal has another thread save, maybe as soon as there is something to save, and end the process."""
    keep = Checkpoints.keep

    def keep_and_end(self, snapshot):
        keep(self, snapshot)
        if snapshot.values["update"] == 3:
            self.save()
            die()

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "keep", keep_and_end)
        assert train(script, size, tmp_path / "run")[0] == "exit code 9"
    assert checkpoints(tmp_path / "run")[0] == 3
    finish(script, size, tmp_path / "run", resume=True)
    assert_same_run(tmp_path / "run", undisturbed(script, size), resumes=1)


@pytest.mark.parametrize("flags", [{}, OVERLAP], ids=str)
def test_trainers_get_nothing_after_the_goal(tmp_path, monkeypatch, flags):
    """A run that ends early has sent as many batches as it made updates, and then the end."""
    sent = tmp_path / "sent"
    send = Exchange.send

    def counted(exchange, batch):
        with sent.open("a") as file:
            file.write("end\n" if batch is None else f"{batch.update}\n")
        send(exchange, batch)

    monkeypatch.setattr(Exchange, "send", counted)
    run = finish("decoupled", 2, tmp_path / "run", updates=12, num_steps=128, num_envs=4, stop_at_return=1.0, **flags)
    updates = summary(run)["updates"]
    assert 0 < updates < 12
    assert sent.read_text().split() == [*map(str, range(updates)), "end"]


def test_a_log_that_cannot_be_cut_back_is_no_start(tmp_path, monkeypatch, undisturbed):
    """After a kill the log is ahead of the checkpoint: what would be logged twice is not begun."""
    with monkeypatch.context() as patch:
        patch.setattr(SCRIPTS["torch"], "collect", on_call(4, 0, die, SCRIPTS["torch"].collect))
        assert train("torch", 1, tmp_path / "run")[0] == "exit code 9"
    assert [line["update"] for line in metrics(tmp_path / "run")] == [1, 2, 3]
    assert checkpoints(tmp_path / "run") == [2]

    def full(path, content):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(tensorboard, "write_atomically", full)
        (said,) = train("torch", 1, tmp_path / "run", resume=True)
    reason = "No space left on device"
    assert f"ConfigError: {tmp_path / 'run'}: TensorBoard's events cannot be written ({reason})" in said
    finish("torch", 1, tmp_path / "run", resume=True)
    assert_same_run(tmp_path / "run", undisturbed("torch", 1), resumes=1)


def test_a_damaged_newest_checkpoint_is_passed_over(tmp_path, capfd):
    """And the run still ends with the same bits."""
    expected = finish("torch", 1, tmp_path / "expected", anneal_lr=False)
    finish("torch", 1, tmp_path / "run", updates=4, anneal_lr=False)
    newest = tmp_path / "run/checkpoints/update_4.ckpt"
    newest.write_bytes(newest.read_bytes()[:-1])
    finish("torch", 1, tmp_path / "run", anneal_lr=False, resume=True)
    said = capfd.readouterr().err
    assert f"not used: {newest}: damaged" in said
    assert "resumed after update 2 of 6" in said
    assert_same_run(tmp_path / "run", expected, resumes=1)

"""H9: watching changes nothing: observations, weights and logs stay bit-identical.

That is said of videos, evaluations, profiles and checkpoints, and of callbacks and trackers, whatever they do.
"""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from fabric_ppo.config import SCRIPT_CONFIGS
from tests.fixtures import rendering_envs
from tests.fixtures.launching import COLLECTORS, run_ranks
from tests.fixtures.resuming import die, metrics, on_call, summary
from tests.fixtures.videos import play, videos
from tests.fixtures.watchers import CALLBACK, TRACKER

pytestmark = pytest.mark.processes

FLAGS = {"num_steps": 32, "num_envs": 2, "update_epochs": 4, "test_episodes": 2, "learning_rate": 0.01, "seed": 5}
UPDATES = 7
ALONE = {"track": "jsonl"}
WATCHED = {
    "video": {"capture_video": True},
    "evaluation": {"eval_every": 3, "eval_episodes": 4},
    "profile": {"profile": True},
    "checkpoints": {"checkpoint_every": 1, "keep_checkpoints": 2},
    "callback": {"callback": CALLBACK, "eval_every": 3, "eval_episodes": 1},
    "own tracker": {"track": f"tensorboard,jsonl,{TRACKER}"},
    "json lines alone": ALONE,
    "all": {
        **{"capture_video": True, "eval_every": 2, "eval_episodes": 1, "profile": True, "checkpoint_every": 1},
        **{"callback": f"{CALLBACK},{CALLBACK}", "track": f"{TRACKER},jsonl"},
    },
}
SCRIPTS = [("torch", 1), ("fabric", 2), ("decoupled", 2)]
ENVIRONMENTS = {
    "particles for the picture": {"env_id": "LunarLander-v3"},
    "a picture by a wrapper": {
        "env_id": f"{rendering_envs.MODULE}:BarRenders-v0",
        "env_wrapper": f"{rendering_envs.MODULE}:pixels",
    },
    "a picture of its own": {"env_id": f"{rendering_envs.MODULE}:OwnPictureRenders-v0"},
    "a picture if it may render": {"env_id": f"{rendering_envs.MODULE}:OwnPicture-v0"},
    "another reward if it may render": {"env_id": f"{rendering_envs.MODULE}:ByMode-v0"},
    "another reward if it was made to render": {"env_id": f"{rendering_envs.MODULE}:ByFirstMode-v0"},
    "random pictures": {"env_id": f"{rendering_envs.MODULE}:Draws-v0"},
}
"""Environments that could tell whether they are watched."""


@pytest.fixture(scope="module")
def train(tmp_path_factory):
    """Trains a script with some flags in a folder of its own, which it returns."""

    def trained(script, size, **flags):
        run_dir = tmp_path_factory.mktemp(script) / "run"
        assert train_in(run_dir, script, size, **flags) == [""] * size
        return run_dir

    return trained


def train_in(run_dir, script, size, **flags):
    """Train in a folder; what each rank said."""
    total = FLAGS["num_steps"] * FLAGS["num_envs"] * (1 if script == "decoupled" else size) * UPDATES
    config = SCRIPT_CONFIGS[script](**FLAGS, total_timesteps=total, run_dir=str(run_dir), num_threads=1, **flags)
    return run_ranks(script, [config] * size)


@pytest.fixture(scope="module")
def unwatched(train):
    """Folders of runs that nobody watches, one for each script."""
    runs = {}

    def get(script, size):
        if script not in runs:
            runs[script] = train(script, size)
        return runs[script]

    return get


# "all" with each script, and what it consists of with one of them, in turn, for a run takes seconds
@pytest.mark.parametrize(
    ("how", "script", "size"),
    [
        *(("all", *script) for script in SCRIPTS),
        *((how, *script) for how, script in zip(WATCHED, itertools.cycle(SCRIPTS), strict=False) if how != "all"),
    ],
)
def test_a_run_that_is_watched_ends_with_the_same_bits(train, unwatched, script, size, how):
    """Weights, and what is logged besides."""
    watched, alone = train(script, size, **WATCHED[how]), unwatched(script, size)
    assert (watched / "policy.safetensors").read_bytes() == (alone / "policy.safetensors").read_bytes()
    lines = metrics(watched)
    evaluated = [[line.pop(key) for key in list(line) if key.startswith("Eval/")] for line in lines]
    assert lines == metrics(alone)
    # it was watched
    if "eval_every" in WATCHED[how]:
        assert any(evaluated)
    if "capture_video" in WATCHED[how]:
        assert list((watched / "train_videos").glob("*.mp4"))
        assert list((watched / "test_videos").glob("*.mp4"))
    if "profile" in WATCHED[how]:
        with_a_trace = 1 if script == "decoupled" else size  # trainers print their table only
        assert len(list(watched.glob("trace_rank_*.json"))) == with_a_trace
    if "callback" in WATCHED[how]:
        assert_called_back(watched, WATCHED[how]["callback"].count(CALLBACK), WATCHED[how]["eval_every"])
    if "track" in WATCHED[how]:
        is_on = "tensorboard" in WATCHED[how]["track"]
        assert bool(list(watched.glob("events.out.tfevents.*"))) == is_on
    if TRACKER in WATCHED[how].get("track", ""):
        steps = [f"log {line['step']}" for line in lines]
        tracked = (watched / "tracker.txt").read_text().splitlines()
        assert [tracked[0], *(line for line in tracked if line.startswith("log ")), tracked[-1]] == [
            "start 0",
            *steps,
            "finish",
        ]


def assert_called_back(run_dir, callbacks, eval_every):
    """Each of so many callbacks, at each occasion."""
    expected = ["start 0"]
    for update in range(1, UPDATES + 1):
        expected += [f"evaluation {update}"] * (update % eval_every == 0) + [f"update {update}"]
    expected.append(f"end {UPDATES}")
    called = [calls_of(path) for path in run_dir.glob("callback_*.txt")]
    assert called == [expected] * callbacks


def calls_of(path):
    """The calls of a callback; when checkpoints are written depends on the time."""
    return [line for line in path.read_text().splitlines() if not line.startswith("checkpoint")]


@pytest.mark.parametrize(
    ("script", "size", "watched"),
    [*((*script, {"callback": CALLBACK, "track": f"jsonl,{TRACKER}"}) for script in SCRIPTS), ("torch", 1, ALONE)],
)
def test_a_run_that_is_watched_killed_and_resumed_ends_with_the_same_bits(
    tmp_path, monkeypatch, unwatched, script, size, watched
):
    """Rank 0 is killed as it begins its fourth rollout; there is a checkpoint of the second update."""
    flags = watched | {"checkpoint_every": 2}
    with monkeypatch.context() as patch:
        patch.setattr(COLLECTORS[script], "collect", on_call(4, 0, die, COLLECTORS[script].collect))
        assert train_in(tmp_path / "run", script, size, **flags)[0] == "exit code 9"
    assert train_in(tmp_path / "run", script, size, resume=True, **flags) == [""] * size
    alone = unwatched(script, size)
    assert (tmp_path / "run/policy.safetensors").read_bytes() == (alone / "policy.safetensors").read_bytes()
    assert metrics(tmp_path / "run") == metrics(alone)
    assert (summary(tmp_path / "run")["resumes"], summary(tmp_path / "run")["exact_resume"]) == (1, True)
    if "callback" in watched:
        called = calls_of(tmp_path / "run/callback_0.txt")
        again = ["start 2", *(f"update {update}" for update in range(3, UPDATES + 1)), f"end {UPDATES}"]
        assert called == ["start 0", "update 1", "update 2", "update 3", *again]
        assert "start 2" in (tmp_path / "run/tracker.txt").read_text().splitlines()


def test_a_tracker_of_ones_own_may_be_the_only_one(train, unwatched):
    run_dir = train("torch", 1, track=TRACKER)
    assert (run_dir / "policy.safetensors").read_bytes() == (unwatched("torch", 1) / "policy.safetensors").read_bytes()
    assert not (run_dir / "metrics.jsonl").exists()
    assert (run_dir / "tracker.txt").exists()


# each with one of both, in turn, for a run takes seconds
@pytest.mark.parametrize(("what", "backend"), zip(ENVIRONMENTS, itertools.cycle(["sync", "async"]), strict=False))
def test_whatever_the_environment_is_a_run_that_is_watched_ends_with_the_same_bits(train, what, backend):
    """Weights, logged numbers and the test's returns."""
    flags = ENVIRONMENTS[what] | {"env_backend": backend}
    alone, watched = train("torch", 1, **flags), train("torch", 1, **flags, **WATCHED["all"])
    assert (watched / "policy.safetensors").read_bytes() == (alone / "policy.safetensors").read_bytes()
    lines = [{key: value for key, value in line.items() if key != "Eval/return_mean"} for line in metrics(watched)]
    assert lines == metrics(alone)
    assert summary(watched)["test"] == summary(alone)["test"]
    for name in ("train_videos", "test_videos"):
        assert videos(watched / name)


@pytest.mark.parametrize(
    ("env_id", "action", "backend"),
    [
        ("CartPole-v1", 1, "sync"),
        ("CartPole-v1", 1, "async"),
        ("LunarLander-v3", 2, "sync"),
        ("BipedalWalker-v3", 1, "async"),
        ("Blackjack-v1", 1, "sync"),
        ("Pendulum-v1", 1, "async"),
    ],
)
def test_environments_that_are_recorded_return_the_same_bits(backend, tmp_path, env_id, action):
    """Gymnasium's own, which have a render mode in some episodes and none in others."""
    seen = [play(env_id, backend, folder, 250, action=action) for folder in ("", str(tmp_path / "videos"))]
    np.testing.assert_array_equal(*seen)
    assert videos(tmp_path / "videos")

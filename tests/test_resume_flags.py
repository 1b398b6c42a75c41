"""What a resumed run may be given anew, what it may not, and who else may be in its folder."""

from __future__ import annotations

import errno
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from dataclasses import fields, replace

import gymnasium
import numpy as np
import pytest

import train_torch
from fabric_ppo.config import MAY_DIFFER, SCRIPT_CONFIGS, Config
from fabric_ppo.process.errors import ConfigError, flag
from fabric_ppo.process.files import Checkpoint
from fabric_ppo.run import resume as run_state
from fabric_ppo.run.resume import require_same_run
from tests.resuming import TINY, assert_same_run, config_of, finish, metrics, newest_checkpoint, summary, train
from tests.runs import ROOT, SCRIPTS, clean_environment

NAMES = {"torch": "torch", "fabric": "fabric", "decoupled": "fabric_decoupled"}
OTHER = {
    "env_id": "Pendulum-v1",
    "env_backend": "async",
    "env_wrapper": "gymnasium.wrappers:FlattenObservation",
    "env_preset": "atari",
    "action_bounds": "squash",
    "encoder": "impala",
    "init_from": "elsewhere",
    "timestep_unit": "iteration",
    "activation_function": "tanh",
    "hidden_sizes": (8,),
    "stop_at_return": 3.0,
    "target_kl": 0.1,
    "desired_kl": 0.1,
    "recurrent": "gru",
    "log_std_min": -5.0,
    "log_std_max": 1.0,
    "exp_name": "other",
    "log_dir": "elsewhere",
}
PLACE = ("run_dir", "resume", "config")
"""Flags that say where a run lies; they are no part of it."""
BASE = {"env_backend": "async", "cuda": True, "player_on_gpu": True, "anneal_lr": False}
"""So that each switch can be turned alone."""


@pytest.fixture(autouse=True)
def gpus(monkeypatch):
    monkeypatch.setattr("fabric_ppo.config.require_cuda", lambda _: None)


def every_flag():
    for script, kind in SCRIPT_CONFIGS.items():
        for field in fields(kind):
            if field.name not in PLACE:
                yield script, field.name


def stored(config: Config, script: str, world_size: int = 2) -> dict:
    return {"script": NAMES[script], "config": config.to_dict(), "world_size": world_size}


def changed(script: str, name: str) -> tuple[Config, Config]:
    """A configuration, and one that differs in a single flag."""
    kind = SCRIPT_CONFIGS[script]
    base = {key: value for key, value in BASE.items() if key in {field.name for field in fields(kind)}}
    base |= {"player_on_gpu": False} if name == "cuda" and script == "decoupled" else {}
    base |= {"env_id": "ALE/Pong-v5"} if name == "env_preset" else {}
    config = kind(**base)
    value = getattr(config, name)
    if name == "env_backend":
        other = "sync"
    elif name in OTHER:
        other = OTHER[name]
    elif isinstance(value, bool):
        other = not value
    else:
        other = value + 1 if isinstance(value, int) else value / 2 or 0.5
    return config, replace(config, **{name: other})


@pytest.mark.parametrize(("script", "name"), every_flag())
def test_a_flag_is_the_runs_own_or_may_differ(script, name):
    before, now = changed(script, name)
    require_same_run(before, NAMES[script], 2, stored(before, script))
    if name in MAY_DIFFER:
        require_same_run(now, NAMES[script], 2, stored(before, script))
        return
    with pytest.raises(ConfigError) as caught:
        require_same_run(now, NAMES[script], 2, stored(before, script))
    theirs, ours = (list(v) if isinstance(v := getattr(each, name), tuple) else v for each in (before, now))
    expected = f"--resume: {flag(name)} {ours} (the run has {theirs}): the run's own values are expected"
    assert str(caught.value) == expected


def test_the_flags_that_may_differ_are_the_ones_that_are_listed(capsys):
    with pytest.raises(SystemExit):
        train_torch.parse_args(SCRIPT_CONFIGS["torch"], ["--help"])
    text = " ".join(capsys.readouterr().out.replace("│", " ").split())
    listed = text[text.index("but for those that leave the result as it is:") :].partition(". (")[0]
    listed = listed.partition(" (default")[0]
    for name in MAY_DIFFER:
        assert flag(name) in listed, name
    assert listed.count("--") == len(MAY_DIFFER)


def test_all_flags_that_differ_are_named():
    before = Config()
    now = replace(before, gamma=0.5, num_envs=3, env_timeout=1.0)
    with pytest.raises(ConfigError) as caught:
        require_same_run(now, "fabric", 2, stored(before, "fabric"))
    assert "--num-envs 3 (the run has 2)" in str(caught.value)
    assert "--gamma 0.5 (the run has 0.99)" in str(caught.value)
    assert "--env-timeout" not in str(caught.value)


def test_a_run_is_not_made_shorter():
    before = Config(total_timesteps=2000)
    require_same_run(replace(before, total_timesteps=2001), "fabric", 2, stored(before, "fabric"))
    with pytest.raises(ConfigError, match="--total-timesteps 1999: the run had 2000; that or more is expected"):
        require_same_run(replace(before, total_timesteps=1999), "fabric", 2, stored(before, "fabric"))


def test_a_flag_that_is_younger_than_the_run_had_its_default():
    """A run goes on after an update of this program that brings new flags."""
    before = stored(Config(), "fabric")
    for name in ("target_kl", "shared_trunk", "hidden_sizes", "eval_every"):
        del before["config"][name]
    require_same_run(Config(), "fabric", 2, before)
    with pytest.raises(ConfigError, match=r"^--resume: --shared-trunk True \(the run has False\): the run's own "):
        require_same_run(Config(shared_trunk=True), "fabric", 2, before)


@pytest.mark.parametrize("script", list(SCRIPT_CONFIGS))
def test_another_script_is_refused(script):
    config = SCRIPT_CONFIGS[script]()
    for other in set(NAMES.values()) - {NAMES[script]}:
        with pytest.raises(ConfigError, match=f"the run was started with {NAMES[script]}, this is {other}"):
            require_same_run(config, other, 2, stored(config, script))


@pytest.mark.parametrize(
    ("script", "before", "now", "changes", "refused"),
    [
        ("torch", 2, 4, {}, "only --share-data allows that"),
        ("torch", 2, 4, {"share_data": True}, "--num-envs 4 (the run has 4), --per-rank-batch-size 12"),
        ("torch", 2, 4, {"share_data": True, "num_envs": 2}, "--per-rank-batch-size 12 (the run has 12)"),
        ("torch", 2, 4, {"share_data": True, "num_envs": 2, "per_rank_batch_size": 6}, ""),
        ("torch", 2, 1, {"share_data": True, "num_envs": 8, "per_rank_batch_size": 24}, ""),
        ("torch", 2, 1, {"share_data": True, "num_envs": 8, "per_rank_batch_size": 12}, "--per-rank-batch-size 12"),
        ("decoupled", 3, 2, {"share_data": True, "per_rank_batch_size": 24}, ""),
        ("decoupled", 3, 2, {"share_data": True, "per_rank_batch_size": 18}, "--per-rank-batch-size 18"),
        ("decoupled", 3, 2, {"per_rank_batch_size": 24}, "only --share-data allows that"),
    ],
)
def test_another_number_of_ranks(script, before, now, changes, refused):
    """Fine where all ranks together have the same environments and the same minibatches, of the same shared data."""
    kind = SCRIPT_CONFIGS[script]
    run = kind(num_envs=4, per_rank_batch_size=12, share_data=changes.get("share_data", False))
    if not refused:
        require_same_run(replace(run, **changes), NAMES[script], now, stored(run, script, before))
        return
    with pytest.raises(ConfigError) as caught:
        require_same_run(replace(run, **changes), NAMES[script], now, stored(run, script, before))
    assert refused in str(caught.value)


# in the scripts


@pytest.fixture(scope="module")
def half(tmp_path_factory):
    """A run of three updates, finished."""
    return finish("torch", 1, tmp_path_factory.mktemp("half") / "run", updates=3, anneal_lr=False)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"gamma": 0.5}, "--gamma 0.5 (the run has 0.99)"),
        ({"num_envs": 3}, "--num-envs 3 (the run has 2)"),
        ({"num_steps": 24}, "--num-steps 24 (the run has 16)"),
        ({"hidden_sizes": (8,)}, "--hidden-sizes [8] (the run has [64, 64])"),
        ({"env_id": "Pendulum-v1"}, "--env-id Pendulum-v1 (the run has CartPole-v1)"),
        ({"total_timesteps": 64}, "--total-timesteps 64: the run had 96; that or more is expected"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_a_run_that_is_refused_is_left_as_it_was(half, change, said):
    """Before anything is cut back or written."""
    before = {path: path.read_bytes() for path in half.rglob("*") if path.is_file()}
    flags = {"anneal_lr": False, "resume": True, "total_timesteps": 96} | change
    (error,) = train("torch", 1, half, **flags)
    assert f"ConfigError: {'' if 'expected' in said else '--resume: '}{said}" in error
    assert {path: path.read_bytes() for path in half.rglob("*") if path.is_file()} == before


def test_on_the_command_line_it_is_one_line_and_status_2(half):
    args = [sys.executable, str(ROOT / "train_torch.py"), "--resume", "--run-dir", str(half)]
    args += [f"{flag(name)}={value}" for name, value in TINY.items()]
    args += ["--no-anneal-lr", "--gamma=0.5", "--total-timesteps=96"]
    done = subprocess.run(args, capture_output=True, text=True, timeout=60, env=clean_environment())
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        "error: --resume: --gamma 0.5 (the run has 0.99): the run's own values are expected"
    ]


def test_without_resume_a_folder_with_a_run_is_refused(half):
    (error,) = train("torch", 1, half, anneal_lr=False)
    assert "holds a run already; a new folder or --resume is expected" in error


def test_flags_that_may_differ_do(tmp_path, half):
    """All at once, and the result is that of the run that had them from the start, or not at all."""
    expected = finish("torch", 1, tmp_path / "expected", anneal_lr=False)
    finish("torch", 1, tmp_path / "run", updates=3, anneal_lr=False)
    anew = {"stop_at_return": 1e9, "checkpoint_every": 1, "keep_checkpoints": 5, "env_backend": "async"}
    anew |= {"env_timeout": 20.0, "restart_envs": True, "timeout": 200.0, "exp_name": "x", "log_dir": "y"}
    finish("torch", 1, tmp_path / "run", resume=True, anneal_lr=False, **anew)
    policies = [(path / "policy.safetensors").read_bytes() for path in (tmp_path / "run", expected)]
    assert policies[0] == policies[1]
    assert summary(tmp_path / "run")["exact_resume"] is True


def test_threads_may_differ_but_it_is_no_exact_resume(tmp_path, capfd):
    finish("torch", 1, tmp_path / "run", updates=2, anneal_lr=False)
    finish("torch", 1, tmp_path / "run", updates=3, anneal_lr=False, resume=True, num_threads=2)
    assert "resumed with another threads: the last bits of the result will differ" in capfd.readouterr().err
    assert summary(tmp_path / "run")["exact_resume"] is False


def test_after_a_change_of_the_program_it_is_no_exact_resume(tmp_path, monkeypatch, capfd):
    finish("torch", 1, tmp_path / "run", updates=2, anneal_lr=False)
    monkeypatch.setattr(run_state, "_digest_of_code", lambda: "changed")
    monkeypatch.setattr(np, "__version__", "99.0")
    finish("torch", 1, tmp_path / "run", updates=3, anneal_lr=False, resume=True)
    assert "resumed with another numpy, fabric_ppo: the last bits of the result will differ" in capfd.readouterr().err
    assert summary(tmp_path / "run")["exact_resume"] is False


# environments that cannot be brought back


class Drifting(gymnasium.Env):
    """Draws from the operating system."""

    observation_space = gymnasium.spaces.Box(0, 1, (2,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        return np.zeros(2, np.float32), {}

    def step(self, action):
        return np.array([int.from_bytes(os.urandom(3), "little") / 2**24, 0], np.float32), 1.0, False, False, {}


gymnasium.register("Drifting-v0", Drifting, max_episode_steps=30)


@pytest.mark.parametrize("backend", ["sync", "async"])
def test_an_environment_that_is_not_repeatable_is_resumed_with_a_warning(tmp_path, capfd, backend):
    flags = {"env_id": "Drifting-v0", "anneal_lr": False, "env_backend": backend}
    finish("torch", 2, tmp_path / "run", updates=3, **flags)
    capfd.readouterr()
    finish("torch", 2, tmp_path / "run", resume=True, **flags)
    warnings = [line for line in capfd.readouterr().err.splitlines() if line.startswith("warning: ")]
    reason = "its observation differs after the same actions"
    assert f"warning: Drifting-v0 cannot be resumed exactly: environment 0: {reason}" in warnings
    assert f"warning: Drifting-v0 cannot be resumed exactly: environment 2: {reason}" in warnings
    assert len(warnings) == 2
    assert summary(tmp_path / "run")["exact_resume"] is False
    assert [line["update"] for line in metrics(tmp_path / "run")] == [1, 2, 3, 4, 5, 6]
    # once not exact, it stays so
    finish("torch", 2, tmp_path / "run", updates=7, resume=True, **flags)
    assert summary(tmp_path / "run")["exact_resume"] is False


# the folder


def test_only_one_process_trains_in_a_folder(tmp_path, monkeypatch):
    """The second is refused in one line; a run that was killed leaves nothing in the way."""
    monkeypatch.setattr(run_state, "_LOCK_SECONDS", 0)
    config = config_of("torch", 1, tmp_path / "run", resume=True)
    with monkeypatch.context() as patch:
        patch.setattr(SCRIPTS["torch"], "ppo_update", lambda *_: time.sleep(60))
        first = multiprocessing.get_context("fork").Process(target=train_torch.main, args=(config,))
        first.start()
    try:
        deadline = time.monotonic() + 30
        while not (tmp_path / "run/config.yaml").exists():
            assert time.monotonic() < deadline
            time.sleep(0.01)
        (said,) = train("torch", 1, tmp_path / "run", resume=True)
        assert f"ConfigError: --run-dir {tmp_path / 'run'}: another process trains there" in said
        assert first.is_alive()
    finally:
        os.kill(first.pid, signal.SIGKILL)
        first.join()
    finish("torch", 1, tmp_path / "run", resume=True)


def test_a_file_system_without_locks_is_no_hindrance(tmp_path, monkeypatch):
    """As NFS and Lustre are mounted at times."""

    def lockf(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(run_state.fcntl, "lockf", lockf)
    run_state.lock_folder(tmp_path)()


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


def test_a_checkpoint_of_another_make_does_not_fit(tmp_path):
    """Whole, with the right flags, but with other weights."""
    finish("torch", 1, tmp_path / "run", updates=2, anneal_lr=False)
    name, found = newest_checkpoint(tmp_path / "run")
    tensors = {key: value for key, value in found.tensors.items() if not key.startswith("weights.policy")}
    (tmp_path / "run/checkpoints" / name).write_bytes(Checkpoint(tensors, found.values).to_bytes())
    (said,) = train("torch", 1, tmp_path / "run", anneal_lr=False, resume=True)
    assert "ConfigError: --resume: the checkpoint in " in said
    assert "does not fit this run" in said

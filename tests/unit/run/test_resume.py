"""Flags of a resumed run: those that may differ from the first start's, and those that may not."""

from __future__ import annotations

import json
from dataclasses import fields, replace

import pytest

import train_torch
from fabric_ppo.config import MAY_DIFFER, SCRIPT_CONFIGS, Config
from fabric_ppo.process.errors import ConfigError, flag
from fabric_ppo.process.signals import signals
from fabric_ppo.run import resume
from fabric_ppo.run.resume import require_same_run

NAMES = {"torch": "torch", "fabric": "fabric", "decoupled": "fabric_decoupled"}


OTHER = {
    "env_id": "Pendulum-v1",
    "env_backend": "async",
    "env_start_method": "spawn",
    "env_wrapper": "gymnasium.wrappers:FlattenObservation",
    "env_kwargs": {"sutton_barto_reward": True},
    "env_preset": "atari",
    "optimizer": "adamw",
    "optimizer_kwargs": {"betas": [0.5, 0.9]},
    "obs_keys": "image",
    "critic_keys": "state",
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
    "track": "jsonl",
    "track_project": "other",
    "track_group": "other",
    "track_tags": "other",
    "track_timeout": 5.0,
    "callback": "gymnasium.wrappers:FlattenObservation",
    "info_keys": "x_position,sum:reward_ctrl",
}


PLACE = ("run_dir", "log_dir", "resume", "config")
"""Flags that say where a run lies; they are no part of it."""


BASE = {"env_backend": "async", "cuda": True, "player_on_gpu": True, "anneal_lr": False}
"""So that each switch can be turned alone."""


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
    require_same_run(before, 2, stored(before, script))
    if name in MAY_DIFFER:
        require_same_run(now, 2, stored(before, script))
        return
    with pytest.raises(ConfigError) as caught:
        require_same_run(now, 2, stored(before, script))
    theirs, ours = (list(v) if isinstance(v := getattr(each, name), tuple) else v for each in (before, now))
    ours = json.dumps(ours) if name.endswith("_kwargs") else ours
    expected = f"--resume: {flag(name)} {ours} (the run has {theirs}): the run's own values are expected"
    assert str(caught.value) == expected


def test_the_flags_that_may_differ_are_the_ones_that_are_listed(capsys):
    with pytest.raises(SystemExit):
        train_torch.parse_args(SCRIPT_CONFIGS["torch"], ["--help-all"])
    text = " ".join(capsys.readouterr().out.split())
    listed = text[text.index("must be the run's own, except for --total-timesteps") :].partition(". With")[0]
    for name in MAY_DIFFER:
        assert flag(name) in listed, name
    assert listed.count("--") == len(MAY_DIFFER)


def test_all_flags_that_differ_are_named():
    before = Config()
    now = replace(before, gamma=0.5, num_envs=3, env_timeout=1.0)
    with pytest.raises(ConfigError) as caught:
        require_same_run(now, 2, stored(before, "fabric"))
    assert "--num-envs 3 (the run has 2)" in str(caught.value)
    assert "--gamma 0.5 (the run has 0.99)" in str(caught.value)
    assert "--env-timeout" not in str(caught.value)


def test_a_run_is_not_made_shorter():
    before = Config(total_timesteps=2000)
    require_same_run(replace(before, total_timesteps=2001), 2, stored(before, "fabric"))
    with pytest.raises(ConfigError, match="--total-timesteps 1999: the run had 2000; that or more is expected"):
        require_same_run(replace(before, total_timesteps=1999), 2, stored(before, "fabric"))


def test_a_flag_that_is_younger_than_the_run_had_its_default():
    """A run goes on after an update of this program that brings new flags."""
    before = stored(Config(), "fabric")
    for name in ("target_kl", "shared_trunk", "hidden_sizes", "eval_every"):
        del before["config"][name]
    require_same_run(Config(), 2, before)
    with pytest.raises(ConfigError, match=r"^--resume: --shared-trunk True \(the run has False\): the run's own "):
        require_same_run(Config(shared_trunk=True), 2, before)


@pytest.mark.parametrize("script", list(SCRIPT_CONFIGS))
def test_another_script_is_refused(script):
    config = SCRIPT_CONFIGS[script]()
    for name, kind in SCRIPT_CONFIGS.items():
        if name != script:
            with pytest.raises(ConfigError, match=f"the run was started with {NAMES[script]}, this is {NAMES[name]}$"):
                require_same_run(kind(), 2, stored(config, script))


@pytest.mark.parametrize(
    ("now", "world_size", "has_policy"),
    [
        (Config(gamma=0.5), 2, True),
        (Config(total_timesteps=1000), 2, True),
        (Config(), 3, True),
        (Config(hidden_sizes=(3,)), 3, False),
        (SCRIPT_CONFIGS["torch"](), 2, True),
    ],
)
def test_each_refusal_has_the_command_for_a_new_run(now, world_size, has_policy, monkeypatch):
    monkeypatch.setattr(signals, "is_script", True)
    with pytest.raises(ConfigError, match="begin a new run: cd ") as caught:
        require_same_run(replace(now, run_dir="a run", resume=True), world_size, stored(Config(), "fabric"))
    assert ("--init-from" in str(caught.value)) == has_policy


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
        require_same_run(replace(run, **changes), now, stored(run, script, before))
        return
    with pytest.raises(ConfigError) as caught:
        require_same_run(replace(run, **changes), now, stored(run, script, before))
    assert refused in str(caught.value)


def test_the_rate_of_a_longer_run_is_that_of_whole_updates(capsys):
    """19 updates of 512 transitions were all that 10,000 had: nothing was left of the rate; of 39, half is."""
    config = Config(total_timesteps=20_000, num_steps=128, num_envs=4)
    values = {"config": replace(config, total_timesteps=10_000).to_dict(), "update": 19}
    resume._print_new_schedule(config, values, 1)
    assert "goes on from 51% of its value instead of 0%" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("edited", "said"),
    [
        (lambda config, update, total: config.learning_rate, ""),
        (
            lambda config, update, total: config.learning_rate * max(0.2, 1 - update / total),
            "follows the new total, and goes on from 50% of its value instead of 20%",
        ),
        (lambda config, update, total: config.learning_rate / (total - update), ""),
    ],
    ids=["constant", "to a fifth", "undefined at the end"],
)
def test_what_moves_is_computed_by_the_schedule(monkeypatch, capsys, edited, said):
    """As after an edit of it."""
    monkeypatch.setattr(resume, "set_learning_rate", lambda _, *args: edited(*args))
    config = Config(total_timesteps=4096, num_steps=128, num_envs=4)
    values = {"config": replace(config, total_timesteps=2048).to_dict(), "update": 4}
    resume._print_new_schedule(config, values, 1)
    line = capsys.readouterr().err
    assert (said in line) if said else line == ""

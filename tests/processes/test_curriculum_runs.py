"""Attributes of environments that callbacks set, over scripts, ranks, backends and kills."""

from __future__ import annotations

import json
import multiprocessing

import numpy as np
import pytest

from fabric_ppo.envs.make import make_envs
from tests.fixtures import curriculum
from tests.fixtures.curriculum import LENGTH
from tests.fixtures.launching import COLLECTORS
from tests.fixtures.resuming import (
    assert_a_killed_run_goes_on,
    assert_same_run,
    config_of,
    die,
    finish,
    metrics,
    on_call,
    train,
)

NUM_STEPS, UPDATES = 8, 6
FLAGS = {
    **{"env_id": curriculum.ENV_ID, "callback": f"{curriculum.MODULE}:Curriculum", "num_steps": NUM_STEPS},
    **{"checkpoint_every": 1, "keep_checkpoints": 9, "eval_every": 3, "eval_episodes": 1},
}
RUNS = [
    *(("torch", 1, each) for each in ({"env_backend": "sync"}, {"env_backend": "async"}, {"num_envs": 3})),
    *(("torch", 2, {"env_backend": each}) for each in ("sync", "async")),
    *(("fabric", 2, {"share_data": each}) for each in (False, True)),
    *(("decoupled", 2, {"overlap": each}) for each in (False, True)),
    ("decoupled", 3, {"overlap": True, "env_backend": "async"}),
]


def ids(each):
    return "-".join(map(str, each.values())) if isinstance(each, dict) else None


def returns(run_dir):
    return [line.get("Rewards/rew_avg") for line in metrics(run_dir)]


@pytest.mark.parametrize(("script", "size", "flags"), RUNS, ids=ids)
def test_all_environments_have_them_from_their_next_reset_on(tmp_path, script, size, flags):
    """In the same rollout whatever the script, ranks and backend; evaluations and tests keep their own."""
    run_dir = finish(script, size, tmp_path / "run", UPDATES, **FLAGS | flags)
    lag = 2 if flags.get("overlap") else 1
    assert returns(run_dir) == pytest.approx(curriculum.expected_returns(UPDATES, NUM_STEPS, lag))
    test = json.loads((run_dir / "summary.json").read_text())["test"]
    assert test["return_mean"] == curriculum.LENGTH * curriculum.BEFORE
    evaluated = [line["Eval/return_mean"] for line in metrics(run_dir) if "Eval/return_mean" in line]
    assert evaluated == [curriculum.LENGTH * curriculum.BEFORE] * 2


@pytest.mark.parametrize(("script", "size", "flags"), RUNS, ids=ids)
def test_a_run_that_is_killed_resumes_to_the_same_bits(tmp_path, monkeypatch, script, size, flags):
    """H4: killed in the fourth rollout, when what was asked for after update 2 is in some episodes only."""
    assert_a_killed_run_goes_on(tmp_path, monkeypatch, script, size, FLAGS | flags)


@pytest.mark.parametrize("killed_in", [1, 2, 3, 5, 6])
@pytest.mark.parametrize("script", ["torch", "decoupled"])
def test_it_may_be_killed_in_any_update(tmp_path, monkeypatch, script, killed_in):
    flags = FLAGS | ({"overlap": True} if script == "decoupled" else {})
    alone, run_dir = finish(script, 2, tmp_path / "alone", **flags), tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(COLLECTORS[script], "collect", on_call(killed_in, 0, die, COLLECTORS[script].collect))
        assert train(script, 2, run_dir, **flags)[0] == "exit code 9"
    finish(script, 2, run_dir, resume=True, **flags)
    number = len(list((run_dir / "checkpoints").glob("update_*.ckpt")))
    assert number == len(list((alone / "checkpoints").glob("update_*.ckpt")))
    is_resumed = json.loads((run_dir / "summary.json").read_text())["resumes"]
    assert_same_run(run_dir, alone, resumes=is_resumed)


@pytest.mark.parametrize("flags", [{}, {"env_backend": "async"}], ids=ids)
def test_what_a_callback_draws_from_global_generators_comes_again(tmp_path, monkeypatch, flags):
    flags = FLAGS | {"callback": f"{curriculum.MODULE}:Random"} | flags
    assert_a_killed_run_goes_on(tmp_path, monkeypatch, "torch", 1, flags)
    drawn = [each for each in returns(tmp_path / "run") if each is not None]
    assert len(set(drawn)) >= 4, "each update draws other numbers"


def test_with_shared_data_a_run_goes_on_with_other_ranks(tmp_path, monkeypatch):
    """Episodes in progress begin with what their environments had on the other rank."""
    flags = FLAGS | {"share_data": True, "num_envs": 1, "per_rank_batch_size": 4}
    with monkeypatch.context() as patch:
        patch.setattr(COLLECTORS["torch"], "collect", on_call(4, 0, die, COLLECTORS["torch"].collect))
        assert train("torch", 2, tmp_path / "run", **flags)[0] == "exit code 9"
    run_dir = finish("torch", 1, tmp_path / "run", **flags | {"num_envs": 2, "per_rank_batch_size": 8}, resume=True)
    assert returns(run_dir) == pytest.approx(curriculum.expected_returns(UPDATES, NUM_STEPS, 1))


@pytest.mark.parametrize("killed_after", [2, LENGTH - 1, LENGTH, LENGTH + 2])
def test_a_replaced_worker_has_them(killed_after):
    """Its episode is rebuilt with what it began with, and its next one has what is in force."""

    def seen(kill_after):
        config = config_of("torch", 1, "none", env_id=curriculum.ENV_ID, env_backend="async", restart_envs=True)
        envs = make_envs(config, 0, 1)
        obs = np.zeros((3 * LENGTH, 2, 4), np.float32)
        reward, *flags = np.zeros(2, np.float32), *np.zeros((3, 2), np.bool_)
        envs.reset(obs[0])
        envs.set_attributes('{"difficulty": 3, "spoilt": 0}')
        for step in range(1, len(obs)):
            if step - 1 == kill_after:
                (worker,) = (each for each in multiprocessing.active_children() if each.name == "environment-1")
                worker.kill()
                worker.join()
            envs.step(np.zeros(2, np.int64), obs[step], reward, *flags)
        envs.close()
        return obs

    alone, killed = seen(-1), seen(killed_after)
    np.testing.assert_array_equal(killed, alone)
    assert alone[:, :, 0].tolist() == [[curriculum.BEFORE] * 2] * LENGTH + [[3, 3]] * 2 * LENGTH

"""Numbers of `info` in whole runs: the same bits with and without, exact after a kill, in all that is written."""

from __future__ import annotations

import json

import numpy as np
import pytest

from fabric_ppo.rollouts.evaluate import evaluate
from fabric_ppo.run.result import load_run
from fabric_ppo.seeding import episode_seed
from fabric_ppo.tools import cli
from tests.fixtures.info_envs import KEYS, MODULE, info_of
from tests.fixtures.launching import COLLECTORS
from tests.fixtures.resuming import (
    NUM_UPDATES,
    TINY,
    assert_same_run,
    die,
    finish,
    newest_checkpoint,
    on_call,
    summary,
    train,
)

pytestmark = pytest.mark.processes

ENV = {"env_id": f"{MODULE}:Info-v0"}
STATE = {"env_id": f"{MODULE}:InfoState-v0"}
WATCHED = {"info_keys": f"{KEYS},text,never", "eval_every": 2, "eval_episodes": 2}


@pytest.mark.parametrize(
    ("script", "size", "flags"),
    [
        ("torch", 1, ENV),
        ("torch", 2, ENV | {"env_backend": "async"}),
        ("fabric", 2, ENV),
        ("decoupled", 2, ENV | {"overlap": True}),
        ("torch", 1, STATE),
        ("fabric", 2, STATE | {"env_backend": "async"}),
    ],
)
def test_a_run_with_info_keys_goes_on_to_the_same_bits(tmp_path, monkeypatch, script, size, flags):
    """Weights as without, logs as of one that was left alone: sums of episodes in progress are not lost."""
    alone = finish(script, size, tmp_path / "alone", **flags)
    expected = finish(script, size, tmp_path / "expected", **flags, **WATCHED)
    with monkeypatch.context() as patch:
        patch.setattr(COLLECTORS[script], "collect", on_call(4, 0, die, COLLECTORS[script].collect))
        assert train(script, size, tmp_path / "run", **flags, **WATCHED)[0] == "exit code 9"
    finish(script, size, tmp_path / "run", resume=True, **flags, **WATCHED)
    assert_same_run(tmp_path / "run", expected, resumes=1)
    values = [newest_checkpoint(folder)[1].values["info"] for folder in (tmp_path / "run", expected)]
    assert values[0] == values[1]
    policy = "policy.safetensors"
    assert (alone / policy).read_bytes() == (tmp_path / "run" / policy).read_bytes()


@pytest.mark.parametrize(("script", "size"), [("torch", 1), ("torch", 3), ("fabric", 2), ("decoupled", 2)])
def test_logs_and_summary_have_the_means_of_all_ranks(tmp_path, script, size):
    """Held against the environment's definition, episode by episode."""
    run = load_run(finish(script, size, tmp_path / "run", **ENV, info_keys=KEYS))
    num_envs = TINY["num_envs"] * (1 if script == "decoupled" else size)
    steps, ended = TINY["num_steps"], []
    for env in range(num_envs):
        at, number = 0, 0
        while at < steps * NUM_UPDATES:
            seed = episode_seed(42, env, number, num_envs)
            at, number = at + 3 + seed % 5, number + 1
            ended.append((at - 1, env, seed))
    ended = sorted(each for each in ended if each[0] < steps * NUM_UPDATES)
    for update in range(NUM_UPDATES):
        infos = [episode_infos(seed) for at, _, seed in ended if at // steps == update]
        speeds = [float(info[-1]["speed"]) for info in infos]
        costs = [sum(step["cost"] for step in info) for info in infos]
        some = [info[-1]["sometimes"] for info in infos if "sometimes" in info[-1]]
        assert run.metrics["Episode/speed"][update] == pytest.approx(np.mean(speeds))
        assert run.metrics["Episode/cost_sum"][update] == pytest.approx(np.mean(costs))
        assert run.metrics["Episode/sometimes"][update] == pytest.approx(np.mean(some))
        counted = run.metrics["Episode/sometimes_count"][update]
        assert np.isnan(counted) if len(some) == len(infos) else counted == len(some)
    last = [episode_infos(seed)[-1] for _, _, seed in ended[-100:]]
    share = run.summary["train_info"]["is_success"]
    assert share == {"mean": pytest.approx(np.mean([info["is_success"] for info in last])), "episodes": len(last)}
    assert run.summary["train_return_episodes"] == len(last)


def episode_infos(seed):
    return [info_of(seed, step) for step in range(1, 4 + seed % 5)]


def test_other_keys_may_be_given_to_a_resumed_run(tmp_path, monkeypatch):
    """Episodes in progress are summed from their beginning, or, without a replay, count as without the sum."""
    for flags, is_known in ((ENV, True), (STATE, False)):
        folder = tmp_path / str(is_known)
        whole = load_run(finish("torch", 1, folder / "whole", **flags, info_keys="sum:cost"))
        with monkeypatch.context() as patch:
            patch.setattr(COLLECTORS["torch"], "collect", on_call(4, 0, die, COLLECTORS["torch"].collect))
            assert train("torch", 1, folder / "run", **flags)[0] == "exit code 9"
        run = load_run(finish("torch", 1, folder / "run", resume=True, **flags, info_keys="sum:cost"))
        first, *others = run.metrics["Episode/cost_sum"][2:]
        assert others == whole.metrics["Episode/cost_sum"][3:].tolist()
        assert (first == whole.metrics["Episode/cost_sum"][2]) == is_known
        assert np.isnan(run.metrics["Episode/cost_sum"][:2]).all()


def test_the_commands_tell_the_numbers_of_a_run(tmp_path, capfd):
    """`evaluate` takes the run's keys; what cannot be read is said in one line each."""
    keys = "speed,sum:cost,text,never"
    run_dir = finish("torch", 1, tmp_path / "run", **ENV, info_keys=keys)
    told = capfd.readouterr().err
    assert told.count("--info-keys text") == told.count("--info-keys never") == 1
    assert "it has speed, cost, stats.depth" in told
    assert cli.main(["evaluate", str(run_dir), "--own-code", "--json", "--episodes", "5"]) == 0
    out, err = capfd.readouterr()
    result = evaluate(load_run(run_dir, own_code=True).agent, 5, info_keys=keys)
    assert json.loads(out)["info"] == result.to_dict()["info"]
    assert "--info-keys never" in err
    assert cli.main(["evaluate", str(run_dir), "--own-code", "--episodes", "5", "--info-keys", "sum:cost"]) == 0
    out, _ = capfd.readouterr()
    assert f"cost_sum {result.to_dict()['info']['cost_sum']['mean']:.4g}" in out
    assert "speed" not in out
    assert summary(run_dir)["test"]["info"].keys() == {"is_success", "speed", "cost_sum", "text", "never"}

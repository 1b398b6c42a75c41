"""Numbers of `info`: in rollouts, tests and summaries, held against their definition and plain Gymnasium."""

from __future__ import annotations

import importlib
import math
from collections import defaultdict

import gymnasium
import numpy as np
import pytest
import torch

from fabric_ppo.agents.policy import Policy
from fabric_ppo.config_info_keys import info_keys_of
from fabric_ppo.envs.episode_info import MISSING, NO_NUMBER, NOT_FINITE, NUMBER
from fabric_ppo.process.errors import ConfigError
from fabric_ppo.rollouts.evaluate import evaluate
from fabric_ppo.rollouts.info_totals import InfoTotals
from fabric_ppo.seeding import episode_seed, evaluation_seed
from tests.fixtures.agents import agent_for
from tests.fixtures.envs import SEED
from tests.fixtures.info_envs import KEYS, MODULE, info_of
from tests.fixtures.rollouts import rollouts

ENV_ID = f"{MODULE}:Info-v0"
NAMES = [
    *("is_success", "speed", "cost_sum", "stats.depth", "stats.depth_sum", "sometimes", "nan", "dotted.key"),
    "sometimes_sum",
]


def expected_of(seed):
    """The numbers of the episode that `reset(seed=seed)` began, by the definition of the environment."""
    infos = [info_of(seed, step) for step in range(1, 4 + seed % 5)]
    last, some = infos[-1], [info["sometimes"] for info in infos if "sometimes" in info]
    return {
        "is_success": float(last["is_success"]),
        "speed": float(last["speed"]),
        "cost_sum": sum(info["cost"] for info in infos),
        "stats.depth": float(last["stats"]["depth"]),
        "stats.depth_sum": float(sum(info["stats"]["depth"] for info in infos)),
        "sometimes": float(last["sometimes"]) if "sometimes" in last else None,
        "nan": None if math.isnan(last["nan"]) else float(last["nan"]),
        "dotted.key": float(last["dotted.key"]),
        "sometimes_sum": float(sum(some)) if some else None,
    }


def test_episodes_of_rollouts_have_the_numbers_of_their_infos(open_envs, backend):
    """Over the edges of rollouts, by global environment, on the second of two ranks; and their totals."""
    num_envs, rank = 3, 1
    importlib.import_module(MODULE)
    envs = open_envs(ENV_ID, num_envs, rank, 2, backend, info_keys=KEYS)
    played, count = defaultdict(int), 0
    for rollout in rollouts(envs, agent_for(envs.spec.env_id), 4, 12):
        wanted = []
        for episode in rollout.episodes:
            seed = episode_seed(SEED, episode.env, played[episode.env], 2 * num_envs)
            played[episode.env] += 1
            wanted.append(expected_of(seed))
            assert episode.length == 3 + seed % 5
            assert dict(zip(NAMES, episode.info, strict=True)) == wanted[-1]
        for name, row in rollout.info.by_name().items():
            numbers = [each[name] for each in wanted if each[name] is not None]
            assert row[:2] == (pytest.approx(sum(numbers), abs=1e-12), len(numbers)), name
        count += len(wanted)
    assert set(played) == {3, 4, 5}
    assert count > 20


def test_without_the_flag_there_is_only_success(open_envs, backend):
    envs = open_envs(ENV_ID, 2, backend=backend)
    for rollout in rollouts(envs, agent_for(envs.spec.env_id), 16, 2):
        assert rollout.episodes
        assert {len(episode.info) for episode in rollout.episodes} == {1}
    envs = open_envs("CartPole-v1", 2, backend=backend)
    for rollout in rollouts(envs, agent_for(envs.spec.env_id), 32, 2):
        assert {episode.info for episode in rollout.episodes} == {()}
        assert rollout.info.rows == ((0.0, 0.0, 0.0, 0.0),)


def test_numbers_of_tests_are_those_of_their_episodes():
    """However many play at once; an episode that is cut off has the numbers of the steps that it took."""
    policy = Policy(agent_for(ENV_ID))
    wanted = [expected_of(evaluation_seed(SEED, episode)) for episode in range(11)]
    for at_once in (1, 4):
        result = evaluate(policy, 11, SEED, info_keys=KEYS, at_once=at_once)
        assert result.infos == {name: [each[name] for each in wanted] for name in NAMES}
        means = result.to_dict()["info"]
        for name in NAMES:
            numbers = [each[name] for each in wanted if each[name] is not None]
            assert means[name] == {"mean": pytest.approx(np.mean(numbers)), "episodes": len(numbers)}
    cut = evaluate(policy, 3, SEED, info_keys="sum:cost,speed", step_limit=2)
    for episode in range(3):
        infos = [info_of(evaluation_seed(SEED, episode), step) for step in (1, 2)]
        assert cut.infos["cost_sum"][episode] == infos[0]["cost"] + infos[1]["cost"]
        assert cut.infos["speed"][episode] == infos[1]["speed"]
    with pytest.raises(ConfigError, match="--info-keys"):
        evaluate(policy, 1, SEED, info_keys="a,,b")


def cheetah(seed, actions):
    """An episode of HalfCheetah in a plain loop: x_position and reward_forward at its end, sum of reward_ctrl."""
    env, total = gymnasium.make("HalfCheetah-v5"), 0.0
    env.reset(seed=seed)
    for action in actions:
        *_, terminated, truncated, info = env.step(action)
        total += float(info["reward_ctrl"])
        if terminated or truncated:
            break
    env.close()
    return info["x_position"], info["reward_forward"], total


def test_mujocos_infos_are_those_of_a_plain_loop(open_envs, backend):
    """A whole episode of HalfCheetah, by its own actions."""
    pytest.importorskip("mujoco")
    keys = "x_position,reward_forward,sum:reward_ctrl"
    envs = open_envs("HalfCheetah-v5", 1, backend=backend, info_keys=keys)
    (rollout,) = rollouts(envs, agent_for(envs.spec.env_id), 1000, 1)
    (episode,) = rollout.episodes
    actions = np.clip(rollout.actions[:, 0].numpy(), -1, 1)
    success, *got = episode.info
    assert success is None
    assert got == pytest.approx(cheetah(episode_seed(SEED, 0, 0, 1), actions), rel=1e-12)


def test_envpools_infos_are_its_arrays(open_envs):
    """A whole episode of HalfCheetah, against the infos of EnvPool's own step; a key that it lacks is missing."""
    envpool = pytest.importorskip("envpool")
    keys = "x_position,sum:reward_ctrl,sum:absent,never"
    envs = open_envs("HalfCheetah-v5", 2, backend="envpool", info_keys=keys, num_threads=1)
    twin = envpool.make_gymnasium(
        "HalfCheetah-v5", num_envs=2, num_threads=1, seed=[episode_seed(SEED, env, 0, 2) for env in range(2)]
    )
    twin.reset()
    (rollout,) = rollouts(envs, agent_for(envs.spec.env_id), 1010, 1)
    totals = np.zeros(2)
    for row in rollout.actions.numpy()[:1000]:
        *_, info = twin.step(np.clip(row, -1, 1).astype(np.float64))
        totals += info["reward_ctrl"]
    for env, episode in enumerate(rollout.episodes):
        assert (episode.env, episode.length) == (env, 1000)
        assert episode.info == (None, info["x_position"][env], pytest.approx(totals[env], rel=1e-12), None, None)


def test_totals_tell_means_counts_and_what_could_not_be_read():
    """Of four episodes: one number is there in all, one in some, one is not finite, one no number, one never."""
    keys = info_keys_of("all,some,nan,text,never")
    fixed = ((0.0, NOT_FINITE), (0.0, NO_NUMBER), (0.0, MISSING))
    some = [(1.0, NUMBER), (0.0, MISSING), (3.0, NUMBER), (0.0, MISSING)]
    readings = [[(0.0, MISSING), (2.0, NUMBER), each, *fixed] for each in some]
    totals = InfoTotals.of(keys, readings)
    tags = {"Episode/all": 2.0, "Episode/some": 2.0, "Episode/some_count": 2.0}
    assert totals.tagged("Episode", 4) == tags
    nothing = {"mean": None, "episodes": 0}
    means = {"all": {"mean": 2.0, "episodes": 4}, "some": {"mean": 2.0, "episodes": 2}}
    assert totals.means() == means | {"nan": nothing, "text": nothing, "never": nothing}
    lines = totals.warnings(4, ["all", "x"])
    assert [line.split(":")[1] for line in lines] == [" --info-keys nan", " --info-keys text", " --info-keys never"]
    assert "4 of 4 episodes" in lines[0]
    assert lines[2].endswith("in the last step of none of 4 episodes; it has all, x; sum:never would take all steps")
    of_sums = InfoTotals.of(info_keys_of("sum:never"), [[(0.0, MISSING)] * 2]).warnings(4, ["all", "x"])
    assert of_sums[0].endswith("--info-keys sum:never: in no step of 4 episodes; it has all, x")
    assert InfoTotals.of(info_keys_of(None), []).means() == {}
    of_ranks = torch.stack([totals.to_tensor(), InfoTotals.of(keys, readings[:1]).to_tensor()])
    assert totals.merged(of_ranks).by_name()["some"] == (5.0, 3.0, 0.0, 0.0)

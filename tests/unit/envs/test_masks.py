"""Action masks from an environment's observations and info."""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from safetensors.torch import load_file

from fabric_ppo.agents.policy import load_agent
from fabric_ppo.api import train
from fabric_ppo.config import Config
from fabric_ppo.envs.masks import action_mask_from_info
from fabric_ppo.rollouts.evaluate import evaluate
from tests.fixtures.mixed_envs import BEST

MASKED = "tests.fixtures.nested_envs:Masked-v0"


@pytest.mark.parametrize("ended", [False, True])
def test_a_mask_may_be_missing_only_where_an_episode_has_ended(ended):
    class Once(gymnasium.Env):
        observation_space, action_space = spaces.Discrete(3), spaces.MultiDiscrete([2, 3])

        def reset(self, *, seed=None, options=None):
            return 0, {"action_mask": np.array([0, 1, 1, 0, 1], bool)}

        def step(self, action):
            return 1, 0.0, ended, False, {}

    env = action_mask_from_info(Once())
    assert env.reset()[0]["action_mask"].tolist() == [0, 1, 1, 0, 1]
    if not ended:
        with pytest.raises(KeyError, match="info has no action_mask"):
            env.step([1, 0])
        return
    assert env.observation_space.contains(env.step([1, 0])[0])


def test_the_environment_of_the_masks_does_raise():
    env = gymnasium.make(MASKED)
    env.reset(seed=0)
    impossible = int(env.unwrapped.mask.argmin())
    with pytest.raises(ValueError, match="is impossible"):
        env.step(impossible)


PARTS = "tests.fixtures.mixed_envs:"


def test_masks_of_parts_come_with_info_as_a_space_samples_with_them():
    wrapped = action_mask_from_info(gymnasium.make(f"{PARTS}PartsMaskInInfo-v0"))
    obs, info = wrapped.reset(seed=1)
    assert wrapped.observation_space.contains(obs)
    for _ in range(10):
        action = wrapped.action_space.sample(mask=info["action_mask"])
        obs, _, _, _, after = wrapped.step(allowed(action, info["action_mask"]))  # which raises at an impossible one
        masks, info = obs["action_mask"], after
        for key in ("move", "lamps"):
            assert masks[key].tolist() == info["action_mask"][key].tolist()
        assert masks["tools"][1].tolist() == np.concatenate(info["action_mask"]["tools"][1]).tolist()


def allowed(action, mask):
    """The action with no bit that its mask excludes: to Gymnasium a mask of bits means something else."""
    return action | {"lamps": action["lamps"] * mask["lamps"]}


def test_the_same_is_learned_whatever_way_masks_of_parts_come(tmp_path):
    """One array, arrays by parts in another order, or info: the same agent sees the same; its optimum is `BEST`."""
    wrapper = {"env_wrapper": "fabric_ppo.envs.masks:action_mask_from_info"}
    kinds = {"PartsFlatMask": {}, "PartsMasks": {"env_backend": "async"}, "PartsMaskInInfo": wrapper}
    flags = {"num_envs": 4, "num_steps": 64, "total_timesteps": 7680, "update_epochs": 8, "learning_rate": 5e-3}
    flags |= {"per_rank_batch_size": 64, "gamma": 0.0, "log_std_init": -0.5, "test_episodes": 10}
    weights = []
    for name, more in kinds.items():
        run_dir = str(tmp_path / name)
        result = train(Config(**flags | more, env_id=f"{PARTS}{name}-v0", run_dir=run_dir, num_threads=1))
        weights.append(load_file(tmp_path / name / "policy.safetensors"))
    assert result.summary["test"]["return_mean"] > 10 * (BEST - 0.2)
    for each in weights[1:]:
        assert each.keys() == weights[0].keys()
        assert all(torch.equal(tensor, weights[0][name]) for name, tensor in each.items())


def test_no_impossible_action_is_taken_by_workers(tmp_path):
    flags = {"num_envs": 4, "num_steps": 64, "total_timesteps": 8192, "update_epochs": 4, "test_episodes": 10}
    flags |= {"env_id": MASKED, "env_backend": "async", "run_dir": str(tmp_path / "run")}
    policy = load_agent(train(Config(**flags, learning_rate=3e-3)))
    assert evaluate(policy, 20, 0).to_dict()["return_mean"] > 14

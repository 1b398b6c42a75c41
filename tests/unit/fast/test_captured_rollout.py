"""Rollouts that are recorded once and replayed; a recorder of PyTorch's operations stands for CUDA graphs."""

from __future__ import annotations

import dataclasses

import gymnasium
import numpy as np
import pytest
import torch

from fabric_ppo.agents.make import make_agent
from fabric_ppo.config import Config
from fabric_ppo.envs.functional import FunctionalEnv
from fabric_ppo.envs.ids import TENSOR_ENVS
from fabric_ppo.envs.make import make_envs
from fabric_ppo.envs.tensor_seeds import seeded_uniforms
from fabric_ppo.fast.captured_rollout import CapturedRollout
from fabric_ppo.rollouts.actor import make_plain_actor
from fabric_ppo.rollouts.buffer import RolloutBuffer
from fabric_ppo.rollouts.collect import collect
from tests.fixtures.recorded import Counted

COLUMNS = ("obs", "actions", "log_probs", "values", "rewards", "terminated", "truncated", "next_values")
ROLLOUTS = 5


class Swapping(FunctionalEnv):
    """Two numbers that change places, and as many steps as one of them says; it counts its calls."""

    observation_space = gymnasium.spaces.Box(-1, 1, (2,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)
    growth = 0.0

    def initial(self, seeds):
        state = tuple(seeded_uniforms(seeds, 2).float().unbind(-1))
        return state, torch.stack(state, -1)

    def transition(self, state, actions, seeds, step):
        self.calls = getattr(self, "calls", 0) + 1
        first, second = state
        rewards = first + actions + self.growth * self.calls
        return (second, first), torch.stack([second, first], -1), rewards, first * 20 < step


class Growing(Swapping):
    """An environment that changes outside of its state."""

    growth = 1.0


@pytest.fixture(autouse=True)
def as_on_a_gpu(monkeypatch):
    """With the code for tensors that are not on the CPU, whose numbers nothing waits for."""
    monkeypatch.setattr(torch.Tensor, "is_cpu", False)


def played(config, recorder, restart_at=None):
    """The columns of some rollouts, with the environments' states after each."""
    envs = make_envs(config, 0, 1, None, "cpu")
    torch.manual_seed(5)
    agent = make_agent(envs.spec, config)
    take = CapturedRollout(config, recorder)
    buffer = RolloutBuffer(envs, agent, config.num_steps, make_plain_actor, take)
    found = []
    for update in range(ROLLOUTS):
        if update == restart_at:
            buffer.restart()
        rollout = collect(agent, buffer, config.seed, update)
        columns = [getattr(rollout, name).clone() for name in COLUMNS]
        found.append([*columns, rollout.episodes, envs.states()])
        agent.update_statistics(rollout.moments)
        with torch.no_grad():
            for each in agent.parameters():
                each.mul_(1.01)
    return found


def require_same(ones, others):
    for mine, theirs in zip(ones, others, strict=True):
        for one, other in zip(mine, theirs, strict=True):
            assert torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other


def config_of(env_id, **flags):
    return Config(env_id=env_id, num_envs=5, num_steps=40, compile=True, env_backend="vector", **flags)


@pytest.mark.parametrize("flags", [{}, {"normalize_observations": True, "shared_trunk": True}])
@pytest.mark.parametrize("env_id", [*TENSOR_ENVS, f"{__name__}:Swapping"])
def test_replayed_rollouts_are_those_of_steps_one_by_one(env_id, flags):
    """Bit for bit, with weights and statistics that change, over the ends of episodes, and after a new beginning."""
    config, counted = config_of(env_id, **flags), Counted()
    plain = dataclasses.replace(config, compile=False)
    require_same(played(config, counted), played(plain, None))
    # the second rollout is recorded and compared, and from the third on there is nothing but replays
    assert (counted.recordings, counted.replays) == (1, ROLLOUTS - 1)
    require_same(played(config, counted, restart_at=3), played(plain, None, restart_at=3))


def test_environments_that_change_outside_of_their_state_are_not_recorded(capfd):
    counted = Counted()
    found = played(config_of(f"{__name__}:Growing"), counted)
    assert (counted.recordings, counted.replays) == (1, 1)
    assert all(each[0].isfinite().all() for each in found)
    said = capfd.readouterr()
    assert (said.out + said.err).count("the steps of a rollout are not one CUDA graph (their results differ") == 1


def test_what_cannot_be_recorded_is_played_one_by_one(capfd):
    def refuse(run):
        run()
        raise RuntimeError("operation not permitted when stream is capturing\nCUDA kernel errors might be reported")

    config = config_of("tensor/Acrobot-v1")
    require_same(played(config, refuse), played(dataclasses.replace(config, compile=False), None))
    said = capfd.readouterr()
    assert "(operation not permitted when stream is capturing); their kernels" in said.out + said.err

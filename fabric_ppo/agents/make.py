"""From a configuration to the agent that a run starts with."""

from __future__ import annotations

import math

import torch
from torch import nn

from fabric_ppo.agents.agent import Agent, Architecture
from fabric_ppo.agents.encoders import orthogonal_init
from fabric_ppo.agents.memory import orthogonal_memory
from fabric_ppo.config import Config
from fabric_ppo.envs.spaces import EnvSpec
from fabric_ppo.process.errors import ConfigError
from fabric_ppo.seeding import init_seed


def make_agent(spec: EnvSpec, config: Config) -> Agent:
    """Make the agent that a run starts with.

    It is a function of the environment's spaces and the configuration, the same on every rank.

    Raises:
        ConfigError: the environment's observations cannot be normalised or encoded as the flags say.
    """
    reward_discount = config.gamma if config.normalize_rewards else None
    architecture = Architecture(
        activation_function=config.activation_function,
        hidden_sizes=tuple(config.hidden_sizes),
        normalize_observations=config.normalize_observations,
        reward_discount=reward_discount,
        encoder=config.encoder,
        shared_trunk=config.shared_trunk,
        layer_norm=config.layer_norm,
        state_dependent_std=config.state_dependent_std,
        recurrent=config.recurrent,
        recurrent_size=config.recurrent_size if config.recurrent != "none" else 0,
        log_std_min=config.log_std_min,
        log_std_max=config.log_std_max,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(init_seed(config.seed))
        agent = Agent(spec, architecture)
        if config.ortho_init:
            _orthogonal_init(agent)
    if config.normalize_observations and agent.obs_moments is None:
        raise ConfigError(
            "--normalize-observations: a Box is expected among the observations, "
            "other than images for a network and what an encoder of your own takes"
        )
    if agent.log_std is not None:
        nn.init.constant_(agent.log_std, config.log_std_init)
    elif spec.action.kind == "box":
        with torch.no_grad():  # the second half of the head's outputs
            agent.policy.linear_layers[-1].bias[spec.action.size :] += config.log_std_init
    return agent


def _orthogonal_init(agent: Agent) -> None:
    """Set orthogonal weights and zero biases.

    After detail 2 of the ICLR blog post "The 37 implementation details of PPO".
    """
    for shared in (agent.encoder, agent.trunk):
        if shared is not None:
            orthogonal_init(shared)
    if agent.memory is not None:
        orthogonal_memory(agent.memory)
    for network, head_gain in ((agent.policy, 0.01), (agent.value, 1.0)):
        for layer in network.linear_layers:
            nn.init.orthogonal_(layer.weight, head_gain if layer is network.linear_layers[-1] else math.sqrt(2))
            nn.init.zeros_(layer.bias)

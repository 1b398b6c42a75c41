"""The agent that a run starts with, from its configuration."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from fabric_ppo.agents.agent import Agent, Architecture
from fabric_ppo.agents.encoders import orthogonal_init
from fabric_ppo.agents.memory import orthogonal_memory
from fabric_ppo.agents.mlp import linear_layers
from fabric_ppo.agents.repeatable import require_repeatable
from fabric_ppo.config import Config
from fabric_ppo.envs.spaces import EnvSpec
from fabric_ppo.process.errors import ConfigError
from fabric_ppo.seeding import init_seed


def make_agent(spec: EnvSpec, config: Config) -> Agent:
    """Make the agent that a run starts with.

    It depends only on the spaces and the configuration, so it is the same on every rank.

    Args:
        spec: the environment's spaces.
        config: hyperparameters and seed.

    Raises:
        ConfigError: the observations cannot be normalised or encoded as the flags say, or a layer
            depends on chance.
    """
    architecture = Architecture(
        activation_function=config.activation_function,
        hidden_sizes=tuple(config.hidden_sizes),
        normalize_observations=config.normalize_observations,
        reward_discount=config.gamma if config.normalize_rewards else None,
        encoder=config.encoder,
        shared_trunk=config.shared_trunk,
        layer_norm=config.layer_norm,
        state_dependent_std=config.state_dependent_std,
        recurrent=config.recurrent,
        recurrent_size=config.recurrent_size if config.recurrent != "none" else 0,
        log_std_min=config.log_std_min,
        log_std_max=config.log_std_max,
    )
    # PyTorch's initialisation draws from the global generator, whose state is restored afterwards
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(init_seed(config.seed))
        agent = Agent(spec, architecture)
        built = _layers(agent)
        if config.ortho_init:
            _orthogonal_init(agent)
    if config.normalize_observations and agent.obs_moments is None and agent.critic_moments is None:
        raise ConfigError(
            "--normalize-observations: a Box is expected among the observations, "
            "other than images for a network and what an encoder of your own takes"
        )
    if agent.log_std is not None:
        nn.init.constant_(agent.log_std, config.log_std_init)
    elif count := agent.distribution.num_log_std:
        # the last of the head's outputs
        with torch.no_grad():
            linear_layers(agent.policy)[-1].bias[-count:] += config.log_std_init
    _require_repeatable(agent)
    _require_same_layers(built, agent)
    return agent


def _orthogonal_init(agent: Agent) -> None:
    """Initialise all networks with orthogonal weights and zero biases.

    This is detail 2 of the ICLR blog post "The 37 implementation details of PPO".
    """
    for network in (agent.encoder, agent.critic_encoder, agent.trunk):
        if network is not None:
            orthogonal_init(network)
    if agent.memory is not None:
        orthogonal_memory(agent.memory)
    # a small gain of the policy's head makes all actions about equally probable at the start
    for head, head_gain in ((agent.policy, 0.01), (agent.value, 1.0)):
        layers = linear_layers(head)
        for layer in layers:
            nn.init.orthogonal_(layer.weight, head_gain if layer is layers[-1] else math.sqrt(2))
            nn.init.zeros_(layer.bias)


def _layers(agent: Agent) -> dict[str, str]:
    """Return name -> description of each layer."""
    return {name: repr(each) for name, each in agent.named_modules() if not any(True for _ in each.children())}


def _require_same_layers(built: dict[str, str], agent: Agent) -> None:
    """Raise a ConfigError if layers are not those that a loaded agent would have."""
    layers = _layers(agent)
    for name in [*built, *layers]:
        before, now = built.get(name, "nothing"), layers.get(name, "nothing")
        if before != now:
            raise ConfigError(
                f"the agent's {name} is {now}, and a policy that is loaded would have {before} there: a change of "
                "fabric_ppo/agents/agent.py or mlp.py is expected, which build it, not of make_agent"
            )


def _require_repeatable(agent: Agent) -> None:
    """Raise a ConfigError if the networks after the encoder give other outputs from call to call."""
    encoder = agent.encoder
    inputs = torch.linspace(-1, 1, 8 * encoder.num_features, dtype=agent.dtype).view(8, -1).to(agent.device)
    inputs = torch.cat([inputs, inputs.new_ones(8, encoder.num_masks)], dim=-1)
    memory = inputs.new_zeros(8, agent.memory_size)
    blank = inputs.new_zeros((8, *agent.spec.observation.shape), dtype=torch.uint8)

    def compute(twin: Agent) -> Tensor:
        features, _ = twin.remember(twin.shared(inputs), memory)
        values = twin.state_values(twin.value_features(features, blank))
        return torch.cat([twin.policy_params(features), values.unsqueeze(-1)], dim=-1)

    require_repeatable(agent, compute, "the agent's")

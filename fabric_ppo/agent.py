"""The agent: an encoder of observations, a policy head and a value head."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from fabric_ppo.config import LOG_STD, Config
from fabric_ppo.distributions import make_distribution
from fabric_ppo.encoders import Encoder, orthogonal_init
from fabric_ppo.errors import ConfigError, first_line
from fabric_ppo.memory import Memory, Recurrent, orthogonal_memory
from fabric_ppo.networks import MLP, Activation
from fabric_ppo.normalize import RewardScale, RunningMoments
from fabric_ppo.policy_file import policy_path, read_policy, require_weights
from fabric_ppo.seeding import init_seed
from fabric_ppo.spaces import EnvSpec


@dataclass(frozen=True)
class Architecture:
    """What of the hyperparameters shapes the networks; saved beside the weights."""

    activation_function: Activation
    hidden_sizes: tuple[int, ...]
    normalize_observations: bool = False
    reward_discount: float | None = None
    """Gamma of the returns whose deviation rewards are divided by; None where they are not."""
    encoder: str = "flatten"
    shared_trunk: bool = False
    layer_norm: bool = False
    state_dependent_std: bool = False
    recurrent: Recurrent = "none"
    recurrent_size: int = 0
    log_std_min: float | None = None
    log_std_max: float | None = None

    @property
    def log_std_bounds(self) -> tuple[float | None, float | None]:
        """What the log standard deviation stays within; None: no bound."""
        least, most = LOG_STD if self.state_dependent_std else (None, None)
        return (
            least if self.log_std_min is None else self.log_std_min,
            most if self.log_std_max is None else self.log_std_max,
        )

    def to_json(self) -> str:
        """JSON; `from_json` gives back an equal value."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Architecture:
        """The inverse of `to_json`."""
        values = json.loads(text)
        return cls(**values | {"hidden_sizes": tuple(values["hidden_sizes"])})


class Evaluation(NamedTuple):
    """What the loss needs of the agent for a minibatch; each `[b]`."""

    log_probs: Tensor
    entropy: Tensor
    values: Tensor


NO_MEMORY = torch.zeros(0, 0)
"""Of an agent that is not recurrent."""
_IMPOSSIBLE = -1e8
"""Logit of an action that the mask excludes: its probability is exactly 0, and so is what it adds to the entropy."""


class Agent(nn.Module):
    """Policy and value function, built from an EnvSpec: it never opens an environment.

    Attributes:
        spec: the environment's spaces.
        architecture: the networks' shape.
        distribution: the actions' distribution.
    """

    def __init__(self, spec: EnvSpec, architecture: Architecture) -> None:
        """Build the networks with PyTorch's own initialisation, from the global generator."""
        super().__init__()
        self.spec = spec
        self.architecture = architecture
        self.distribution = make_distribution(spec.action)
        num_free = self.distribution.num_free
        num_choices = 0 if num_free else self.distribution.num_params
        self.encoder = Encoder(spec.observation, architecture.encoder, num_choices)
        inputs = self.encoder.num_features
        hidden_sizes, activation = architecture.hidden_sizes, architecture.activation_function
        self.trunk: MLP | None = None
        if architecture.shared_trunk:
            self.trunk = MLP(inputs, hidden_sizes, 0, activation, architecture.layer_norm)
            inputs, hidden_sizes = hidden_sizes[-1], ()
        self.memory: Memory | None = None
        if architecture.recurrent != "none":
            self.memory = Memory(architecture.recurrent, inputs, architecture.recurrent_size)
            inputs = self.memory.num_features
        has_free_std = num_free > 0 and not architecture.state_dependent_std
        outputs = self.distribution.num_params - (num_free if has_free_std else 0)
        self.policy = MLP(inputs, hidden_sizes, outputs, activation, architecture.layer_norm)
        self.value = MLP(inputs, hidden_sizes, 1, activation, architecture.layer_norm)
        self.log_std = nn.Parameter(torch.zeros(num_free)) if has_free_std else None
        normalizes = architecture.normalize_observations and self.encoder.num_boxes > 0
        self.obs_moments = RunningMoments(self.encoder.num_boxes) if normalizes else None
        gamma = architecture.reward_discount
        self.reward_scale = None if gamma is None else RewardScale(gamma)

    @property
    def dtype(self) -> torch.dtype:
        """Floating-point type of weights and outputs."""
        return self.policy.linear_layers[0].weight.dtype

    @property
    def device(self) -> torch.device:
        """Where the weights lie."""
        return self.policy.linear_layers[0].weight.device

    @property
    def memory_size(self) -> int:
        """Entries of what it remembers from step to step; 0: nothing."""
        return 0 if self.memory is None else self.memory.state_size

    @property
    def memory_dtype(self) -> type[np.floating[Any]]:
        """What NumPy keeps that as."""
        return np.float64 if self.dtype == torch.float64 else np.float32

    def policy_params(self, features: Tensor) -> Tensor:
        """Parameters of the action distribution, `[B, num_params]`."""
        if not self.encoder.num_masks:
            return self.with_log_std(self.policy(features).to(self.dtype))
        mask = features[:, -self.encoder.num_masks :]
        logits: Tensor = self.policy(features[:, : -self.encoder.num_masks]).to(self.dtype)
        return logits.masked_fill(mask == 0, _IMPOSSIBLE)

    def state_values(self, features: Tensor) -> Tensor:
        """Values `[B]`."""
        out: Tensor = self.value(features[:, : features.shape[-1] - self.encoder.num_masks])
        return out.squeeze(-1).to(self.dtype)

    def with_log_std(self, out: Tensor) -> Tensor:
        """The policy network's outputs `[..., n]` as parameters of the distribution, `[..., num_params]`."""
        if self.log_std is not None:
            return torch.cat([out, self.bounded(self.log_std).expand_as(out)], dim=-1)
        if not self.architecture.state_dependent_std or not self.distribution.num_free:
            return out
        means, log_std = out.chunk(2, dim=-1)
        return torch.cat([means, self.bounded(log_std)], dim=-1)

    def bounded(self, log_std: Tensor) -> Tensor:
        """Log standard deviations, cut off at their bounds; beyond them they have no gradient."""
        least, most = self.architecture.log_std_bounds
        return log_std if least is None and most is None else log_std.clamp(least, most)

    def put_back(self) -> None:
        """Put free log standard deviations that a gradient step has taken beyond a bound back to it.

        There they have a gradient; beyond it they have none, and would stay where they are for the rest of the run.
        """
        if self.log_std is None:
            return
        least, most = self.architecture.log_std_bounds
        if least is not None or most is not None:
            with torch.no_grad():
                self.log_std.clamp_(least, most)

    def encode(self, obs: Tensor) -> Tensor:
        """Observations as policy and value (or the recurrent layer) see them, `[B, n]`; an action mask comes last."""
        encode = self.obs_to_features()
        return obs if encode is None else encode(obs)

    def obs_to_features(self) -> Callable[[Tensor], Tensor] | None:
        """`encode` while the agent stays as it is; None where that changes nothing."""
        prepare = self.obs_to_inputs()
        if self.trunk is None:
            return prepare
        return lambda obs: self._through_trunk(obs if prepare is None else prepare(obs))

    def obs_to_inputs(self) -> Callable[[Tensor], Tensor] | None:
        """What makes of observations what the first perceptron sees, while the agent stays as it is; None: nothing."""
        encode = None if self.encoder.is_identity(self.dtype) else self.encoder
        normalize = None if self.obs_moments is None else self.obs_moments.normalizer(self.dtype)
        if encode is None:
            return normalize
        return lambda obs: encode(obs, self.dtype, normalize)

    def _through_trunk(self, inputs: Tensor) -> Tensor:
        if self.trunk is None:
            return inputs
        features, mask = self._split_mask(inputs)
        return torch.cat([self.trunk(features), mask], dim=-1)

    def remember(self, features: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        """A step of the recurrent layer, where there is one.

        Args:
            features: from `encode`, `[B, n]`.
            memory: what is remembered of the steps before, `[B, memory_size]`.

        Returns:
            What policy and value see, and what is remembered then.
        """
        if self.memory is None:
            return features, memory
        inputs, mask = self._split_mask(features)
        memory = self.memory(inputs, memory.to(inputs.dtype))
        return torch.cat([self.memory.output(memory), mask], dim=-1), memory

    def _split_mask(self, features: Tensor) -> list[Tensor]:
        masks = self.encoder.num_masks
        return list(features.split([features.shape[-1] - masks, masks], dim=-1))

    def prepare(self, obs: Tensor) -> Tensor:
        """Observations as a rollout hands them on to the loss: normalised where that is wanted, raw otherwise.

        Where the encoder has weights too, rows of bytes: normalised numbers first, and then the raw observations.
        """
        if self.obs_moments is None:
            return obs
        if not self.encoder.has_weights:
            prepare = self.obs_to_inputs()
            assert prepare is not None
            return prepare(obs)
        boxes = self.obs_moments.normalizer(self.dtype)(self.encoder.boxes(obs, self.dtype))
        return torch.cat([boxes.contiguous().view(torch.uint8), obs], dim=-1)

    def features(self, prepared: Tensor) -> Tensor:
        """What `prepare` gave as `encode` has it, `[B, n]`."""
        return self._through_trunk(self.inputs(prepared))

    def inputs(self, prepared: Tensor) -> Tensor:
        """What `prepare` gave as the first perceptron sees it, `[B, n]`."""
        if self.obs_moments is not None and self.encoder.has_weights:
            end = self.encoder.num_boxes * self.dtype.itemsize
            boxes = prepared[:, :end].clone(memory_format=torch.contiguous_format).view(self.dtype)
            return self.encoder(prepared[:, end:], self.dtype, lambda _: boxes)  # type: ignore[no-any-return]
        is_encoded = self.obs_moments is not None or self.encoder.is_identity(self.dtype)
        return prepared if is_encoded else self.encoder(prepared, self.dtype)

    def absorb(self, sums: Tensor) -> None:
        """Renew the running statistics with what all ranks saw in a rollout, the sum of their `Rollout.moments`."""
        for moments in (self.obs_moments, self.reward_scale):
            if moments is not None:
                moments.absorb(sums[: moments.num_sums])
                sums = sums[moments.num_sums :]

    def act(self, obs: Tensor, noise: Tensor | None, memory: Tensor = NO_MEMORY) -> tuple[Tensor, Tensor]:
        """Actions and what is remembered after them; see `remember`.

        The actions, `[B, *action_shape]`, are drawn with `noise [B, noise_size]`, or the most probable ones without.
        """
        features, memory = self.remember(self.encode(obs), memory)
        params = self.policy_params(features)
        return self.distribution.mode(params) if noise is None else self.distribution.sample(params, noise), memory

    def values(self, obs: Tensor, memory: Tensor = NO_MEMORY) -> Tensor:
        """State values `[B]`; for `memory` see `remember`."""
        return self.state_values(self.remember(self.encode(obs), memory)[0])

    def log_probs_and_values(self, obs: Tensor, actions: Tensor, memory: Tensor = NO_MEMORY) -> tuple[Tensor, Tensor]:
        """Log-probabilities of `actions` and state values, each `[B]`; for `memory` see `remember`."""
        features = self.remember(self.encode(obs), memory)[0]
        return self.distribution.log_prob(self.policy_params(features), actions), self.state_values(features)

    def forward(self, obs: Tensor, actions: Tensor, sequences: Tensor = NO_MEMORY) -> Evaluation:
        """Log-probabilities, entropy and values of a minibatch of observations from `prepare`.

        A recurrent agent needs them as sequences (see `Memory.along`).
        """
        features = self.features(obs)
        if self.memory is not None:
            inputs, mask = self._split_mask(features)
            features = torch.cat([self.memory.along(inputs, sequences.to(inputs.dtype)), mask], dim=-1)
        log_probs, entropy = self.distribution.log_prob_and_entropy(self.policy_params(features), actions)
        return Evaluation(log_probs, entropy, self.state_values(features))


def make_agent(spec: EnvSpec, config: Config) -> Agent:
    """The agent that a run starts with: a function of the configuration's seed, the same on every rank."""
    reward_discount = config.gamma if config.normalize_rewards else None
    architecture = Architecture(
        activation_function=config.activation_function,
        hidden_sizes=config.hidden_sizes,
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
    elif agent.distribution.num_free:
        with torch.no_grad():
            agent.policy.linear_layers[-1].bias[agent.distribution.num_free :] += config.log_std_init
    return agent


def start_from(agent: Agent, run_dir: str) -> None:
    """Take over the weights and running statistics of a trained policy (`--init-from`).

    Raises:
        ConfigError: it cannot be read, or is the policy of another kind of agent.
    """
    try:
        path = policy_path(run_dir)
        metadata, weights = read_policy(path)
        spec, architecture = EnvSpec.from_json(metadata["env_spec"]), Architecture.from_json(metadata["agent"])
    except Exception as error:  # a damaged file fails in many ways
        reason = first_line(error)
        raise ConfigError(f"--init-from {run_dir}: not a policy of this program ({reason})") from None
    pairs = {
        "observations": (spec.observation, agent.spec.observation),
        "actions": (spec.action, agent.spec.action),
        "networks": (architecture, agent.architecture),
    }
    for what, (theirs, ours) in pairs.items():
        if theirs != ours:
            raise ConfigError(f"--init-from {run_dir}: its {what} are {theirs}; this run's, {ours}, are expected")
    try:
        require_weights(weights, agent.state_dict())
    except ValueError as error:
        raise ConfigError(f"--init-from {run_dir}: not a policy of this program ({error})") from None
    agent.load_state_dict(weights)


def _orthogonal_init(agent: Agent) -> None:
    """Orthogonal weights, zero biases (ICLR blog "The 37 implementation details of PPO", detail 2)."""
    for shared in (agent.encoder, agent.trunk):
        if shared is not None:
            orthogonal_init(shared)
    if agent.memory is not None:
        orthogonal_memory(agent.memory)
    for network, head_gain in ((agent.policy, 0.01), (agent.value, 1.0)):
        for layer in network.linear_layers:
            nn.init.orthogonal_(layer.weight, head_gain if layer is network.linear_layers[-1] else math.sqrt(2))
            nn.init.zeros_(layer.bias)

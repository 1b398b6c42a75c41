"""The agent: an encoder of observations, a policy head and a value head."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from fabric_ppo.agents.distributions import make_distribution
from fabric_ppo.agents.encoders import Encoder
from fabric_ppo.agents.memory import Memory, Recurrent
from fabric_ppo.agents.mlp import MLP, Activation
from fabric_ppo.agents.normalize import RewardScale, RunningMoments
from fabric_ppo.config import LOG_STD
from fabric_ppo.envs.spaces import EnvSpec


@dataclass(frozen=True)
class Architecture:
    """Those hyperparameters that shape the networks; saved beside the weights."""

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
        """Bounds of the log standard deviation; None: no bound."""
        least, most = LOG_STD if self.state_dependent_std else (None, None)
        return (
            least if self.log_std_min is None else self.log_std_min,
            most if self.log_std_max is None else self.log_std_max,
        )

    def to_json(self) -> str:
        """Return JSON, of which `from_json` makes an equal value."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Architecture:
        """Make an Architecture of what `to_json` returned."""
        values = json.loads(text)
        return cls(**values | {"hidden_sizes": tuple(values["hidden_sizes"])})


class Evaluation(NamedTuple):
    """An agent's view of a minibatch, as the loss needs it; each `[b]`."""

    log_probs: Tensor
    entropy: Tensor
    values: Tensor


NO_MEMORY = torch.zeros(0, 0)
"""Memory of an agent that is not recurrent."""
_IMPOSSIBLE = -1e8
"""Logit of an action that the mask excludes: its probability and its entropy are exactly 0."""


class Agent(nn.Module):
    """Policy and value function, built from an EnvSpec: it never opens an environment.

    Observations come as the environment gave them, raw: they are normalised and encoded in here, by
    `inputs`, and nowhere else.

    Attributes:
        spec: the environment's spaces.
        architecture: the networks' shape.
        distribution: the actions' distribution.
        obs_moments, reward_scale: running statistics; None where they are not wanted.
    """

    def __init__(self, spec: EnvSpec, architecture: Architecture) -> None:
        """Build the networks with PyTorch's own initialisation, from the global generator."""
        super().__init__()
        self.spec = spec
        self.architecture = architecture
        self.distribution = make_distribution(spec.action, architecture.state_dependent_std)
        num_free, num_params = self.distribution.num_free, self.distribution.num_params
        num_choices = 0 if spec.action.kind == "box" else num_params
        self.encoder = Encoder(spec.observation, architecture.encoder, num_choices)
        width = self.encoder.num_features
        hidden_sizes, activation = architecture.hidden_sizes, architecture.activation_function
        layer_norm = architecture.layer_norm
        self.trunk: MLP | None = None
        if architecture.shared_trunk:
            self.trunk = MLP(width, hidden_sizes, 0, activation, layer_norm)
            width, hidden_sizes = hidden_sizes[-1], ()
        self.memory: Memory | None = None
        if architecture.recurrent != "none":
            self.memory = Memory(architecture.recurrent, width, architecture.recurrent_size)
            width = self.memory.num_features
        self.policy = MLP(width, hidden_sizes, num_params - num_free, activation, layer_norm)
        self.value = MLP(width, hidden_sizes, 1, activation, layer_norm)
        self.log_std = nn.Parameter(torch.zeros(num_free)) if num_free else None
        normalizes = architecture.normalize_observations and self.encoder.num_boxes > 0
        self.obs_moments = RunningMoments(self.encoder.num_boxes) if normalizes else None
        gamma = architecture.reward_discount
        self.reward_scale = None if gamma is None else RewardScale(gamma)

    @property
    def parts(self) -> list[object]:
        """Parts that make actions, log-probabilities and values of observations, in order.

        A fast form of the agent is used only where each part declares that it has that form, as
        `fast_forms` of its own class: whatever is added here is computed plainly until it does.
        """
        parts = [self.obs_moments, self.encoder, self.trunk, self.memory, self.policy, self.value]
        return [part for part in (*parts, self.distribution) if part is not None]

    @property
    def fast_forms(self) -> frozenset[str]:
        """Fast forms that all parts have."""
        return frozenset.intersection(*map(declared_forms, self.parts))

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
        """Entries of a recurrent agent's memory; 0: it has none."""
        return 0 if self.memory is None else self.memory.state_size

    @property
    def memory_dtype(self) -> type[np.floating[Any]]:
        """NumPy's type of that memory."""
        return np.float64 if self.dtype == torch.float64 else np.float32

    def inputs(self, obs: Tensor) -> Tensor:
        """Normalise and encode observations `[B, ...]`: the first perceptron's inputs, `[B, n]`.

        An action mask comes last, as it is.
        """
        inputs: Tensor = self.encoder(obs, self.dtype, self.obs_moments)
        return inputs

    def features(self, obs: Tensor) -> Tensor:
        """Compute the inputs of policy and value (or of the recurrent layer), `[B, n]`."""
        inputs = self.inputs(obs)
        if self.trunk is None:
            return inputs
        features, mask = self._split_mask(inputs)
        return torch.cat([self.trunk(features), mask], dim=-1)

    def _split_mask(self, features: Tensor) -> list[Tensor]:
        masks = self.encoder.num_masks
        return list(features.split([features.shape[-1] - masks, masks], dim=-1))

    def remember(self, features: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        """Take a step of the recurrent layer, where there is one.

        Args:
            features: `[B, n]`.
            memory: of the steps before, `[B, memory_size]`.

        Returns:
            The inputs of policy and value, and the memory after this step.
        """
        if self.memory is None:
            return features, memory
        inputs, mask = self._split_mask(features)
        memory = self.memory(inputs, memory.to(inputs.dtype))
        return torch.cat([self.memory.output(memory), mask], dim=-1), memory

    def policy_params(self, features: Tensor) -> Tensor:
        """Compute the parameters of the action distribution, `[B, num_params]`."""
        if not self.encoder.num_masks:
            return self.with_log_std(self.policy(features).to(self.dtype))
        features, mask = self._split_mask(features)
        logits: Tensor = self.policy(features).to(self.dtype)
        return logits.masked_fill(mask == 0, _IMPOSSIBLE)

    def state_values(self, features: Tensor) -> Tensor:
        """Compute the values, `[B]`."""
        out: Tensor = self.value(self._split_mask(features)[0] if self.encoder.num_masks else features)
        return out.squeeze(-1).to(self.dtype)

    def with_log_std(self, out: Tensor) -> Tensor:
        """Make parameters `[..., num_params]` of the policy network's outputs `[..., n]`."""
        if self.log_std is not None:
            return torch.cat([out, self.bounded(self.log_std).expand_as(out)], dim=-1)
        if self.spec.action.kind != "box":
            return out
        means, log_std = out.chunk(2, dim=-1)
        return torch.cat([means, self.bounded(log_std)], dim=-1)

    def bounded(self, log_std: Tensor) -> Tensor:
        """Cut log standard deviations off at their bounds; beyond them they have no gradient."""
        least, most = self.architecture.log_std_bounds
        return log_std if least is None and most is None else log_std.clamp(least, most)

    @torch.no_grad()
    def clamp_log_std(self) -> None:
        """Bring free log standard deviations that a step took beyond a bound back to it.

        There they have a gradient; beyond it they would stay where they are for the rest of the run.
        """
        least, most = self.architecture.log_std_bounds
        if self.log_std is not None and not (least is None and most is None):
            self.log_std.clamp_(least, most)

    def act(self, obs: Tensor, noise: Tensor | None, memory: Tensor = NO_MEMORY) -> tuple[Tensor, Tensor]:
        """Choose actions; return them, `[B, *action_shape]`, and the memory after them.

        They are drawn with `noise [B, noise_size]`; without, they are the most probable ones.
        """
        features, memory = self.remember(self.features(obs), memory)
        params = self.policy_params(features)
        if noise is None:
            return self.distribution.mode(params), memory
        return self.distribution.sample(params, noise), memory

    def values(self, obs: Tensor, memory: Tensor = NO_MEMORY) -> Tensor:
        """Compute state values, `[B]`; for `memory` see `remember`."""
        return self.state_values(self.remember(self.features(obs), memory)[0])

    def log_probs_and_values(self, obs: Tensor, actions: Tensor, memory: Tensor = NO_MEMORY) -> tuple[Tensor, Tensor]:
        """Compute log-probabilities of `actions` and state values, `[B]` each."""
        features = self.remember(self.features(obs), memory)[0]
        log_probs = self.distribution.log_prob(self.policy_params(features), actions)
        return log_probs, self.state_values(features)

    def forward(self, obs: Tensor, actions: Tensor, sequences: Tensor = NO_MEMORY) -> Evaluation:
        """Evaluate a minibatch; a recurrent agent needs sequences (see `Memory.along`)."""
        features = self.features(obs)
        if self.memory is not None:
            inputs, mask = self._split_mask(features)
            outputs = self.memory.along(inputs, sequences.to(inputs.dtype))
            features = torch.cat([outputs, mask], dim=-1)
        params = self.policy_params(features)
        log_probs, entropy = self.distribution.log_prob_and_entropy(params, actions)
        return Evaluation(log_probs, entropy, self.state_values(features))

    @property
    def _statistics(self) -> list[RunningMoments]:
        return [each for each in (self.obs_moments, self.reward_scale) if each is not None]

    def statistics(self) -> Tensor:
        """Return the running statistics' sums, `[n]` float64; empty where there are none."""
        sums = [each.all_sums() for each in self._statistics]
        return torch.cat([torch.zeros(0, dtype=torch.float64, device=self.device), *sums])

    def load_statistics(self, sums: Tensor) -> None:
        """Take the place of an agent whose `statistics` these are."""
        own = self._statistics
        for each, part in zip(own, sums.split([each.num_sums for each in own]), strict=True):
            each.load_sums(part)

    def update_statistics(self, sums: Tensor) -> None:
        """Add the rows that all ranks saw in a rollout: the sum of their `Rollout.moments`."""
        own = self._statistics
        for each, part in zip(own, sums.split([each.num_sums for each in own]), strict=True):
            each.update(part)


def declared_forms(part: object) -> frozenset[str]:
    """Return the fast forms that a part's own class declares.

    A subclass has to declare its own, for what it changes is not known to them.
    """
    forms: frozenset[str] = part.fast_forms if "fast_forms" in vars(type(part)) else frozenset()  # type: ignore[attr-defined]
    return forms

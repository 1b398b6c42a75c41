"""The agent: an encoder of observations, a policy head and a value head."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from fabric_ppo.agents.distributions import make_distribution
from fabric_ppo.agents.encoders import CriticEncoder, Encoder
from fabric_ppo.agents.memory import Memory, Recurrent
from fabric_ppo.agents.mlp import MLP, Activation
from fabric_ppo.agents.normalize import Normalizing, RewardScale, RunningMoments
from fabric_ppo.config_values import LOG_STD
from fabric_ppo.envs.spaces import EnvSpec, mask_paths


@dataclass(frozen=True)
class Architecture:
    """Hyperparameters that shape the networks; saved beside the weights."""

    activation_function: Activation
    hidden_sizes: tuple[int, ...]
    normalize_observations: bool = False
    reward_discount: float | None = None
    """Discount of the returns by whose deviation rewards are divided; None: no such scaling."""
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
        """Lower and upper bound of the log standard deviation; None: no bound."""
        # a network may give any number, and exp of it overflows; a free parameter moves slowly
        least, most = LOG_STD if self.state_dependent_std else (None, None)
        return (
            least if self.log_std_min is None else self.log_std_min,
            most if self.log_std_max is None else self.log_std_max,
        )

    def to_json(self) -> str:
        """Return this as JSON, for `from_json`."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Architecture:
        """Return the Architecture that `to_json` described."""
        values = json.loads(text)
        return cls(**values | {"hidden_sizes": tuple(values["hidden_sizes"])})


class Evaluation(NamedTuple):
    """Log-probabilities of the actions, entropies in nats and values of a minibatch; each `[b]`."""

    log_probs: Tensor
    entropy: Tensor
    values: Tensor


NO_MEMORY = torch.zeros(0, 0)
"""Memory of an agent that is not recurrent, and sequences of its rows."""
NO_OBS = torch.zeros(0, 0)
"""Observations for an agent whose value network takes what its policy takes."""
_IMPOSSIBLE = -1e8
"""Logit of an action that the mask excludes: `exp` of it is 0, and 0 times it is not NaN."""


class Agent(Normalizing):
    """Policy and value function, built from an EnvSpec: it never opens an environment.

    It takes raw observations: `inputs` normalises and encodes them, and nothing else does.

    Attributes:
        spec, architecture: the environment's spaces, the networks' shape.
        distribution: the actions' distribution.
        encoder, policy, value: the networks; the encoder is shared by policy and value.
        trunk, memory: shared hidden layers and the recurrent layer; None where there are none.
        critic_encoder: encoder of what the value network takes besides (`--critic-keys`), which goes
            through none of the shared layers (Pinto et al., arXiv 1710.06542); None for nothing.
        log_std: free log standard deviations, `[num_free]`; None where there are none.
        obs_moments, critic_moments, reward_scale: running statistics, see `Normalizing`.
    """

    def __init__(self, spec: EnvSpec, architecture: Architecture) -> None:
        """Build the networks with PyTorch's own initialisation, from the global generator.

        Raises:
            ConfigError: the observations cannot be encoded as the architecture says.
        """
        super().__init__()
        self.spec, self.architecture = spec, architecture
        self.distribution = make_distribution(spec.action, architecture.state_dependent_std)
        num_free, num_params = self.distribution.num_free, self.distribution.num_params
        # a mask has an entry for each logit; continuous actions cannot be masked
        num_choices, masks = spec.action.num_choices, mask_paths(spec)
        self.encoder = Encoder(spec.observation, architecture.encoder, num_choices, masks)
        width = self.encoder.num_features
        hidden_sizes, layer_norm = architecture.hidden_sizes, architecture.layer_norm
        activation = architecture.activation_function
        self.trunk: MLP | None = None
        if architecture.shared_trunk:
            self.trunk = MLP(width, hidden_sizes, 0, activation, layer_norm)
            width, hidden_sizes = hidden_sizes[-1], ()
        self.memory: Memory | None = None
        if architecture.recurrent != "none":
            self.memory = Memory(architecture.recurrent, width, architecture.recurrent_size)
            width = self.memory.num_features
        self.critic_encoder: CriticEncoder | None = None
        value_width = width
        if spec.observation.num_critic:
            self.critic_encoder = CriticEncoder(spec.observation, architecture.encoder)
            value_width += self.critic_encoder.num_features
        self.policy = MLP(width, hidden_sizes, num_params - num_free, activation, layer_norm)
        self.value = MLP(value_width, hidden_sizes, 1, activation, layer_norm)
        self.log_std = nn.Parameter(torch.zeros(num_free)) if num_free else None
        normalized = (self.encoder, self.critic_encoder) if architecture.normalize_observations else (None, None)
        self.obs_moments, self.critic_moments = map(_moments_of, normalized)
        gamma = architecture.reward_discount
        self.reward_scale = None if gamma is None else RewardScale(gamma)

    @property
    def parts(self) -> list[object]:
        """Parts between observations and actions, log-probabilities and values, in order.

        A fast form of the agent, from `fast/`, is used only where every part declares that form in
        `fast_forms` of its own class: a part that is added here is computed plainly until it does.
        """
        parts = [self.obs_moments, self.encoder, self.trunk, self.memory, self.policy]
        critic = [self.critic_moments, self.critic_encoder, self.value]
        return [part for part in (*parts, *critic, self.distribution) if part is not None]

    @property
    def fast_forms(self) -> frozenset[str]:
        """Fast forms that all parts declare: `acting`, `loss`, both or none."""
        return frozenset.intersection(*map(declared_forms, self.parts))

    @property
    def dtype(self) -> torch.dtype:
        """Floating-point type of weights and outputs."""
        return next(self.policy.parameters()).dtype

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return next(self.policy.parameters()).device

    @property
    def memory_size(self) -> int:
        """Number of entries of a recurrent agent's memory; 0 for other agents."""
        return 0 if self.memory is None else self.memory.state_size

    @property
    def memory_dtype(self) -> type[np.floating[Any]]:
        """NumPy type of the memory."""
        return np.float64 if self.dtype == torch.float64 else np.float32

    def inputs(self, obs: Tensor) -> Tensor:
        """Normalise and encode observations `[B, ...]`: the first perceptron's inputs, `[B, n]`.

        The last columns are the action mask, where there is one.
        """
        inputs: Tensor = self.encoder(obs, self.dtype, self.obs_moments)
        return inputs

    def features(self, obs: Tensor) -> Tensor:
        """Compute the inputs of policy and value (or of the recurrent layer), `[B, n]`."""
        return self.shared(self.inputs(obs))

    def shared(self, inputs: Tensor) -> Tensor:
        """Compute the layers that policy and value share, from encoded observations `[B, n]`."""
        if self.trunk is None:
            return inputs
        features, mask = _split_mask(inputs, self.encoder.num_masks)
        return torch.cat([self.trunk(features), mask], dim=-1)

    def remember(self, features: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        """Take a step of the recurrent layer, where there is one.

        Args:
            features: `[B, n]`.
            memory: state after the step before, `[B, memory_size]`.

        Returns:
            The inputs of policy and value, and the memory after this step.
        """
        if self.memory is None:
            return features, memory
        inputs, mask = _split_mask(features, self.encoder.num_masks)
        memory = self.memory(inputs, memory.to(inputs.dtype))
        return torch.cat([self.memory.output(memory), mask], dim=-1), memory

    def policy_params(self, features: Tensor) -> Tensor:
        """Compute the parameters of the action distribution, `[B, num_params]`.

        Actions that the mask excludes have probability 0.
        """
        if not self.encoder.num_masks:
            return self.with_log_std(self.policy(features).to(self.dtype))
        features, mask = _split_mask(features, self.encoder.num_masks)
        out: Tensor = self.policy(features).to(self.dtype)
        if numbers := out.shape[-1] - mask.shape[-1]:  # of Boxes beside the choices, which come after them
            mask = nn.functional.pad(mask, (0, numbers), value=1.0)
        return self.with_log_std(out.masked_fill(mask == 0, _IMPOSSIBLE))

    def value_features(self, features: Tensor, obs: Tensor) -> Tensor:
        """Return `features [B, n]` with those of the critic's own parts of `obs [B, ...]`, where it has some."""
        if self.critic_encoder is None:
            return features
        inputs, mask = _split_mask(features, self.encoder.num_masks)
        return torch.cat([inputs, self.critic_encoder(obs, self.dtype, self.critic_moments), mask], dim=-1)

    def state_values(self, features: Tensor) -> Tensor:
        """Compute the values, `[B]`, of what `value_features` returned."""
        if self.encoder.num_masks:
            features, _ = _split_mask(features, self.encoder.num_masks)
        out: Tensor = self.value(features)
        return out.squeeze(-1).to(self.dtype)

    def with_log_std(self, out: Tensor) -> Tensor:
        """Return the distribution's parameters, `[..., num_params]`, for the policy's outputs.

        The log standard deviations of continuous actions are the last.
        """
        if self.log_std is not None:
            return torch.cat([out, self.bounded(self.log_std).expand(*out.shape[:-1], -1)], dim=-1)
        count = self.distribution.num_log_std
        if not count:
            return out
        return torch.cat([out[..., :-count], self.bounded(out[..., -count:])], dim=-1)

    def bounded(self, log_std: Tensor) -> Tensor:
        """Clamp log standard deviations to their bounds; beyond a bound the gradient is 0."""
        least, most = self.architecture.log_std_bounds
        return log_std if least is None and most is None else log_std.clamp(least, most)

    def clamp_log_std(self) -> None:
        """Clamp the free log standard deviations themselves, after a gradient step."""
        # on a bound they have a gradient, and can return; beyond it they would be stuck
        least, most = self.architecture.log_std_bounds
        if self.log_std is not None and not (least is None and most is None):
            with torch.no_grad():
                self.log_std.clamp_(least, most)

    def act(self, obs: Tensor, noise: Tensor | None, memory: Tensor = NO_MEMORY) -> tuple[Tensor, Tensor]:
        """Choose actions for `obs [B, ...]`.

        Args:
            obs: raw observations; rows of the policy's parts alone will do.
            noise: `[B, noise_size]`, to sample with; None: the most probable actions.
            memory: `[B, memory_size]`, a recurrent agent's after the step before.

        Returns:
            Actions `[B, *action_shape]`, and the memory after them.
        """
        features, memory = self.remember(self.features(obs), memory)
        params = self.policy_params(features)
        if noise is None:
            return self.distribution.mode(params), memory
        return self.distribution.sample(params, noise), memory

    def values(self, obs: Tensor, memory: Tensor = NO_MEMORY) -> Tensor:
        """Compute state values, `[B]`; for `memory` see `remember`."""
        return self.values_of_inputs(self.inputs(obs), memory, obs)

    def values_of_inputs(self, inputs: Tensor, memory: Tensor = NO_MEMORY, obs: Tensor = NO_OBS) -> Tensor:
        """Compute state values, `[B]`, from `inputs(obs)`; for `memory` see `remember`, for `obs` `value_features`."""
        features, _ = self.remember(self.shared(inputs), memory)
        return self.state_values(self.value_features(features, obs))

    def log_probs_and_values(self, obs: Tensor, actions: Tensor, memory: Tensor = NO_MEMORY) -> tuple[Tensor, Tensor]:
        """Compute log-probabilities of `actions` and state values, `[B]` each."""
        features = self.remember(self.features(obs), memory)[0]
        log_probs = self.distribution.log_prob(self.policy_params(features), actions)
        return log_probs, self.state_values(self.value_features(features, obs))

    def forward(self, obs: Tensor, actions: Tensor, sequences: Tensor = NO_MEMORY) -> Evaluation:
        """Compute the Evaluation of a minibatch of `b` rows; updates call this through DDP.

        Args:
            obs, actions: `[b, ...]`, as in `Rollout`.
            sequences: a recurrent agent's (see `Memory.along`), whose rows are whole sequences.
        """
        features = self.features(obs)
        if self.memory is not None:
            inputs, mask = _split_mask(features, self.encoder.num_masks)
            outputs = self.memory.along(inputs, sequences.to(inputs.dtype))
            features = torch.cat([outputs, mask], dim=-1)
        params = self.policy_params(features)
        log_probs, entropy = self.distribution.log_prob_and_entropy(params, actions)
        return Evaluation(log_probs, entropy, self.state_values(self.value_features(features, obs)))


def _moments_of(encoder: Encoder | None) -> RunningMoments | None:
    """Return statistics of the numbers that an encoder leaves as they are; None where there are none."""
    return RunningMoments(encoder.num_boxes) if encoder is not None and encoder.num_boxes else None


def _split_mask(features: Tensor, num_masks: int) -> tuple[Tensor, Tensor]:
    """Split `features [B, n]` from the action mask, their last `num_masks` columns."""
    inputs, mask = features.split([features.shape[-1] - num_masks, num_masks], dim=-1)
    return inputs, mask


def declared_forms(part: object) -> frozenset[str]:
    """Return the fast forms that a part's own class declares; see `Agent.parts`."""
    # not inherited: a subclass may compute something else, which the fast forms do not know
    if "fast_forms" not in vars(type(part)) or is_altered(part):
        return frozenset()
    forms: frozenset[str] = part.fast_forms  # type: ignore[attr-defined]
    return forms


def is_altered(part: object) -> bool:
    """Return True if a part has hooks or methods of its own, which objects of its class do not have."""
    return any(_is_own(type(each), name, value) for each in _objects(part) for name, value in vars(each).items())


def _objects(part: object) -> list[object]:
    return [part, *part] if isinstance(part, MLP) else [part]


def _is_own(kind: type, name: str, value: object) -> bool:
    """Return True for a hook, or for an attribute that stands before a method of the class."""
    is_hook = name in ("_forward_hooks", "_forward_pre_hooks") and bool(value)
    return is_hook or (callable(value) and callable(getattr(kind, name, None)))

"""A trained agent as one PyTorch module, which `torch.export` takes: from observations to actions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fabric_ppo.agents.agent import Agent
from fabric_ppo.envs.actions import ActionConverter
from fabric_ppo.envs.nested_actions import nested
from fabric_ppo.envs.space_text import format_parts
from fabric_ppo.envs.spaces import SpaceSpec, part_at, path_name


class PolicyModule(nn.Module):
    """A module from raw observations to actions, their distribution's parameters and values.

    It has everything that lies between: normalisation, encoder, action mask, and the mapping of
    actions into their bounds.

    Attributes:
        agent: the networks.
        memory_size: width of a recurrent agent's memory; 0 for other agents.
    """

    def __init__(self, agent: Agent) -> None:
        """Compute with `agent`, whose weights are not copied."""
        super().__init__()
        self.agent, self.memory_size = agent, agent.memory_size
        observation = self._observation = agent.spec.observation.for_policy
        self._actions = agent.spec.action.leaves
        self._to_env = nn.ModuleList(_ToEnvironment(leaf) for _, leaf in self._actions)
        self._leaves = [(path, getattr(torch, leaf.dtype)) for path, leaf in observation.leaves]

    def forward(self, obs: Any, memory: Tensor | None = None, noise: Tensor | None = None) -> dict[str, Any]:
        """Choose actions.

        Args:
            obs: a batch as the environment has it: a tensor `[B, ...]`, of a Dict a dict of them,
                of a Tuple a tuple. Parts that the value network alone takes may be missing.
            memory: a recurrent agent's after the step before, `[B, memory_size]`. None: episodes
                begin.
            noise: `[B, noise_size]`, to sample with; see `Distribution.noise`. None, or zeros: the
                most probable actions.

        Returns:
            `action`, `[B, ...]` in the form that the environment takes, of a Dict a dict, of a Tuple
            a tuple; `params`, `[B, n]`, the logits of the choices, then the means and then the log
            standard deviations of Boxes before they are mapped into their bounds; `value`, `[B]`,
            unless the value network takes parts of its own; and `memory`, of a recurrent agent.

        Raises:
            ValueError: an argument is no tensor, or of another shape.
        """
        if not (torch.compiler.is_compiling() or torch.jit.is_tracing()):  # type: ignore[attr-defined]
            self._check(obs, memory, noise)
        actions, out = self.compute([part_at(obs, path) for path, _ in self._leaves], memory, noise)
        return {"action": nested([path for path, _ in self._actions], actions), **out}

    def _check(self, obs: Any, memory: Tensor | None, noise: Tensor | None) -> None:
        """Raise a ValueError for arguments that are no tensors, or of another shape."""
        given: list[tuple[str, Any, tuple[int, ...]]] = []
        for path, leaf in self._observation.leaves:
            name = f"obs {path_name(path)}" if path else "obs"
            try:
                given.append((name, part_at(obs, path), leaf.shape))
            except (TypeError, KeyError, IndexError, AttributeError):
                raise ValueError(f"{name} is not there: {format_parts(self._observation)} is expected") from None
        given += [("memory", memory, (self.memory_size,))] if memory is not None else []
        given += [("noise", noise, (self.agent.distribution.noise_size,))] if noise is not None else []
        for name, tensor, shape in given:
            expected = f"a tensor of shape (B{''.join(f', {n}' for n in shape)}) is expected".replace("(B)", "(B,)")
            if not isinstance(tensor, Tensor):
                raise ValueError(f"{name} is of type {type(tensor).__name__}: {expected}")
            if tuple(tensor.shape[1:]) != shape or tensor.ndim == 0:
                raise ValueError(f"{name} has shape {tuple(tensor.shape)}: {expected}")
            if len(tensor) != len(given[0][1]):
                raise ValueError(f"{name} has {len(tensor)} rows, {given[0][0]} has {len(given[0][1])}: {expected}")

    def compute(
        self, parts: Sequence[Tensor], memory: Tensor | None = None, noise: Tensor | None = None
    ) -> tuple[list[Tensor], dict[str, Tensor]]:
        """Choose actions as `forward` does, for observations whose parts, `[B, ...]`, are in a list.

        Returns:
            The parts of the actions, and the other outputs.
        """
        agent = self.agent
        typed = [part.to(dtype) for part, (_, dtype) in zip(parts, self._leaves, strict=True)]
        features = agent.shared(agent.encoder.encode(typed, agent.dtype, agent.obs_moments))
        if memory is None:
            memory = features.new_zeros(features.shape[0], self.memory_size)
        features, memory = agent.remember(features, memory)
        params = agent.policy_params(features)
        distribution = agent.distribution
        chosen = distribution.mode(params) if noise is None else distribution.sample(params, noise)
        out = {"params": params}
        if agent.critic_encoder is None:
            out["value"] = agent.state_values(features)
        return self._converted(chosen), out | ({"memory": memory} if self.memory_size else {})

    def _converted(self, actions: Tensor) -> list[Tensor]:
        """Return the parts of actions, as environments take them."""
        if not self.agent.spec.action.parts:
            return [self._to_env[0](actions)]
        columns = actions.split([leaf.size for _, leaf in self._actions], dim=-1)
        return [
            convert((each if leaf.kind == "box" else each.long()).reshape(-1, *leaf.shape))
            for convert, each, (_, leaf) in zip(self._to_env, columns, self._actions, strict=True)
        ]


class _ToEnvironment(nn.Module):
    """The module that computes what `ActionConverter` does."""

    start: Tensor | None
    squashes: Tensor | None
    scale: Tensor | None
    offset: Tensor | None
    low: Tensor | None
    high: Tensor | None

    def __init__(self, space: SpaceSpec) -> None:
        super().__init__()
        converter = ActionConverter(space)
        self._dtype = getattr(torch, converter.dtype.name, torch.float64)
        scale, offset = converter.stretch or (None, None)
        low, high = converter.bounds or (None, None)
        arrays = {"start": converter.start, "squashes": converter.squashes, "scale": scale, "offset": offset}
        for name, array in (arrays | {"low": low, "high": high}).items():
            # a copy, for the arrays may be read-only
            self.register_buffer(name, None if array is None else torch.from_numpy(np.array(array)), persistent=False)

    def forward(self, actions: Tensor) -> Tensor:
        """Convert actions `[B, ...]`."""
        if self.start is not None:
            actions = actions + self.start
        actions = actions.to(self._dtype)
        if self.squashes is not None:
            actions = torch.where(self.squashes, actions.tanh(), actions)
        if self.scale is not None and self.offset is not None:
            actions = actions * self.scale + self.offset
        return actions if self.low is None else actions.clamp(self.low, self.high)

"""Functional environments: N copies as pure functions of tensors, and the driver that steps them."""

from __future__ import annotations

import inspect
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import gymnasium
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from fabric_ppo.envs.calls import call
from fabric_ppo.envs.contract import EnvSettings, PastEpisode
from fabric_ppo.envs.nested_actions import Unpacker
from fabric_ppo.envs.spaces import EnvSpec
from fabric_ppo.envs.tensor_contract import StepOutputs, TensorEnvs
from fabric_ppo.envs.tensor_rows import RowMaker
from fabric_ppo.envs.tensor_seeds import episode_seeds
from fabric_ppo.process.errors import ConfigError, EnvironmentFault, first_line

State = Any
"""Tensors `[B, ...]`: one, or a tuple, list or dictionary of them."""


class FunctionalEnv(ABC):
    """Copies of an environment that step together, as pure functions of tensors.

    Nothing is kept between calls: all that a copy is lies in its state, its seed and the number of
    its steps. Therefore a checkpoint can hold an episode, and a resumed run goes on exactly.

    Attributes:
        observation_space, action_space: Gymnasium's, of one copy; observations of a Dict are a
            dictionary of tensors.
        max_episode_steps: steps after which an episode is truncated; None for no limit.
    """

    observation_space: gymnasium.Space[Any]
    action_space: gymnasium.Space[Any]
    max_episode_steps: int | None = None

    @abstractmethod
    def initial(self, seeds: Tensor) -> tuple[State, Any]:
        """Return the states in which episodes begin, and their observations `[B, ...]`.

        Args:
            seeds: `[B]` int64; `tensor_seeds.seeded_uniforms` makes random numbers of them. Results
                are on their device.
        """

    @abstractmethod
    def transition(self, state: State, actions: Any, seeds: Tensor, step: Tensor) -> tuple[State, Any, Tensor, Tensor]:
        """Return next states, observations `[B, ...]`, rewards `[B]` and `terminated [B]` bool.

        Args:
            state: of each copy; not to be changed in place.
            actions: `[B, ...]`, as the action space has them; of a Dict a dictionary of tensors, of a
                Tuple a tuple.
            seeds: `[B]` int64, those of the episodes.
            step: `[B]` int64, steps of each episode before this one.
        """

    def render(self, state: State) -> NDArray[np.uint8]:
        """Return a picture of one copy, `[height, width, 3]`, from its `state [1, ...]`.

        Raises:
            NotImplementedError: it has none.
        """
        raise NotImplementedError


class FunctionalEnvs(TensorEnvs):
    """N copies of a functional environment, which start their own next episodes in the same step."""

    finals = "given"

    def __init__(
        self, env: FunctionalEnv, settings: EnvSettings, device: str = "cpu", spec: EnvSpec | None = None
    ) -> None:
        """Describe N copies on a device; without `spec`, the spaces are those of `env`.

        Raises:
            ConfigError: a space that no agent here can take, or a limit of steps that is none.
        """
        limit = env.max_episode_steps
        if limit is not None and (type(limit) is not int or limit < 1):
            raise ConfigError(
                f"--env-id {settings.env_id}: its max_episode_steps is {limit!r}; a whole number from 1 up, or None, "
                "is expected"
            )
        self.spec = spec or settings.spec_of(env)
        self.num_envs, self.first_env = settings.num_envs, settings.first_env
        self.device, self.info_keys = str(torch.zeros(0, device=device).device), settings.info_keys
        self._env, self._settings = env, settings
        self._limit, self._rows = limit, RowMaker(self.spec.observation)
        self._unpack = Unpacker(self.spec.action) if self.spec.action.parts else None
        self._ids = torch.arange(self.num_envs, device=device) + self.first_env
        self._steps = torch.zeros_like(self._ids)
        # as if every environment had ended an episode before its first one
        self._numbers = torch.full_like(self._ids, -1)
        self._seeds = torch.zeros_like(self._ids)
        self._state: State = None
        self._is_checked = False  # in the first step
        self._require_render()
        try:
            self._initial(self._seeds_of(self._ids, torch.zeros_like(self._ids)))
        except EnvironmentFault as fault:
            raise ConfigError(f"--env-id {first_line(fault)}") from fault

    def reset(self, obs: Tensor) -> None:
        """See `TensorEnvs.reset`."""
        self._start(self._seeds_of(self._ids, torch.zeros_like(self._ids)), obs)

    def begin(self, seeds: Sequence[int], obs: Tensor) -> None:
        """See `TensorEnvs.begin`."""
        self._start(torch.tensor(seeds, device=self.device), obs)

    def _start(self, seeds: Tensor, obs: Tensor) -> None:
        self._numbers, self._steps, self._seeds = torch.zeros_like(seeds), torch.zeros_like(seeds), seeds
        self._state, first = self._initial(seeds)
        obs.copy_(first)

    def _initial(self, seeds: Tensor) -> tuple[State, Tensor]:
        """Return `FunctionalEnv.initial`, checked; raise an EnvironmentFault if it fails."""
        state, obs = self._call("initial", 2, seeds)
        self._require_tensors("initial", state, len(seeds))
        return _ordered(state), self._read("initial", obs, len(seeds))

    @torch.no_grad()  # or a state would keep all steps before it
    def _call(self, name: str, size: int, *args: Any) -> Any:
        answer = call(self.spec.env_id, self._env, name, *args)
        if not isinstance(answer, tuple) or len(answer) != size:
            parts = "(state, observations, rewards, terminated)"
            raise self._fault(f"{name} returned no tuple {parts if size == 4 else '(state, observations)'}")
        return answer

    def _require_render(self) -> None:
        """Raise a ConfigError where `render` cannot be called with a state."""
        try:
            inspect.signature(self._env.render).bind(None)
        except TypeError as error:
            raise ConfigError(
                f"--env-id {self.spec.env_id}: its render cannot be called with a state ({error}); "
                "render(self, state) is expected"
            ) from None
        except ValueError:  # a function without a signature
            return

    def _read(self, by: str, obs: Any, count: int, **numbers: Any) -> Tensor:
        """Return the rows of observations; raise an EnvironmentFault unless these and `numbers [count]` fit."""
        try:
            rows = self._rows(obs, count)
        except ValueError as error:
            raise self._fault(f"{by} returned observations {error}") from None
        for what, each in ({"observations": rows} | numbers).items():
            shape = rows.shape if each is rows else (count,)
            if not isinstance(each, Tensor) or each.shape != shape or str(each.device) != self.device:
                given = f"of shape {tuple(each.shape)} on {each.device}" if isinstance(each, Tensor) else _kind_of(each)
                raise self._fault(f"{by} returned {what} {given}; a tensor {tuple(shape)} on {self.device} is expected")
        return rows

    def _require_tensors(self, by: str, state: State, count: int) -> None:
        """Raise an EnvironmentFault unless a state consists of tensors with a row for each copy."""
        for leaf in tree_flatten(state)[0]:
            if not isinstance(leaf, Tensor) or leaf.shape[:1] != (count,) or str(leaf.device) != self.device:
                given = f"a tensor {tuple(leaf.shape)} on {leaf.device}" if isinstance(leaf, Tensor) else _kind_of(leaf)
                expected = f"tensors of {count} rows on {self.device} are expected"
                raise self._fault(f"{by} returned a state with {given}; {expected}")

    def _require_like(self, state: State) -> None:
        """Raise an EnvironmentFault unless a state has the tensors of the one before, of the same types."""
        self._require_tensors("transition", state, self.num_envs)
        known, new = (_told(each) for each in (self._state, state))
        if known != new:
            raise self._fault(f"transition returned a state {new}; {known} is expected, as of initial")
        self._is_checked = True

    def _fault(self, what: str) -> EnvironmentFault:
        return EnvironmentFault(f"{self.spec.env_id}: {what}")

    def render(self) -> NDArray[np.uint8]:
        """See `TensorEnvs.render`."""
        return np.asarray(self._env.render(tree_map(lambda leaf: leaf[:1].cpu(), self._state)))

    def _seeds_of(self, ids: Tensor, numbers: Tensor) -> Tensor:
        return episode_seeds(self._settings.seed, ids, numbers, self._settings.total_envs)

    def step(self, actions: Tensor, outputs: StepOutputs) -> None:
        """See `TensorEnvs.step`."""
        theirs = actions if self._unpack is None else self._unpack.tensors(actions)
        answer = self._call("transition", 4, self._state, theirs, self._seeds, self._steps)
        state, obs, rewards, terminated = answer
        state = _ordered(state)
        rows = self._read("transition", obs, self.num_envs, rewards=rewards, terminated=terminated)
        if not self._is_checked:
            self._require_like(state)
        self._steps = self._steps + 1
        outputs.obs.copy_(rows)
        outputs.rewards.copy_(rewards)
        outputs.terminated.copy_(terminated)
        outputs.truncated.copy_(self._steps >= (self._limit or math.inf))
        outputs.valid.fill_(True)
        ended = outputs.terminated | outputs.truncated
        if outputs.obs.is_cpu:
            # there the answer is there already, and most copies go on
            self._state = self._begin_some(state, outputs, ended.nonzero().squeeze(-1))
        else:
            self._state = self._begin_where(state, outputs, ended)

    def _begin_some(self, state: State, outputs: StepOutputs, ended: Tensor) -> State:
        """Start the next episodes of the copies `ended [K]`; return the states of all."""
        if len(ended) == 0:
            return state
        numbers = self._numbers[ended] + 1
        seeds = self._seeds_of(self._ids[ended], numbers)
        begun, first = self._initial(seeds)
        outputs.final_obs[ended] = outputs.obs[ended]  # type: ignore[index]
        outputs.obs[ended] = first
        self._numbers[ended], self._steps[ended] = numbers, 0
        self._seeds = self._seeds.index_copy(0, ended, seeds)
        return tree_map(lambda old, new: old.index_copy(0, ended, new), state, begun)

    def _begin_where(self, state: State, outputs: StepOutputs, ended: Tensor) -> State:
        """Do as `_begin_some` for `ended [N]` bool, without waiting for the device: all begin, and some count."""
        numbers = self._numbers + ended
        seeds = self._seeds_of(self._ids, numbers)
        begun, first = self._initial(seeds)
        outputs.final_obs.copy_(outputs.obs)  # type: ignore[union-attr]
        outputs.obs.copy_(_where(ended, first, outputs.obs))
        self._numbers, self._seeds = numbers, seeds
        self._steps = self._steps.masked_fill(ended, 0)
        return tree_map(lambda old, new: _where(ended, new, old), state, begun)

    def carried(self) -> list[Tensor]:
        """See `TensorEnvs.carried`."""
        return [*tree_flatten(self._state)[0], self._steps, self._numbers, self._seeds]

    def carry(self, tensors: Sequence[Tensor]) -> None:
        """See `TensorEnvs.carry`."""
        *leaves, self._steps, self._numbers, self._seeds = tensors
        self._state = tree_unflatten(leaves, tree_flatten(self._state)[1])

    def states(self) -> list[bytes]:
        """See `VectorEnvs.states`."""
        leaves, _ = tree_flatten(self._state)
        rows = [leaf.reshape(self.num_envs, -1).contiguous().view(torch.uint8) for leaf in leaves]
        return [row.tobytes() for row in torch.cat(rows, 1).cpu().numpy()] if rows else []

    def rebuild(self, past: Sequence[PastEpisode], obs: Tensor, seconds: float = math.inf) -> list[str]:
        """See `TensorEnvs.rebuild`."""
        state, _ = self._initial(self._ids)
        leaves, shape = tree_flatten(state)
        sizes = [leaf[0].numel() * leaf.element_size() for leaf in leaves]
        fits = [len(episode.state) == sum(sizes) for episode in past]
        numbers = [episode.number + (not fit) for episode, fit in zip(past, fits, strict=True)]
        self._numbers = torch.tensor(numbers, device=self.device)
        self._seeds = self._seeds_of(self._ids, self._numbers)
        lengths = [episode.length if fit else 0 for episode, fit in zip(past, fits, strict=True)]
        self._steps = torch.tensor(lengths, device=self.device)
        begun, first = self._initial(self._seeds)
        kept = [episode.state if fit else bytes(sum(sizes)) for episode, fit in zip(past, fits, strict=True)]
        packed = np.frombuffer(bytearray(b"".join(kept)), np.uint8).reshape(self.num_envs, sum(sizes))
        parts = torch.from_numpy(packed).to(self.device).split(sizes, 1)
        restored = [
            part.contiguous().view(leaf.dtype).view(leaf.shape) for part, leaf in zip(parts, leaves, strict=True)
        ]
        fit, seen = torch.tensor(fits, device=self.device), torch.from_numpy(np.stack([each.obs for each in past]))
        self._state = tree_map(lambda new, old: _where(fit, old, new), begun, tree_unflatten(restored, shape))
        obs.copy_(_where(fit, seen.to(obs), first.to(obs)))
        return ["" if each else "its state is not that of this environment" for each in fits]

    @property
    def can_render(self) -> bool:
        """See `TensorEnvs.can_render`."""
        return type(self._env).render is not FunctionalEnv.render

    def close(self) -> None:
        """See `VectorEnvs.close`."""


def _kind_of(value: Any) -> str:
    """Return what is there instead of a tensor, in a few words."""
    return "None" if value is None else f"a {type(value).__name__}"


def _told(state: State) -> str:
    """Return a state's structure, with types and shapes."""
    if isinstance(state, dict):
        return "{" + ", ".join(f"{key}: {_told(each)}" for key, each in state.items()) + "}"
    if isinstance(state, (tuple, list)):
        inside = ", ".join(map(_told, state))
        return f"[{inside}]" if isinstance(state, list) else f"({inside})"
    return f"{str(state.dtype).removeprefix('torch.')}{list(state.shape)}"


def _ordered(state: State) -> State:
    """Return a state whose dictionaries have their keys in order, whatever order a function gives them."""
    if isinstance(state, dict):
        return {key: _ordered(state[key]) for key in sorted(state)}
    return (
        [*map(_ordered, state)]
        if type(state) is list
        else (tuple(map(_ordered, state)) if type(state) is tuple else state)
    )


def _where(condition: Tensor, ones: Tensor, others: Tensor) -> Tensor:
    """Return rows of `ones` where `condition [N]` is true, else of `others`, `[N, ...]`."""
    return ones.where(condition.view(-1, *[1] * (ones.ndim - 1)), others)

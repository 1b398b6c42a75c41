"""PettingZoo's parallel environments: games whose agents are rows, and share one policy."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any, NamedTuple

import gymnasium
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fabric_ppo.envs.calls import call, close
from fabric_ppo.envs.contract import Array, EnvSettings, PastEpisode
from fabric_ppo.envs.episode_info import Ending, EpisodeInfo
from fabric_ppo.envs.nested_actions import Unpacker
from fabric_ppo.envs.reading import read_flag, read_reward
from fabric_ppo.envs.spaces import EnvSpec, Packer, is_mask
from fabric_ppo.envs.tensor_contract import StepOutputs, TensorEnvs
from fabric_ppo.process.errors import ConfigError, EnvironmentFault, describe_error
from fabric_ppo.process.signals import pass_on_stop
from fabric_ppo.seeding import episode_seed

_MASK = "action_mask"


class ParallelGames(TensorEnvs):
    """Games that step in turn; environment `g * A + a` is agent `a` of the A possible ones in game `g`.

    An agent that has died, or not yet joined, has rows that are no transitions until the next game.
    All agents of a game start together; one that is still there when a game ends was truncated.
    """

    finals = "given"

    def __init__(
        self, first: Any, create: Callable[[], Any], settings: EnvSettings, spec: EnvSpec | None = None
    ) -> None:
        """Make the games.

        Args:
            first: the first one, a `pettingzoo.ParallelEnv`.
            create: makes another one.
            settings: how many agents there are in all.
            spec: the spaces of an agent; None: as the games have them.

        Raises:
            ConfigError: agents with different spaces, a space that no agent here can take, or a
                number of environments that is no multiple of the agents of a game.
        """
        name, agents = settings.env_id, list(first.possible_agents)
        if not agents:
            raise ConfigError(f"--env-id {name}: it has no possible_agents; at least one is expected")
        if settings.num_envs % len(agents):
            raise ConfigError(
                f"--num-envs {settings.num_envs}: a multiple of {len(agents)} is expected, the agents of {name}"
            )
        self.rows_per_game, self._settings = len(agents), settings
        self.num_envs, self.first_env, self.info_keys = settings.num_envs, settings.first_env, settings.info_keys
        self._adds_mask = False
        games = [first, *(create() for _ in range(settings.num_envs // len(agents) - 1))]
        spaces = _shared_spaces(first, agents, name)
        # some games have their masks in `info`
        if isinstance(spaces.action_space, gymnasium.spaces.Discrete) and _has_masks(first, name):
            self._adds_mask = True
            mask = gymnasium.spaces.Box(0, 1, (int(spaces.action_space.n),), np.int8)
            spaces.observation_space = gymnasium.spaces.Dict(observation=spaces.observation_space, action_mask=mask)
        self.spec = spec or settings.spec_of(spaces)
        self._read = _AgentReader(self.spec, self._adds_mask)
        self._games = [_Game(game, agents, self._read, settings) for game in games]
        self._numbers = [0] * len(games)
        self._over = np.zeros(self.num_envs, np.bool_)

    def _seed_of(self, game: int) -> int:
        first = self.first_env + game * self.rows_per_game
        return episode_seed(self._settings.seed, first, self._numbers[game], self._settings.total_envs)

    def _rows(self, game: int) -> slice:
        return slice(game * self.rows_per_game, (game + 1) * self.rows_per_game)

    def reset(self, obs: Tensor) -> None:
        """See `TensorEnvs.reset`."""
        self._numbers = [0] * len(self._games)
        for index, game in enumerate(self._games):
            game.reset(self._seed_of(index), obs.numpy()[self._rows(index)])

    def begin(self, seeds: Sequence[int], obs: Tensor) -> None:
        """See `TensorEnvs.begin`; the seed of a game is that of its first agent."""
        for index, game in enumerate(self._games):
            game.reset(seeds[index * self.rows_per_game], obs.numpy()[self._rows(index)])

    def step(self, actions: Tensor, outputs: StepOutputs) -> None:
        """See `TensorEnvs.step`."""
        columns = [each.numpy() for each in outputs if each is not None]
        chosen, endings = actions.numpy(), []
        for index, game in enumerate(self._games):
            rows = self._rows(index)
            own = _Rows(*(column[rows] for column in columns))
            endings += [Ending(rows.start + agent, readings) for agent, readings in game.step(chosen[rows], own)]
            self._over[rows] = game.is_over
            if game.is_over:
                self._numbers[index] += 1
                game.reset(self._seed_of(index), own.obs)
        self.endings = endings

    def over(self, outputs: StepOutputs) -> Tensor:
        """See `TensorEnvs.over`: whole games count."""
        return torch.from_numpy(self._over.copy())

    def render(self) -> NDArray[Any]:
        """See `TensorEnvs.render`."""
        picture = self._games[0].env.render()
        if picture is None:
            raise NotImplementedError
        return np.asarray(picture)

    def rebuild(self, past: Sequence[PastEpisode], obs: Tensor, seconds: float = math.inf) -> list[str]:
        """Start the next games; see `TensorEnvs.rebuild`."""
        for index, game in enumerate(self._games):
            rows = self._rows(index)
            self._numbers[index] = max(episode.number for episode in past[rows]) + 1
            game.reset(self._seed_of(index), obs.numpy()[rows])
        return ["a game of several agents cannot be brought back"] * self.num_envs

    def close(self) -> None:
        """See `VectorEnvs.close`."""
        games, self._games = self._games, []
        for game in games:
            close(game.env, self.spec.env_id)


class _AgentReader:
    """A reader of one agent's observations, as rows; of an agent that is not there it has blank ones."""

    def __init__(self, spec: EnvSpec, adds_mask: bool) -> None:
        self.spec, self._adds_mask, self._num_choices = spec, adds_mask, sum(spec.action.sizes)
        self._pack = Packer(spec.observation)
        space = spec.observation
        self.blank = np.zeros(space.shape, space.dtype)
        # an agent that is not there acts, too, though it does not count: it needs something to choose
        start = 0
        for path, leaf in space.parts:
            size = leaf.size * np.dtype(leaf.dtype).itemsize
            if is_mask(path, spec.action):
                self.blank[start : start + size] = np.ones(leaf.shape, leaf.dtype).view(np.uint8).reshape(-1)
            start += size

    def __call__(self, obs: Any, info: Any, goes_on: bool) -> Array:
        """Return an observation as its row; raise a ValueError if it is not one.

        A mask may be missing where an agent does not go on.
        """
        if self._adds_mask:
            obs = {"observation": obs, _MASK: info[_MASK] if _MASK in info or goes_on else np.ones(self._num_choices)}
        row: Array = self._pack(obs)
        return row


class _Rows(NamedTuple):
    """Rows of one game in StepOutputs, as arrays."""

    obs: Array
    rewards: Array
    terminated: Array
    truncated: Array
    valid: Array
    final_obs: Array


class _Game:
    """One game.

    Attributes:
        env: the game itself.
        is_over: true once no agent is left, until `reset`.
    """

    def __init__(self, env: Any, agents: list[Any], read: _AgentReader, settings: EnvSettings) -> None:
        self.env, self._agents, self._read, self._name = env, agents, read, settings.env_id
        self._infos = [EpisodeInfo(settings.info_keys) for _ in agents]
        self._unpack = Unpacker(read.spec.action) if read.spec.action.parts else None
        self.is_over = False
        self._seed = self._steps = 0

    def reset(self, seed: int, obs: Array) -> None:
        """Start a game; write the observations of its agents into `obs [A, ...]`."""
        self._seed, self._steps, self.is_over = seed, 0, False
        seen, infos = self._call("reset", 2, seed=seed)
        for each in self._infos:
            each.clear()
        for index, agent in enumerate(self._agents):
            is_there = agent in self.env.agents or agent in seen
            obs[index] = self._row(seen, infos, agent, "reset") if is_there else self._read.blank
        self._last = obs.copy()

    def step(self, actions: Array, out: _Rows) -> list[tuple[int, Any]]:
        """Take a step; return the readings of the agents whose part has ended."""
        self._steps += 1
        acting = {agent: index for index, agent in enumerate(self._agents) if agent in self.env.agents}
        chosen = {agent: self._action(actions[index]) for agent, index in acting.items()}
        seen, rewards, terminated, truncated, infos = self._call("step", 5, chosen)
        if unknown := [agent for agent in self.env.agents if agent not in self._agents]:
            raise self._fault(f"step added the agent {unknown[0]}, which is not among `possible_agents`")
        self.is_over = not self.env.agents
        for column in (out.rewards, out.terminated, out.truncated, out.valid):
            column[...] = 0
        readings = []
        for index, agent in enumerate(self._agents):
            is_there = agent in self.env.agents
            # without a final observation, the one before stands for it
            row = self._last[index]
            if is_there or agent in seen:
                row = self._row(seen, infos, agent, "step", is_there)
            out.obs[index] = row if is_there else self._read.blank
            if agent not in acting:
                continue
            out.valid[index] = True
            columns = {"reward": rewards, "terminated": terminated, "truncated": truncated}
            if missing := [what for what, column in columns.items() if agent not in column]:
                raise self._fault(f"step returned no {missing[0]} for {agent}, which has acted")
            try:
                out.rewards[index] = read_reward(rewards[agent])
                out.terminated[index] = read_flag(terminated[agent], "terminated")
                out.truncated[index] = read_flag(truncated[agent], "truncated")
            except (ValueError, TypeError) as error:
                raise self._fault(f"step returned for {agent} {describe_error(error)}") from None
            info = infos.get(agent, {}) if isinstance(infos, Mapping) else {}
            self._infos[index].add(info)
            if not is_there:
                # an agent that leaves without a flag, as all do when a game is broken off
                out.truncated[index] |= not out.terminated[index]
                out.final_obs[index] = row
                if (found := self._infos[index].ending(info)) is not None:
                    readings.append((index, found))
            elif out.terminated[index] or out.truncated[index]:
                raise self._fault(f"step ended the part of {agent}, which is still among `agents`")
        self._last = out.obs.copy()
        return readings

    def _action(self, action: Array) -> Any:
        """Return one agent's action as the game takes it."""
        if self._unpack is not None:
            return self._unpack.one(action)
        return action if action.ndim else int(action)

    def _row(self, seen: Any, infos: Any, agent: Any, by: str, goes_on: bool = True) -> Array:
        if agent not in seen:
            raise self._fault(f"{by} returned no observation for {agent}, which is among `agents`")
        try:
            return self._read(seen[agent], infos.get(agent, {}) if isinstance(infos, Mapping) else {}, goes_on)
        except (ValueError, KeyError) as error:
            raise self._fault(f"{by} returned for {agent} {describe_error(error)}") from None

    def _call(self, method: str, size: int, *args: Any, **options: Any) -> Any:
        answer = call(self._place, self.env, method, *args, **options)
        # but for infos, which are looked into where they are some
        if not (isinstance(answer, tuple) and len(answer) == size and all(isinstance(x, Mapping) for x in answer[:-1])):
            raise self._fault(f"{method} returned no tuple of {size} dictionaries by agent")
        return answer

    def _fault(self, what: str) -> EnvironmentFault:
        return EnvironmentFault(f"{self._place}: {what}")

    @property
    def _place(self) -> str:
        return f"{self._name}: game of seed {self._seed}, step {self._steps}"


def _has_masks(env: Any, name: str) -> bool:
    """Return True if a game gives action masks in `info`; raise a ConfigError if it cannot be reset."""
    try:
        _, infos = env.reset(seed=0)
        return any(_MASK in info for info in infos.values())
    except BaseException as error:
        pass_on_stop(error)
        expected = "reset(seed=...) has to return observations and infos, dictionaries by agent"
        raise ConfigError(f"--env-id {name}: {describe_error(error)}; {expected}".replace("\n", " ")) from error


def _shared_spaces(env: Any, agents: list[Any], name: str) -> SimpleNamespace:
    """Return the spaces of all agents; raise a ConfigError if they differ."""
    first = agents[0]
    spaces = {what: getattr(env, what)(first) for what in ("observation_space", "action_space")}
    for agent in agents[1:]:
        for what, space in spaces.items():
            if (other := getattr(env, what)(agent)) != space:
                raise ConfigError(
                    f"--env-id {name}: the {what} of {agent} is {other}, and that of {first} {space}; "
                    "one policy acts for all, so they must agree (SuperSuit's wrappers can pad them)"
                )
    return SimpleNamespace(**spaces)

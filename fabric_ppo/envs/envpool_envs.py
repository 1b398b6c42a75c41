"""EnvPool's environments: compiled, and stepped by threads of this process."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from fabric_ppo.envs.atari import envpool_options
from fabric_ppo.envs.contract import Array, ArrayEnvs, EnvSettings, FinalObs, PastEpisode
from fabric_ppo.envs.episode_info import ABSENT, PoolInfo, find_in
from fabric_ppo.envs.gymnasium_env import make_gymnasium_env
from fabric_ppo.envs.gymnasium_spaces import env_spec
from fabric_ppo.envs.ids import envpool_id
from fabric_ppo.envs.reading import all_finite, find_not_finite, in_entry
from fabric_ppo.envs.spaces import EnvSpec, SpaceSpec
from fabric_ppo.process.errors import ConfigError, EnvironmentFault, first_line
from fabric_ppo.seeding import episode_seed

_OUTSIDE_INFO = ("obs", "reward", "done", "trunc", "discount", "step_type")
"""Arrays that EnvPool does not have in `info`."""


class EnvPoolEnvs(ArrayEnvs):
    """Environments that EnvPool steps, all in one call.

    The call that follows the end of an episode starts the next one: see `ArrayEnvs.step` about
    such rows. An environment is seeded once, when it is made, and its later episodes go on from
    there. Where an episode ends by itself in the very step of its time limit, EnvPool reports
    truncated only.
    """

    def __init__(self, settings: EnvSettings) -> None:
        """Make the environments.

        Raises:
            ConfigError: EnvPool or Gymnasium, in whose environment of that id the agent is tested,
                cannot make it, or their spaces differ or are not supported.
        """
        twin = make_gymnasium_env(settings.env_id, settings.env_wrapper)
        self.spec = settings.spec_of(twin)
        self._options = envpool_options(twin) if self.spec.is_atari else {}
        if self.spec.observation.parts:
            twin.close()
            raise ConfigError(f"--env-id {settings.env_id}: nested observations need --env-backend sync or async")
        twin.close()
        self.num_envs, self.first_env, self.info_keys = settings.num_envs, settings.first_env, settings.info_keys
        self._settings = settings
        self._pool, spec = _make_pool(settings, [0] * settings.num_envs, self._options)
        self._names = [key.key for key in self.info_keys] + ["lives"] * self.spec.is_atari
        self._step: Any = _step_of(self._pool, self._names)
        self._info = PoolInfo(self.info_keys, self.num_envs)
        _require_same_spaces(spec, self.spec)
        self._checks_obs = np.dtype(self.spec.observation.dtype).kind == "f"
        self._ended = np.zeros(settings.num_envs, np.bool_)
        if self.spec.is_atari:
            self.lost_life, self._lives = self._ended.copy(), np.zeros(settings.num_envs, np.int32)

    def reset(self, obs: Array) -> None:
        """See `ArrayEnvs.reset`."""
        obs[:], info = self._pool.reset()
        if self._checks_obs and not all_finite(obs):
            raise self._fault("observation", obs)
        self._ended[:] = False
        if self.lost_life is not None:
            self._lives[:] = info["lives"]

    def step(
        self, actions: Array, obs: Array, rewards: Array, terminated: Array, truncated: Array, valid: Array
    ) -> list[FinalObs]:
        """See `ArrayEnvs.step`."""
        # an environment whose episode ended in the last step ignores its action and resets
        np.logical_not(self._ended, out=valid)
        obs[:], rewards[:], terminated[:], truncated[:], *columns = self._step(actions)
        if self.lost_life is not None:
            lives = columns.pop()
            np.less(lives, self._lives, out=self.lost_life)
            self._lives[:] = lives
        np.logical_or(terminated, truncated, out=self._ended)
        if columns:
            self._read_info(columns, valid)
        if not all_finite(rewards):
            raise self._fault("reward", rewards)
        if self._checks_obs and not all_finite(obs):
            raise self._fault("observation", obs)
        return []

    def _read_info(self, columns: Sequence[Any], valid: Array) -> None:
        """Read the `info` of a step, an array for each key."""
        if self._info.adds:
            self._info.add(columns, valid)
        self.endings = self._info.endings(columns, self._ended) if self._ended.any() else ()

    def rebuild(self, past: Sequence[PastEpisode], obs: Array, seconds: float = math.inf) -> list[str]:
        """Start new episodes, with seeds of their own; see `ArrayEnvs.rebuild`."""
        self._pool, _ = _make_pool(self._settings, [episode.number + 1 for episode in past], self._options)
        self._step = _step_of(self._pool, self._names)
        self._info.clear()
        self.reset(obs)
        return ["EnvPool cannot bring an episode back"] * self.num_envs

    def _fault(self, what: str, values: Array) -> EnvironmentFault:
        """Return a fault that names the first environment whose row of `values` is not finite."""
        index, *entry = find_not_finite(values)
        value = f"{values[(index, *entry)]!s}{in_entry(tuple(entry))}"
        place = f"{self._settings.env_id} environment {self.first_env + index}"
        return EnvironmentFault(f"{place}: EnvPool returned {what} {value}, which is not finite as float32")

    def close(self) -> None:
        """See `VectorEnvs.close`."""
        # EnvPool's threads end with the object; its own `close` leaves them running
        self._pool = self._step = None


def _make_pool(settings: EnvSettings, episodes: Sequence[int], options: dict[str, Any]) -> tuple[Any, EnvSpec]:
    """Make EnvPool's environments, each seeded for the given one of its episodes; describe them.

    Raises:
        ConfigError: EnvPool cannot make them.
    """
    import envpool

    seeds = [
        episode_seed(settings.seed, settings.first_env + index, episode, settings.total_envs)
        for index, episode in enumerate(episodes)
    ]
    try:
        with warnings.catch_warnings():
            # Gymnasium's, about bounds that EnvPool gives with too many digits
            warnings.simplefilter("ignore")
            pool: Any = envpool.make_gymnasium(
                envpool_id(settings.env_id, settings.env_wrapper),
                num_envs=settings.num_envs,
                num_threads=min(settings.num_threads, settings.num_envs),
                seed=seeds,
                **options,
            )
            spaces = pool.observation_space, pool.action_space
    except Exception as error:
        reason = first_line(error)
        raise ConfigError(f"--env-id {settings.env_id}: EnvPool cannot make it ({reason})") from error
    return pool, env_spec(settings.env_id, *spaces, settings.action_bounds, settings.env_wrapper)


def _step_of(pool: Any, names: Sequence[str] = ()) -> Callable[[Array], tuple[Any, ...]]:
    """Return a function that steps a pool.

    Its arguments are the actions; it returns observations, rewards, terminated, truncated, and what
    is in `info` by each of `names`, None where that is missing; nothing where all are. EnvPool's
    own `step` takes as long to sort its arrays into dictionaries as some dozen CartPoles take to
    step, so its compiled part is called instead, where it takes and gives what this is written for.
    """
    takes, gives = list(getattr(pool, "_action_keys", [])), list(getattr(pool, "_state_keys", []))
    if takes != ["env_id", "players.env_id", "action"] or not {"obs", "reward", "done", "trunc"} <= set(gives):
        return lambda actions: _by_name(pool.step(actions), names)
    ids, dtype = pool.all_env_ids, pool.spec.action_array_spec["action"].dtype
    at_obs, at_reward, at_done, at_trunc = (gives.index(name) for name in ("obs", "reward", "done", "trunc"))
    at_info = [_place(name, gives) for name in names]
    at_info = [] if set(at_info) == {None} else at_info

    def step(actions: Array) -> tuple[Any, ...]:
        pool._send([ids, ids, np.ascontiguousarray(actions, dtype)])
        state = pool._recv()
        truncated = state[at_trunc]
        columns = [None if index is None else state[index] for index in at_info]
        # EnvPool's `done` covers both ways in which an episode can end
        return state[at_obs], state[at_reward], state[at_done] & ~truncated, truncated, *columns

    return step


def _place(name: str, gives: list[str]) -> int | None:
    """Return the place of a key of `info` among the arrays that EnvPool's compiled part gives."""
    given = [each for each in (f"info:{name}", name) if each in gives and each not in _OUTSIDE_INFO]
    return gives.index(given[0]) if given else None


def _by_name(answer: tuple[Any, ...], names: Sequence[str]) -> tuple[Any, ...]:
    """Return what EnvPool's own `step` does, with what is in its `info` by each of `names`."""
    *arrays, info = answer
    found = [find_in(info, name) for name in names]
    columns = [None if column is ABSENT else column for column in found]
    columns = [] if all(column is None for column in columns) else columns
    return *arrays, *columns


def _require_same_spaces(ours: EnvSpec, twins: EnvSpec) -> None:
    """Compare EnvPool's spaces with those of Gymnasium's environment.

    Raises:
        ConfigError: an element of one does not fit into the other.
    """
    for what in ("observation", "action"):
        one, other = getattr(ours, what), getattr(twins, what)
        if what == "observation":  # their bounds only scale what the agent sees, by the twin's
            one, other = (replace(space, low=(), high=()) for space in (one, other))
        if _essence(one) != _essence(other):
            raise ConfigError(
                f"--env-id {ours.env_id}: EnvPool's {what}s ({_described(one)}) are not those of Gymnasium "
                f"({_described(other)}), which the agent is tested in; --env-backend sync or async is expected"
            )


def _essence(space: SpaceSpec) -> tuple[SpaceSpec, bytes]:
    """Return all that must be equal for elements of two spaces to be copied into one another.

    The width of their numbers does not count: NumPy converts as it copies.
    """
    # None becomes nan, -0.0 becomes 0.0
    bounds = np.array(space.low + space.high, np.float32) + 0.0
    return replace(space, dtype=np.dtype(space.dtype).kind, low=(), high=()), bounds.tobytes()


def _described(space: SpaceSpec) -> str:
    shape = "x".join(map(str, space.shape)) or "scalar"
    return f"{space.kind} {shape} {space.dtype}" + (f" of {space.sizes}" if space.sizes else "")

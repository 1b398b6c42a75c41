"""Demonstrations from a local dataset of Minari (https://minari.farama.org), `minari:ID`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fabric_ppo.envs.gymnasium_spaces import env_spec
from fabric_ppo.envs.space_text import format_space
from fabric_ppo.envs.spaces import EnvSpec, KeyPath, SpaceSpec, part_at
from fabric_ppo.process.errors import USER_ERRORS, ConfigError, first_line
from fabric_ppo.process.extras import install
from fabric_ppo.rollouts.demonstrations import Demonstrations, checked_actions, packed

PREFIX = "minari:"
"""Beginning of the name of a dataset."""


class MinariDataset:
    """A dataset of Minari on this machine.

    Attributes:
        env_id: id of the environment in which it was played; empty if the dataset does not name it.
    """

    def __init__(self, name: str) -> None:
        """Open the dataset `minari:ID`.

        Raises:
            ConfigError: Minari is not installed, or there is no such dataset that it can read.
        """
        self.name = name
        try:
            import minari
        except ImportError as error:
            raise ConfigError(f"{name}: {install('minari')} is needed ({first_line(error)})") from None
        try:
            self._data: Any = minari.load_dataset(name.removeprefix(PREFIX))
        except FileNotFoundError:
            how = f"minari download {name.removeprefix(PREFIX)} brings one of Minari's"
            raise ConfigError(f"{name}: there is no such dataset on this machine; {how}") from None
        except USER_ERRORS as error:  # a damaged one, or a package for its format is missing
            raise ConfigError(
                f"{name}: cannot be read ({first_line(error)}); a dataset of Minari is expected"
            ) from None
        spec = self._data.env_spec
        self.env_id: str = "" if spec is None else spec.id

    def require_spaces(self, spec: EnvSpec, obs_keys: str) -> None:
        """Check that the dataset has the spaces of an environment.

        Args:
            spec: the environment's.
            obs_keys: parts of its observations that are taken, as in `env_spec`.

        Raises:
            ConfigError: it has other spaces; the error names both.
        """
        theirs = env_spec(self.name, self._data.observation_space, self._data.action_space, spec.action.fit, obs_keys)
        for what in ("observation", "action"):
            its, own = (getattr(each, what) for each in (theirs, spec))
            # in any order: Minari sorts the keys of a Dict
            if dict(its.leaves) != dict(own.leaves):
                texts = [format_space(its), format_space(own)]
                texts = texts if texts[0] != texts[1] else [str(its), str(own)]
                raise ConfigError(f"{self.name}: its {what}s are {texts[0]}, and those of {spec.env_id} {texts[1]}")

    def read(self, spec: EnvSpec) -> Demonstrations:
        """Read all episodes; one that neither terminated nor was truncated counts as truncated.

        Raises:
            ConfigError: an episode cannot be read, or its values are not in the spaces.
        """
        try:
            episodes = list(self._data.iterate_episodes())
            found = _demonstrations(spec, episodes)
            found.require_whole_episodes()
        except USER_ERRORS as error:  # of files of somebody else's
            raise ConfigError(f"{self.name}: {first_line(error)}") from None
        return found


def _demonstrations(spec: EnvSpec, episodes: Iterable[Any]) -> Demonstrations:
    """Return Minari's episodes, which have T transitions and T + 1 observations each."""
    episodes = [each for each in episodes if len(each.rewards)]
    if not episodes:
        raise ValueError("no transition; those of at least one episode are expected")
    lengths = [len(each.rewards) for each in episodes]
    columns = _columns(spec.observation, "observations", episodes, [length + 1 for length in lengths])
    taken = _columns(spec.action, "actions", episodes, lengths)
    starts, last = (np.zeros(sum(lengths), np.bool_) for _ in range(2))
    last[np.cumsum(lengths) - 1] = True
    starts[0], starts[1:] = True, last[:-1]
    terminated, truncated = (
        np.concatenate([getattr(each, name) for each in episodes]).astype(np.bool_)
        for name in ("terminations", "truncations")
    )
    return Demonstrations(
        spec,
        obs=packed(
            spec.observation, {path: np.concatenate([part[:-1] for part in parts]) for path, parts in columns.items()}
        ),
        actions=checked_actions(spec.action, {path: np.concatenate(parts) for path, parts in taken.items()}),
        rewards=np.concatenate([each.rewards for each in episodes]).astype(np.float64),
        terminated=terminated,
        truncated=truncated | (last & ~terminated),
        episode_starts=starts,
        final_obs=packed(
            spec.observation, {path: np.stack([part[-1] for part in parts]) for path, parts in columns.items()}
        ),
    )


def _columns(
    space: SpaceSpec, name: str, episodes: Sequence[Any], lengths: Sequence[int]
) -> dict[KeyPath, list[NDArray[Any]]]:
    """Return the arrays of each episode for the path of each leaf.

    Raises:
        ValueError: an array does not have the length of its episode.
    """
    columns = {path: [np.asarray(part_at(getattr(each, name), path)) for each in episodes] for path, _ in space.leaves}
    for each, expected, *parts in zip(episodes, lengths, *columns.values(), strict=True):
        for part in parts:
            if len(part) != expected:
                what = f"{len(part)} {name} in an episode of {len(each.rewards)} steps"
                raise ValueError(f"{what}; {expected} are expected")
    return columns

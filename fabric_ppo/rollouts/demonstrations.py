"""Demonstrations: transitions of whole recorded episodes, and their file.

The file is NumPy's `.npz` without pickled objects. Its arrays have a row for each of S transitions,
one episode after the other, or for each of E episodes:

    env_spec              JSON, of which `EnvSpec.from_json` makes the environment's id and spaces
    observations          [S, ...], as an agent sees them, with --obs-keys and --frame-stack
    actions               [S, ...], as the environment got them: within their bounds
    rewards               [S] float64, as the environment gave them
    terminated, truncated [S] bool; in the last row of an episode one is true, in no other row
    episode_starts        [S] bool, true in the first row of an episode
    final_observations    [E, ...], those that followed the last step of each episode

Of a nested space each part is an array of its own: `observations.image`, `actions.arm.0`.
"""

from __future__ import annotations

import io
import sys
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fabric_ppo.envs.actions import is_outside
from fabric_ppo.envs.nested_actions import Unpacker, pack_parts
from fabric_ppo.envs.reading import LARGEST, shorten
from fabric_ppo.envs.spaces import EnvSpec, KeyPath, SpaceSpec, path_name, reader_of
from fabric_ppo.process.console import print_line
from fabric_ppo.process.errors import ConfigError, first_line
from fabric_ppo.process.files import write_atomically

Array = NDArray[Any]


@dataclass(frozen=True)
class Demonstrations:
    """Transitions of E whole episodes, S in all; see the module for the arrays.

    Attributes:
        spec: the environment.
        obs, actions, final_obs: `[S, ...]`, `[S, ...]` and `[E, ...]`; of a nested space rows of
            bytes (`Packer`, `pack_parts`).
        rewards, terminated, truncated, episode_starts: `[S]`.
    """

    spec: EnvSpec
    obs: Array
    actions: Array
    rewards: Array
    terminated: Array
    truncated: Array
    episode_starts: Array
    final_obs: Array

    @property
    def num_episodes(self) -> int:
        """Number of episodes, E."""
        return len(self.final_obs)

    def require_whole_episodes(self) -> None:
        """Check that rewards are finite, and that the flags cut the rows into whole episodes.

        Raises:
            ValueError: they do not; names the first row that is wrong.
        """
        if not len(self.rewards):
            raise ValueError("no transition; those of at least one episode are expected")
        if (wrong := _first(~(np.abs(self.rewards) <= LARGEST))) is not None:
            raise ValueError(f"rewards {self.rewards[wrong]} in row {wrong}; a finite number is expected")
        if not self.episode_starts[0]:
            raise ValueError("episode_starts False in row 0; the first row begins an episode")
        is_last = np.append(self.episode_starts[1:], True)
        if (wrong := _first((self.terminated | self.truncated) != is_last)) is not None:
            what = "is the last" if is_last[wrong] else "is not the last"
            expected = "terminated or truncated is expected there" if is_last[wrong] else "neither"
            found = f"terminated {self.terminated[wrong]} and truncated {self.truncated[wrong]}"
            raise ValueError(f"{found} in row {wrong}, which {what} of its episode: {expected}")
        if (episodes := int(is_last.sum())) != len(self.final_obs):
            raise ValueError(f"final_observations of {len(self.final_obs)} episodes, and episode_starts of {episodes}")


def _first(where: Array) -> int | None:
    """Return the number of the first true row; None for none."""
    return int(where.argmax()) if where.any() else None


def joined(demonstrations: list[Demonstrations]) -> Demonstrations:
    """Return the episodes of all, in their order; the spec is that of the first."""
    names = [name for name in Demonstrations.__dataclass_fields__ if name != "spec"]
    columns = {name: np.concatenate([getattr(each, name) for each in demonstrations]) for name in names}
    return Demonstrations(demonstrations[0].spec, **columns)


def packed(space: SpaceSpec, columns: Mapping[KeyPath, Any]) -> Array:
    """Return observations as rows: of a nested space their parts' bytes, one after the other.

    Args:
        space: of the observations.
        columns: an array `[B, *shape]` for the path of each leaf.

    Raises:
        ValueError: a part has another shape, or numbers that its space does not have.
    """
    arrays: dict[str, Array] = {}
    for path, leaf in space.leaves:
        reader = reader_of(leaf, path_name(path))
        array = reader.array(columns[path])
        name = f"observations{_dotted(path)}"
        if array.ndim != len(leaf.shape) + 1 or array.shape[1:] != leaf.shape:
            raise ValueError(f"{name} of shape {array.shape}; {_batch(leaf.shape)} is expected")
        reader.require_valid(array)
        arrays[name] = array
    return _rows(space, arrays)


def checked_actions(space: SpaceSpec, columns: Mapping[KeyPath, Any]) -> Array:
    """Return actions as rows, likewise, in the dtypes that the environment takes.

    Raises:
        ValueError: a part has another shape, or an action is none of the space's.
    """
    arrays: dict[str, Array] = {}
    for path, leaf in space.leaves:
        array, name = np.asarray(columns[path]), f"actions{_dotted(path)}"
        if array.dtype.kind not in "biuf":
            raise ValueError(f"{name} of dtype {array.dtype}; numbers of dtype {leaf.dtype} are expected")
        if array.ndim == 0 or array.shape[1:] != leaf.shape:
            raise ValueError(f"{name} of shape {array.shape}; {_batch(leaf.shape)} is expected")
        if (wrong := _first(is_outside(leaf, array))) is not None:
            found = shorten(str(array[wrong]))
            raise ValueError(f"{name} {found} in row {wrong}; one within the bounds of the action space is expected")
        arrays[name] = array.astype(leaf.dtype, copy=False)
    return _rows(space, arrays)


def _rows(space: SpaceSpec, arrays: Mapping[str, Array]) -> Array:
    """Return the leaves' arrays `[B, *shape]` as rows; raise a ValueError if B differs."""
    _require_same_length(arrays)
    parts = list(arrays.values())
    return pack_parts(parts) if space.parts else parts[0]


def _require_same_length(arrays: Mapping[str, Array]) -> None:
    """Raise a ValueError that names two arrays with different numbers of rows, if there are such."""
    first, *others = arrays
    for name in others:
        if len(arrays[name]) != len(arrays[first]):
            raise ValueError(
                f"{name} of {len(arrays[name])} rows, and {first} of {len(arrays[first])}; as many are expected"
            )


def unpacked(space: SpaceSpec, rows: Array) -> dict[KeyPath, Array]:
    """Return an array `[B, *shape]` for the path of each leaf; the inverse of `packed`."""
    parts = Unpacker(space).parts(rows) if space.parts else [rows]
    return dict(zip([path for path, _ in space.leaves], parts, strict=True))


def _batch(shape: tuple[int, ...]) -> str:
    return f"(B, {', '.join(map(str, shape))})" if shape else "(B,)"


def _dotted(path: KeyPath) -> str:
    return f".{path_name(path)}" if path else ""


class EpisodeLog:
    """Record of episodes in play, from which their file is written.

    Each episode in play has a number of its own, its `place`. The file has the episodes in the order
    of these numbers.
    """

    def __init__(self, spec: EnvSpec) -> None:
        """Start without episodes, of the environment `spec`.

        Raises:
            ConfigError: two parts of its observations, or of its actions, have one name.
        """
        self._spec = spec
        for what in ("observation", "action"):
            names = [path_name(path) for path, _ in getattr(spec, what).leaves]
            if len(set(names)) < len(names):
                raise ConfigError(f"{spec.env_id}: parts of its {what}s share a name; other keys are expected")
        self._open: dict[int, list[tuple[Any, Any, float, bool, bool]]] = {}
        self._ended: list[tuple[int, list[tuple[Any, Any, float, bool, bool]], Any]] = []

    def add(
        self, place: int, obs: Any, action: Any, reward: float, terminated: bool, truncated: bool, next_obs: Any
    ) -> None:
        """Add a step; none of the arrays may change afterwards.

        Args:
            place: place of the episode.
            obs, next_obs: before and after the step, packed; `next_obs` is kept if it is final.
            action: as the environment got it, packed.
            reward, terminated, truncated: as the environment returned them.
        """
        self._open.setdefault(place, []).append((obs, action, reward, terminated, truncated))
        if terminated or truncated:
            self._ended.append((place, self._open.pop(place), next_obs))

    def cut_off(self, place: int, obs: Any) -> None:
        """Truncate the episode at `place`, if there is one, with the final observation `obs`."""
        if place in self._open:
            before, action, reward, _, _ = self._open[place].pop()
            self.add(place, before, action, reward, False, True, obs)

    def demonstrations(self) -> Demonstrations:
        """Return the episodes that have ended."""
        ended = sorted(self._ended, key=lambda each: each[0])
        obs, actions, rewards, terminated, truncated = zip(
            *(step for _, steps, _ in ended for step in steps), strict=True
        )
        starts = [index == 0 for _, steps, _ in ended for index in range(len(steps))]
        space, action = self._spec.observation, self._spec.action
        return Demonstrations(
            spec=self._spec,
            obs=np.array(obs, space.dtype),
            actions=np.array(actions, action.dtype),
            rewards=np.array(rewards, np.float64),
            terminated=np.array(terminated, np.bool_),
            truncated=np.array(truncated, np.bool_),
            episode_starts=np.array(starts, np.bool_),
            final_obs=np.array([final for _, _, final in ended], space.dtype),
        )

    def write(self, path: Path) -> str:
        """Write the file; return the reason if that fails, after a line on stderr, else empty text."""
        try:
            write_atomically(path, to_bytes(self.demonstrations()))
        except OSError as error:
            unwritten = f"{path} ({error.strerror})"
            print_line(f"warning: {unwritten} could not be written", sys.stderr)
            return unwritten
        return ""


def require_record_path(of: str, path: Path) -> None:
    """Raise a ConfigError if demonstrations cannot be written to `path`, which `of` names."""
    if path.suffix != ".npz":
        raise ConfigError(f"{of} {path}: a name that ends in .npz is expected")
    if path.is_dir() or not path.parent.is_dir():
        raise ConfigError(f"{of} {path}: a file in an existing folder is expected")


def to_bytes(demonstrations: Demonstrations) -> bytes:
    """Return the content of a file; see the module."""
    spec = demonstrations.spec
    arrays: dict[str, Array] = {"env_spec": np.array(spec.to_json())}
    for name, space, rows in (
        ("observations", spec.observation, demonstrations.obs),
        ("final_observations", spec.observation, demonstrations.final_obs),
        ("actions", spec.action, demonstrations.actions),
    ):
        arrays |= {f"{name}{_dotted(path)}": column for path, column in unpacked(space, rows).items()}
    for name in ("rewards", "terminated", "truncated", "episode_starts"):
        arrays[name] = getattr(demonstrations, name)
    content = io.BytesIO()
    np.savez_compressed(content, allow_pickle=False, **arrays)
    return content.getvalue()


def read_demonstrations(path: Path) -> Demonstrations:
    """Read a file, and check its contents.

    Raises:
        ConfigError: it is missing or damaged, lacks an array, or has one that does not fit.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except FileNotFoundError:
        raise ConfigError(f"{path}: there is no such file; evaluate RUN_DIR --record FILE writes one") from None
    except Exception as error:  # zipfile, zlib and NumPy raise many types for a damaged file
        # what is no archive at all NumPy takes for a pickled object, and says how to load that
        reason = first_line(error) if zipfile.is_zipfile(path) else "no archive of NumPy"
        raise ConfigError(f"{path}: cannot be read ({reason}); a file of --record is expected") from None
    try:
        return _from_arrays(arrays)
    except KeyError as error:
        raise ConfigError(f"{path}: it has no array {error.args[0]}; a file of --record is expected") from None
    except ValueError as error:
        raise ConfigError(f"{path}: {error}") from None


def _from_arrays(arrays: Mapping[str, Array]) -> Demonstrations:
    """Return the demonstrations in a file's arrays.

    Raises:
        KeyError: an array is missing.
        ValueError: an array does not fit; the error names it.
    """
    try:
        spec = EnvSpec.from_json(str(arrays["env_spec"]))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        if "env_spec" not in arrays:
            raise
        raise ValueError(f"env_spec is no description of an environment ({first_line(error)})") from None
    obs, final_obs = (
        packed(spec.observation, _leaves(arrays, name, spec.observation))
        for name in ("observations", "final_observations")
    )
    actions = checked_actions(spec.action, _leaves(arrays, "actions", spec.action))
    columns = {"rewards": _column(arrays, "rewards", "fiu", np.float64)}
    columns |= {name: _column(arrays, name, "b", np.bool_) for name in ("terminated", "truncated", "episode_starts")}
    _require_same_length({"observations": obs, "actions": actions, **columns})
    found = Demonstrations(spec, obs, actions, **columns, final_obs=final_obs)
    found.require_whole_episodes()
    return found


def _leaves(arrays: Mapping[str, Array], name: str, space: SpaceSpec) -> dict[KeyPath, Array]:
    """Return the arrays of the leaves of a space; raise a KeyError if one is missing."""
    return {path: arrays[f"{name}{_dotted(path)}"] for path, _ in space.leaves}


def _column(arrays: Mapping[str, Array], name: str, kinds: str, dtype: Any) -> Array:
    """Return an array with one number a row; raise a ValueError if it has another shape."""
    array = arrays[name]
    if array.ndim != 1 or array.dtype.kind not in kinds:
        expected = "(B,) of numbers" if "f" in kinds else "(B,) of bool"
        raise ValueError(f"{name} of shape {array.shape} and dtype {array.dtype}; {expected} is expected")
    return array.astype(dtype)

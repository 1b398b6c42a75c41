"""EnvSpec: all that an agent needs to know of an environment, as plain values that travel as JSON."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from fabric_ppo.launch import ConfigError

if TYPE_CHECKING:
    import gymnasium

Kind = Literal["box", "discrete", "multi_discrete", "multi_binary"]

SUPPORTED = "observations: Box, Discrete; actions: Discrete, MultiDiscrete, MultiBinary, Box"


@dataclass(frozen=True)
class SpaceSpec:
    """One Gymnasium space.

    `shape` and `dtype` are those of a single element as an array. `sizes` counts the choices: one number for Discrete,
    one for each entry of a MultiDiscrete (flattened). `start` is the least value of each entry. `low` and `high` bound
    a Box's entries (flattened; None where unbounded), or are empty where that is not needed.
    """

    kind: Kind
    shape: tuple[int, ...]
    dtype: str
    sizes: tuple[int, ...] = ()
    start: tuple[int, ...] = ()
    low: tuple[float | None, ...] = ()
    high: tuple[float | None, ...] = ()

    @property
    def size(self) -> int:
        """Number of entries of one element."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class EnvSpec:
    """An environment's id and its two spaces."""

    env_id: str
    observation: SpaceSpec
    action: SpaceSpec

    def to_json(self) -> str:
        """Strict JSON; `from_json` gives back an equal value."""
        return json.dumps(asdict(self), allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> EnvSpec:
        """The inverse of `to_json`."""
        values = json.loads(text)
        return cls(values["env_id"], _space_from_dict(values["observation"]), _space_from_dict(values["action"]))


def _space_from_dict(values: dict[str, Any]) -> SpaceSpec:
    fields: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in values.items()}
    return SpaceSpec(**fields)


def env_spec(env_id: str, observation: gymnasium.Space[Any], action: gymnasium.Space[Any]) -> EnvSpec:
    """Describe an environment.

    Raises:
        ConfigError: a space that no agent here can take.
    """
    return EnvSpec(env_id, _observation_spec(env_id, observation), _action_spec(env_id, action))


def _observation_spec(env_id: str, space: gymnasium.Space[Any]) -> SpaceSpec:
    from gymnasium import spaces

    if isinstance(space, spaces.Box) and math.prod(space.shape) > 0:
        return SpaceSpec("box", space.shape, str(space.dtype))
    if isinstance(space, spaces.Discrete):
        return SpaceSpec("discrete", (), "int64", (int(space.n),), (int(space.start),))
    raise ConfigError(f"--env-id {env_id}: observation space {_short(space)} is not supported; {SUPPORTED}")


def _action_spec(env_id: str, space: gymnasium.Space[Any]) -> SpaceSpec:
    from gymnasium import spaces

    if isinstance(space, spaces.Discrete):
        return SpaceSpec("discrete", (), "int64", (int(space.n),), (int(space.start),))
    if isinstance(space, spaces.MultiDiscrete):
        sizes, start = (tuple(int(n) for n in values.flatten()) for values in (space.nvec, space.start))
        return SpaceSpec("multi_discrete", space.shape, str(space.dtype), sizes, start)
    if isinstance(space, spaces.MultiBinary):
        return SpaceSpec("multi_binary", space.shape, str(space.dtype))
    if (
        isinstance(space, spaces.Box)
        and math.prod(space.shape) > 0
        and space.dtype is not None
        and space.dtype.kind == "f"
    ):
        low, high = (
            tuple(float(x) if math.isfinite(x) else None for x in b.flatten()) for b in (space.low, space.high)
        )
        return SpaceSpec("box", space.shape, str(space.dtype), low=low, high=high)
    raise ConfigError(f"--env-id {env_id}: action space {_short(space)} is not supported; {SUPPORTED}")


def _short(space: gymnasium.Space[Any]) -> str:
    text = " ".join(str(space).split())
    return text if len(text) <= 80 else text[:77] + "..."


class ActionConverter:
    """Stored actions -> what environments take: choices from `start` up, Box entries within their bounds."""

    def __init__(self, space: SpaceSpec) -> None:
        """Read the action space."""
        self._dtype = np.dtype(space.dtype)
        self._start = np.array(space.start).reshape(space.shape) if any(space.start) else None
        self._bounds: tuple[NDArray[Any], NDArray[Any]] | None = None
        if space.kind == "box":
            low = np.array([-np.inf if x is None else x for x in space.low], self._dtype)
            high = np.array([np.inf if x is None else x for x in space.high], self._dtype)
            self._bounds = low.reshape(space.shape), high.reshape(space.shape)

    def __call__(self, actions: NDArray[Any]) -> NDArray[Any]:
        """Convert `[B, *shape]`."""
        if self._start is not None:
            actions = actions + self._start
        actions = actions.astype(self._dtype, copy=False)
        return actions if self._bounds is None else np.clip(actions, *self._bounds)

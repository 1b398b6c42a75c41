"""Descriptions of an environment's spaces, and conversion of observations and actions.

An EnvSpec is all that an agent needs to know of an environment, as plain values that travel as
JSON, so that a trainer or a policy's file opens no environment.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from fabric_ppo.config import ATARI
from fabric_ppo.process.errors import ConfigError

if TYPE_CHECKING:
    import gymnasium

Kind = Literal["box", "discrete", "multi_discrete", "multi_binary", "nested"]
KeyPath = tuple[str | int, ...]
"""Keys and indices that lead to a part of a nested observation."""

Fit = Literal["clip", "rescale", "squash"]
"""Ways for Box actions to meet their bounds: see `ActionConverter`."""

SUPPORTED = (
    "observations: Box, Discrete, MultiDiscrete, MultiBinary, and Dict and Tuple of these; "
    "actions: Discrete, MultiDiscrete, MultiBinary, Box"
)

ACTION_MASK: KeyPath = ("action_mask",)
"""Place in a Dict observation of the entries that are 0 for impossible actions."""

_WIDER = {"uint16": "int32", "uint32": "int64", "uint64": "int64", "bool": "int8", "float16": "float32"}
"""Wider types for parts of observations whose own PyTorch does not compute with."""


@dataclass(frozen=True)
class SpaceSpec:
    """One Gymnasium space.

    An element of a nested space (Dict, Tuple) is a row of bytes, those of its `parts` one after the
    other (`Packer`).

    Attributes:
        kind: of space.
        shape: of a single element as an array.
        dtype: of a single element as an array, by NumPy's name.
        sizes: choices, one number for Discrete, one for each entry of a MultiDiscrete (flattened).
        start: least value of each of these entries.
        low: lower bounds of a Box's entries (flattened; None where unbounded); empty where they are
            not needed.
        high: upper bounds, likewise.
        fit: how actions meet such bounds (`ActionConverter`).
        parts: path and space of each leaf of a nested space, in order.
    """

    kind: Kind
    shape: tuple[int, ...]
    dtype: str
    sizes: tuple[int, ...] = ()
    start: tuple[int, ...] = ()
    low: tuple[float | None, ...] = ()
    high: tuple[float | None, ...] = ()
    fit: Fit = "clip"
    parts: tuple[tuple[KeyPath, SpaceSpec], ...] = ()

    @property
    def size(self) -> int:
        """Return the number of entries of one element."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class EnvSpec:
    """An environment's id, its two spaces, and its wrapper.

    `wrapper` is `module:function`, or `ATARI` for that preset, or empty.
    """

    env_id: str
    observation: SpaceSpec
    action: SpaceSpec
    wrapper: str = ""

    @property
    def is_atari(self) -> bool:
        """Return whether learning takes rewards by their sign, and lost lives for ends."""
        return self.wrapper == ATARI

    def to_json(self) -> str:
        """Return strict JSON, of which `from_json` makes an equal value."""
        return json.dumps(asdict(self), allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> EnvSpec:
        """Return the value of which `to_json` made this text."""
        values = json.loads(text)
        observation, action = (_space_from_dict(values[name]) for name in ("observation", "action"))
        return cls(values["env_id"], observation, action, values.get("wrapper", ""))


def _space_from_dict(values: dict[str, Any]) -> SpaceSpec:
    fields: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in values.items()}
    parts = tuple((tuple(path), _space_from_dict(part)) for path, part in fields.pop("parts", ()))
    return SpaceSpec(**fields, parts=parts)


def env_spec(
    env_id: str,
    observation: gymnasium.Space[Any],
    action: gymnasium.Space[Any],
    fit: Fit = "clip",
    wrapper: str = "",
) -> EnvSpec:
    """Describe an environment whose Box actions meet their bounds as `fit` says.

    Raises:
        ConfigError: a space that no agent here can take.
    """
    actions = _action_spec(env_id, action)
    if actions.kind == "box":
        actions = replace(actions, fit=fit)
    return EnvSpec(env_id, _observation_spec(env_id, observation), actions, wrapper)


def _observation_spec(env_id: str, space: gymnasium.Space[Any]) -> SpaceSpec:
    """Describe an observation space; a nested one by the leaves of its tree."""
    from gymnasium import spaces

    if isinstance(space, spaces.Box) and math.prod(space.shape) > 0:
        return SpaceSpec("box", space.shape, str(space.dtype))
    if isinstance(space, (spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)):
        return _action_spec(env_id, space)
    if isinstance(space, (spaces.Dict, spaces.Tuple)) and len(space.spaces):
        named = space.spaces.items() if isinstance(space, spaces.Dict) else enumerate(space.spaces)
        parts: list[tuple[KeyPath, SpaceSpec]] = []
        for key, each in named:
            part = _observation_spec(env_id, each)
            part = replace(part, dtype=_WIDER.get(part.dtype, part.dtype))
            parts += [((key, *path), leaf) for path, leaf in part.parts or [((), part)]]
        size = sum(leaf.size * np.dtype(leaf.dtype).itemsize for _, leaf in parts)
        return SpaceSpec("nested", (size,), "uint8", parts=tuple(parts))
    raise ConfigError(f"--env-id {env_id}: observation space {_short(space)} is not supported; {SUPPORTED}")


def _action_spec(env_id: str, space: gymnasium.Space[Any]) -> SpaceSpec:
    """Describe an action space, or an observation space of choices."""
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


class Packer:
    """A converter of observations: of a nested space to a row of bytes; others stay as they are."""

    def __init__(self, space: SpaceSpec) -> None:
        """Read the observation space."""
        self._size = space.size
        ends = np.cumsum([leaf.size * np.dtype(leaf.dtype).itemsize for _, leaf in space.parts]).tolist()
        self._parts = [
            (path, leaf, slice(start, stop))
            for (path, leaf), start, stop in zip(space.parts, [0, *ends], ends, strict=False)
        ]

    def __call__(self, obs: Any) -> Any:
        """Pack one observation: `[size]` bytes, the leaves of its tree in the order of `parts`.

        Raises:
            ValueError: a part is missing, has another shape, or is not finite.
        """
        if not self._parts:
            return obs
        row = np.empty(self._size, np.uint8)
        for path, leaf, place in self._parts:
            name, value = ".".join(map(str, path)), obs
            try:
                for key in path:
                    value = value[key]
                array = np.ascontiguousarray(value, leaf.dtype)
            except (KeyError, IndexError, TypeError, ValueError) as error:
                raise ValueError(f"an observation whose {name} cannot be read ({type(error).__name__})") from None
            if np.shape(value) != leaf.shape:
                raise ValueError(f"an observation whose {name} has shape {np.shape(value)}; {leaf.shape} is expected")
            if array.dtype.kind == "f" and not np.isfinite(array).all():
                raise ValueError(f"an observation whose {name} is not finite: {value}")
            row[place] = array.reshape(-1).view(np.uint8)
        return row


class ActionConverter:
    """A converter of stored actions to what environments take.

    Choices are stored from 0 up, and start at `start`. Box entries are brought within their bounds:
    `clip` cuts off what lies beyond them, `rescale` stretches -1 .. 1 over them first, and `squash`
    takes the tanh before that; both leave entries alone that are not bounded on both sides.
    """

    def __init__(self, space: SpaceSpec) -> None:
        """Read the action space."""
        self._dtype = np.dtype(space.dtype)
        self._start = np.array(space.start).reshape(space.shape) if any(space.start) else None
        self._bounds: tuple[NDArray[Any], NDArray[Any]] | None = None
        self._squashes: NDArray[Any] | None = None
        self._stretch: tuple[NDArray[Any], NDArray[Any]] | None = None
        if space.kind == "box":
            low = np.array([-np.inf if x is None else x for x in space.low], self._dtype)
            high = np.array([np.inf if x is None else x for x in space.high], self._dtype)
            low, high = low.reshape(space.shape), high.reshape(space.shape)
            self._bounds = low, high
            has_both = np.isfinite(low) & np.isfinite(high)
            if space.fit == "squash":
                self._squashes = has_both
            # bounds of -1 and 1 need no stretching
            if space.fit != "clip" and np.any((low != -1) | (high != 1), where=has_both):
                # halved first: the width of the widest bounds overflows
                half, middle = np.where(has_both, high / 2 - low / 2, 1), np.where(has_both, high / 2 + low / 2, 0)
                self._stretch = half.astype(self._dtype), middle.astype(self._dtype)

    def __call__(self, actions: NDArray[Any]) -> NDArray[Any]:
        """Convert `[B, *shape]`; the result has the environment's dtype."""
        if self._start is not None:
            actions = actions + self._start
        actions = actions.astype(self._dtype, copy=False)
        if self._squashes is not None:
            actions = np.where(self._squashes, np.tanh(actions), actions)
        if self._stretch is not None:
            actions = actions * self._stretch[0] + self._stretch[1]
        return actions if self._bounds is None else np.clip(actions, *self._bounds)


def all_finite(values: Any) -> bool:
    """Return whether no entry is infinite or not a number."""
    # a sum of squares is five times cheaper than isfinite().all(); finite only if every entry is
    return math.isfinite(np.vdot(values, values)) or bool(np.isfinite(values).all())

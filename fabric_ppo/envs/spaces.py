"""Descriptions of an environment's spaces, and conversion of observations and actions.

An EnvSpec is all that an agent needs to know of an environment, as plain values that travel as
JSON, so that a trainer or a policy's file opens no environment.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from fabric_ppo.config_values import ATARI
from fabric_ppo.envs.reading import Reader
from fabric_ppo.process.errors import USER_ERRORS

Kind = Literal["box", "discrete", "multi_discrete", "multi_binary", "nested"]
KeyPath = tuple[str | int, ...]
"""Keys and indices that lead to a part of a nested observation or action."""

Fit = Literal["clip", "rescale", "squash"]
"""Ways for Box actions to meet their bounds: see `actions.ActionConverter`."""

MOST_CHOICES = 2**20
"""Choices of a space in all, each of which takes an input or an output of a network."""

ACTION_MASK: KeyPath = ("action_mask",)
"""Place in a Dict observation of the entries that are 0 for impossible actions; of nested actions
there may be a Dict or Tuple like them, with the entries of each leaf."""


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
        low: lower bounds of a Box's entries (flattened; None where unbounded). Observations have
            them where whole numbers are scaled by them, one for all entries if all are the same;
            empty stands for 0 of bytes, and for none of other numbers.
        high: upper bounds, likewise; empty stands for 255 of bytes.
        fit: how actions meet such bounds (`actions.ActionConverter`).
        parts: path and space of each leaf of a nested space, in order.
        num_critic: the number of parts, the last ones, that the value network alone takes.
        frames: observations that lie one after the other on the first axis (`frame_stack`); 1 where
            that axis, if there is one, is the environment's own.
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
    frames: int = 1
    num_critic: int = 0

    @property
    def size(self) -> int:
        """Return the number of entries of one element."""
        return math.prod(self.shape)

    @property
    def leaves(self) -> tuple[tuple[KeyPath, SpaceSpec], ...]:
        """Return path and space of each leaf; a space that is not nested is one, at an empty path."""
        return self.parts or (((), self),)

    @property
    def num_choices(self) -> int:
        """Return the number of choices and bits, for each of which an action mask has an entry."""
        return sum(sum(leaf.sizes) or leaf.size for _, leaf in self.leaves if leaf.kind != "box")

    @property
    def for_policy(self) -> SpaceSpec:
        """Return the space of what the policy takes: a row of it begins a row of this space."""
        return nested_space(self.parts[: -self.num_critic]) if self.num_critic else self

    @property
    def for_critic(self) -> SpaceSpec | None:
        """Return the space of what the value network alone takes, the rest of a row; None for nothing."""
        return nested_space(self.parts[-self.num_critic :]) if self.num_critic else None


def nested_space(parts: Sequence[tuple[KeyPath, SpaceSpec]], num_critic: int = 0) -> SpaceSpec:
    """Return the nested space of these leaves; see `SpaceSpec`."""
    size = sum(leaf.size * np.dtype(leaf.dtype).itemsize for _, leaf in parts)
    return SpaceSpec("nested", (size,), "uint8", parts=tuple(parts), num_critic=num_critic)


@dataclass(frozen=True)
class EnvSpec:
    """An environment: its id, its two spaces as an agent sees them, and how it is made.

    Attributes:
        env_id: as `gymnasium.make` takes it.
        observation, action: its spaces.
        wrapper: `module:function`, or `ATARI` for that preset, or empty.
        make_args: keyword arguments for its constructor, as JSON; empty for none. A text, so that
            this can be hashed; `env_kwargs` has them as a dict.
    """

    env_id: str
    observation: SpaceSpec
    action: SpaceSpec
    wrapper: str = ""
    make_args: str = ""

    @property
    def env_kwargs(self) -> dict[str, Any]:
        """Return the keyword arguments for the environment's constructor, after the id."""
        values: dict[str, Any] = json.loads(self.make_args or "{}")
        return values

    @property
    def is_atari(self) -> bool:
        """Return whether learning takes rewards by their sign, and lost lives for ends."""
        return self.wrapper == ATARI

    def to_json(self) -> str:
        """Return strict JSON, of which `from_json` makes an equal value."""
        return json.dumps(asdict(self, dict_factory=_without_younger), allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> EnvSpec:
        """Return the value of which `to_json` made this text."""
        values = json.loads(text)
        observation, action = (_space_from_dict(values[name]) for name in ("observation", "action"))
        spec = cls(values["env_id"], observation, action, values.get("wrapper", ""), values.get("make_args", ""))
        if not isinstance(spec.env_kwargs, dict):
            raise ValueError("its make_args are no JSON object")
        return spec


def _without_younger(items: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return the fields of a spec as a dict, without younger ones that say nothing.

    So the file of a policy, and a checkpoint, are the same as before there were such fields.
    """
    silent = (("frames", 1), ("num_critic", 0), ("make_args", ""))
    return {name: value for name, value in items if (name, value) not in silent}


def _space_from_dict(values: dict[str, Any]) -> SpaceSpec:
    fields: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in values.items()}
    parts = tuple((tuple(path), _space_from_dict(part)) for path, part in fields.pop("parts", ()))
    return SpaceSpec(**fields, parts=parts)


def is_mask(path: KeyPath, action: SpaceSpec) -> bool:
    """Return True if the part of observations at `path` is a mask of these actions, or a part of it."""
    # continuous actions have no mask: a part of that name is an observation like others
    return action.num_choices > 0 and (path[:1] if action.parts else path) == ACTION_MASK


def mask_paths(spec: EnvSpec) -> list[KeyPath]:
    """Return the parts of observations that are the action mask, in the order of the choices; empty without one.

    It is one part; or, of nested actions, one for each of their leaves that are choices.
    """
    found = [path for path, _ in spec.observation.parts if is_mask(path, spec.action)]
    if ACTION_MASK in found or not found:
        return found
    return [(*ACTION_MASK, *path) for path, leaf in spec.action.parts if leaf.kind != "box"]


def path_name(path: KeyPath) -> str:
    """Return the name of a part of an observation, as `--obs-keys` takes it, or of an action: `arm.right.0`."""
    return ".".join(map(str, path))


def part_at(obs: Any, path: KeyPath) -> Any:
    """Return the part of a nested observation that lies at `path`; raise what its container raises."""
    for key in path:
        obs = obs[key]
    return obs


def reader_of(space: SpaceSpec, name: str = "") -> Reader:
    """Return the reader of observations of a space; of a nested one it reads what is packed.

    `name` is that of a part.
    """
    choices = None
    if space.kind in ("discrete", "multi_discrete"):
        least = np.array(space.start, np.int64).reshape(space.shape)
        choices = least, least + np.array(space.sizes, np.int64).reshape(space.shape) - 1
    elif space.kind == "multi_binary":
        choices = np.zeros(space.shape, np.int64), np.ones(space.shape, np.int64)
    return Reader(space.shape, space.dtype, choices, name)


class Packer:
    """A converter of observations: of a nested space to a row of bytes, of others to arrays."""

    def __init__(self, space: SpaceSpec) -> None:
        """Read the observation space."""
        self._size = space.size
        self._whole = None if space.parts else reader_of(space)
        ends = np.cumsum([leaf.size * np.dtype(leaf.dtype).itemsize for _, leaf in space.parts]).tolist()
        self._parts = [
            (path, np.dtype(leaf.dtype), reader_of(leaf, path_name(path)), slice(start, stop))
            for (path, leaf), start, stop in zip(space.parts, [0, *ends], ends, strict=False)
        ]

    def __call__(self, obs: Any) -> Any:
        """Check one observation, and pack it if it is nested.

        Returns:
            `[size]` bytes, the leaves of its tree in the order of `parts`; else what its `Reader`
            returns.

        Raises:
            ValueError: a part is missing, or cannot be what its space says (`Reader`).
        """
        if self._whole is not None:
            return self._whole(obs)
        row = np.empty(self._size, np.uint8)
        for path, dtype, read, place in self._parts:
            try:
                value = part_at(obs, path)
            except USER_ERRORS as error:  # of no Dict or Tuple, but of any other object
                raise ValueError(
                    f"an observation whose {path_name(path)} cannot be read ({type(error).__name__})"
                ) from None
            row[place] = np.ascontiguousarray(read(value), dtype).reshape(-1).view(np.uint8)
        return row

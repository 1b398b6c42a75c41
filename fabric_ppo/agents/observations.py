"""Conversion of one observation or a batch, as a program has them, to the rows of an agent."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from fabric_ppo.envs.space_text import format_parts
from fabric_ppo.envs.spaces import KeyPath, Packer, SpaceSpec, part_at, path_name, reader_of
from fabric_ppo.process.errors import USER_ERRORS


@dataclass(frozen=True)
class Rows:
    """Observations `[B, ...]`; of a nested space each is a row of bytes.

    Attributes:
        array: the observations; B is 1 for a single one.
        is_single: true if it was one observation, not a batch.
    """

    array: NDArray[Any]
    is_single: bool


class ObservationReader:
    """A function from one observation, or a batch of them, to rows.

    The shapes decide: an array of a batch has one axis more than that of one observation. A batch of
    a Dict is a dict of arrays `[B, ...]`, as `gymnasium.make_vec` returns it, a batch of a Tuple a
    tuple of them, and nested spaces likewise. A batch may also be a list of observations, or an array
    of rows made by `pack`.

    Attributes:
        pack: function from one observation to its row.
    """

    def __init__(self, space: SpaceSpec, whole: SpaceSpec) -> None:
        """Read observations of `space`; they may also have other parts of `whole`."""
        self.pack = Packer(space)
        self._space, self._whole, self._reader = space, whole, reader_of(space)
        self._parts = [(path, leaf, reader_of(leaf, path_name(path))) for path, leaf in space.parts]

    def __call__(self, obs: Any) -> Rows:
        """Return the rows of `obs`, checked.

        Raises:
            ValueError: it has another shape or kind, or numbers that its space or float32 cannot
                hold.
        """
        if not isinstance(obs, np.ndarray):
            obs = _without_gradient(obs)
        if isinstance(obs, tuple):
            self._require_observation_alone(obs)
        if self._parts:
            if not isinstance(obs, np.ndarray):
                return self._nested(obs)
            if obs.dtype != np.uint8 or obs.shape[-1:] != self._space.shape:
                raise ValueError(f"obs is an array of shape {obs.shape}: {self._expected}")
        array, shape = self._reader.array(obs), self._space.shape
        is_single = array.shape == shape
        if not is_single and (array.shape[1:] != shape or array.ndim == 0):
            raise ValueError(f"obs has shape {array.shape}: {_one_or_many(shape)} is expected")
        self._reader.require_valid(array)
        return Rows(array[None] if is_single else array, is_single)

    @property
    def _expected(self) -> str:
        return f"{format_parts(self._space)} is expected"

    def _require_observation_alone(self, obs: tuple[Any, ...]) -> None:
        """Raise a ValueError for the whole result of `reset` or `step`, which contains the observation."""
        names = {2: "obs, info = env.reset()", 5: "obs, reward, terminated, truncated, info = env.step(action)"}
        if len(obs) not in names or not isinstance(obs[-1], dict):
            return
        # a Tuple's last part may be a Dict
        is_part = any(path[0] == len(obs) - 1 and isinstance(path[-1], str) for path, _ in self._whole.parts)
        if not is_part:
            shape = f"the first of these {len(obs)} values is the observation"
            raise ValueError(f"obs is a tuple that ends with a dict: {shape}, as in {names[len(obs)]}")

    def _require_parts(self, obs: Any, name: str) -> None:
        """Raise a ValueError for an observation that lacks a part, by the name of the part."""
        for path, _, _ in self._parts:
            try:
                part_at(obs, path)
            except USER_ERRORS:  # of no Dict or Tuple, but of any other object
                is_kind = isinstance(obs, Mapping) or (isinstance(obs, tuple) and not isinstance(path[0], str))
                what = f"has no {path_name(path)}" if is_kind else f"is a {type(obs).__name__}"
                raise ValueError(f"{name} {what}: {self._expected}") from None

    def _nested(self, obs: Any) -> Rows:
        if isinstance(obs, list):
            for index, each in enumerate(obs):
                self._require_parts(each, f"obs is a list, whose entry {index}")
            rows = np.stack([self.pack(each) for each in obs]) if obs else np.empty((0, self._space.size), np.uint8)
            return Rows(rows, False)
        self._require_parts(obs, "obs")
        path, leaf, _ = self._parts[0]
        if not self._is_batch(obs, path, len(leaf.shape)):
            return Rows(self.pack(obs)[None], True)
        columns = [self._column(obs, *part) for part in self._parts]
        counts = {path_name(path): len(column) for (path, _, _), column in zip(self._parts, columns, strict=True)}
        if len(set(counts.values())) > 1:
            shown = ", ".join(f"{count} of {name}" for name, count in counts.items())
            raise ValueError(f"obs has {shown}: the same number of each is expected")
        return Rows(np.concatenate(columns, axis=1), False)

    @staticmethod
    def _is_batch(obs: Any, path: KeyPath, num_axes: int) -> bool:
        """Return True if the part at `path` has one axis more than that of one observation."""
        try:
            return np.ndim(part_at(obs, path)) == num_axes + 1
        except (TypeError, KeyError, IndexError, ValueError):
            return False  # `pack` says what is wrong

    @staticmethod
    def _column(obs: Any, path: KeyPath, leaf: SpaceSpec, reader: Any) -> NDArray[np.uint8]:
        """Return a part of all observations of a batch as bytes, `[B, n]`."""
        array = reader.array(part_at(obs, path))
        if array.ndim != len(leaf.shape) + 1 or array.shape[1:] != leaf.shape:
            raise ValueError(f"obs has {path_name(path)} of shape {array.shape}: {_batch(leaf.shape)} is expected")
        reader.require_valid(array)
        return np.ascontiguousarray(array).reshape(len(array), leaf.size).view(np.uint8)


def _without_gradient(obs: Any) -> Any:
    """Return observations whose PyTorch tensors NumPy takes: without a gradient, on the CPU."""
    if isinstance(obs, Tensor):
        return obs.detach().cpu()
    if isinstance(obs, dict):
        return {name: _without_gradient(part) for name, part in obs.items()}
    if type(obs) in (list, tuple):
        return type(obs)(map(_without_gradient, obs))
    return obs


def _batch(shape: tuple[int, ...]) -> str:
    return f"(B{''.join(f', {n}' for n in shape)})" if shape else "(B,)"


def _one_or_many(shape: tuple[int, ...]) -> str:
    return f"{shape} or {_batch(shape)}"

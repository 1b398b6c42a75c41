"""Nested actions put together: from rows of bytes to the Dicts and Tuples that environments take."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fabric_ppo.envs.spaces import KeyPath, SpaceSpec, part_at

if TYPE_CHECKING:
    from torch import Tensor


def nested(paths: Sequence[KeyPath], values: Iterable[Any]) -> Any:
    """Return `values` in dictionaries and tuples, each at its path: texts are keys, numbers are indices.

    >>> nested([("a", 0), ("a", 1), ("b",)], "xyz")
    {'a': ('x', 'y'), 'b': 'z'}
    """
    if () in paths:
        return next(iter(values))
    below: dict[str | int, list[tuple[KeyPath, Any]]] = {}
    for path, value in zip(paths, values, strict=True):
        below.setdefault(path[0], []).append((path[1:], value))
    made = {key: nested(*zip(*pairs, strict=True)) for key, pairs in below.items()}
    return tuple(made.values()) if isinstance(paths[0][0], int) else made


def pack_parts(parts: Sequence[NDArray[Any]]) -> NDArray[np.uint8]:
    """Return the leaves of a batch of actions, `[B, *shape]` each, as rows of bytes, `[B, n]`."""
    # not -1, for there may be no row: an episode without a step has no actions
    flat = [np.ascontiguousarray(part).reshape(len(part), math.prod(part.shape[1:])) for part in parts]
    return np.concatenate([part.view(np.uint8) for part in flat], axis=1)


def pack_batch(space: SpaceSpec, actions: Any) -> Any:
    """Return a batch of actions, as `Policy.act` gives it, in rows of bytes if they are nested; else as it is."""
    return pack_parts([part_at(actions, path) for path, _ in space.parts]) if space.parts else actions


class Unpacker:
    """A converter of rows of bytes, of `pack_parts`, to nested actions."""

    def __init__(self, space: SpaceSpec) -> None:
        """Read the action space."""
        self._paths = [path for path, _ in space.parts]
        self._leaves = [leaf for _, leaf in space.parts]
        self._ends = np.cumsum([leaf.size * np.dtype(leaf.dtype).itemsize for leaf in self._leaves]).tolist()

    def parts(self, rows: NDArray[np.uint8]) -> list[NDArray[Any]]:
        """Return the leaves of `rows [B, n]`, `[B, *shape]` each, in memory of their own."""
        columns = np.split(rows, self._ends[:-1], axis=1)
        return [
            column.copy(order="C").view(leaf.dtype).reshape(len(rows), *leaf.shape)
            for column, leaf in zip(columns, self._leaves, strict=True)
        ]

    def batch(self, rows: NDArray[np.uint8]) -> Any:
        """Return a nested action of arrays `[B, *shape]`, as `gymnasium.vector` has it, for `rows [B, n]`."""
        return nested(self._paths, self.parts(rows))

    def one(self, row: NDArray[np.uint8]) -> Any:
        """Return one nested action for its row, `[n]`, as the space's own `sample` has it."""
        parts = zip(self.parts(row[None]), self._leaves, strict=True)
        # a Discrete gives a number, a Box of no axes an array
        return nested(self._paths, [part[0] if leaf.kind == "discrete" else part[0, ...] for part, leaf in parts])

    def tensors(self, rows: Tensor) -> Any:
        """Return a nested action of tensors `[B, *shape]` for `rows [B, n]`, on their device."""
        import torch  # here, as environments' processes convert arrays and load no PyTorch

        parts = []
        for leaf, start, stop in zip(self._leaves, [0, *self._ends], self._ends, strict=False):
            # a copy, for bytes can be viewed as another type only where they are aligned for it
            column = rows[:, start:stop].clone(memory_format=torch.contiguous_format)
            parts.append(column.view(torch.from_numpy(np.zeros(0, leaf.dtype)).dtype).view(-1, *leaf.shape))
        return nested(self._paths, parts)

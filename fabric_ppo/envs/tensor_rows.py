"""Batches of observations as rows of a rollout: arrays of NumPy, PyTorch or JAX, checked by their space."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from fabric_ppo.envs.spaces import SpaceSpec, part_at, path_name
from fabric_ppo.process.errors import USER_ERRORS, describe_error


class RowMaker:
    """A converter of batches of observations to rows, `[B, ...]`; of a nested space they are bytes.

    Attributes:
        kind: of the arrays: `numpy`, `torch` or `jax`; empty before the first ones.
    """

    def __init__(self, space: SpaceSpec) -> None:
        """Read the observation space."""
        self._leaves = [_Leaf(leaf, path_name(path) if path else "") for path, leaf in space.parts or (((), space),)]
        self._paths = [path for path, _ in space.parts] or [()]
        self._is_nested = bool(space.parts)
        self.kind = ""

    def __call__(self, obs: Any, count: int, where: Tensor | None = None) -> Tensor:
        """Return the rows of `count` observations, of which those `where` true count, `[count]` bool.

        Raises:
            ValueError: they are not of the space; the text goes on after "returned observations".
        """
        columns = []
        for path, leaf in zip(self._paths, self._leaves, strict=True):
            try:
                part = part_at(obs, path)
                column = as_tensor(part)
            except USER_ERRORS as error:
                which = f"whose {leaf.name} cannot" if leaf.name else "that cannot"
                raise ValueError(f"{which} be read ({describe_error(error)})") from None
            self.kind = self.kind or kind_of(part)
            columns.append(leaf.read(column, count, where))
        if not self._is_nested:
            return columns[0]
        return torch.cat([each.reshape(count, -1).contiguous().view(torch.uint8) for each in columns], 1)


class _Leaf:
    """One space without parts."""

    def __init__(self, space: SpaceSpec, name: str) -> None:
        self.name = name
        self._of = f" of {name}" if name else ""
        self._shape, self._dtype = space.shape, torch.from_numpy(np.zeros(0, space.dtype)).dtype
        self._choices: tuple[Tensor, Tensor] | None = None
        if space.kind in ("discrete", "multi_discrete"):
            least = torch.tensor(space.start).view(space.shape)
            self._choices = least, least + torch.tensor(space.sizes).view(space.shape) - 1
        elif space.kind == "multi_binary":
            self._choices = torch.zeros(space.shape), torch.ones(space.shape)

    def read(self, column: Tensor, count: int, where: Tensor | None) -> Tensor:
        """Return `column [count, *shape]` in the space's type; raise a ValueError for what it cannot hold."""
        if column.shape != (count, *self._shape):
            expected = (count, *self._shape)
            raise ValueError(f"of shape {tuple(column.shape)}{self._of}; {expected} is expected")
        converted = column.to(self._dtype)
        # numbers of floats are looked at once a rollout; whole numbers would wrap around, unseen
        is_whole = converted.dtype != column.dtype and not converted.is_floating_point()
        counts = slice(None) if where is None else where
        if is_whole and not torch.equal(converted[counts].double(), column[counts].double()):
            raise ValueError(f"of numbers that {self._dtype} cannot hold{self._of}")
        if self._choices is not None:
            least, most = (each.to(column.device) for each in self._choices)
            chosen = converted.to(torch.int64)  # PyTorch does not compare all kinds of whole numbers
            outside = (chosen < least) | (chosen > most)
            if bool(outside[counts].any()):
                env, *_ = outside.nonzero()[0].tolist()
                raise ValueError(f"with a choice that the space{self._of} does not have, in row {env}")
        return converted


def kind_of(array: Any) -> str:
    """Return `torch`, `jax` or `numpy`; the latter also for lists and numbers."""
    module = type(array).__module__.partition(".")[0]
    return {"torch": "torch", "jax": "jax", "jaxlib": "jax"}.get(module, "numpy")


def as_tensor(array: Any) -> Tensor:
    """Return an array of any of the three kinds as a tensor, without a copy if that is possible."""
    if isinstance(array, Tensor):
        return array.detach()
    if kind_of(array) == "jax":
        return torch.utils.dlpack.from_dlpack(array)
    numbers = np.asarray(array)
    if numbers.dtype.kind not in "biuf":
        raise TypeError(f"{numbers.dtype} is no type of numbers here")
    # PyTorch has no numbers of the other byte order, and warns of arrays that cannot be written to
    is_plain = numbers.dtype.isnative and numbers.flags.writeable
    return torch.as_tensor(numbers if is_plain else numbers.astype(numbers.dtype.newbyteorder("=")))

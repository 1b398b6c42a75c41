"""Actions between agents and environments: their conversion, and masks that must leave some.

A nested action (Dict, Tuple) is stored as one row, the entries of its leaves one after the other.
Converted it is a row of bytes, as a nested observation is (`spaces.Packer`), until it is put together
for the environment (`nested_actions.Unpacker`).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fabric_ppo.envs.nested_actions import Unpacker, pack_parts
from fabric_ppo.envs.spaces import ACTION_MASK, EnvSpec, KeyPath, SpaceSpec, mask_paths

if TYPE_CHECKING:
    from torch import Tensor


_SHY_OF_BOUNDS = 1e-6
"""Distance from -1 and 1 of the numbers whose inverse tanh is taken: that of the bounds is infinite."""


def action_converter(space: SpaceSpec) -> ActionConverter | PackingConverter:
    """Return the converter of stored actions `[B, ...]` to what environments take, and back."""
    return PackingConverter(space) if space.parts else ActionConverter(space)


@functools.cache  # it has tensors on the device, which cannot be brought there while a CUDA graph is recorded
def tensor_action_converter(space: SpaceSpec, device: str = "cpu") -> Callable[[Tensor], Tensor]:
    """Return the same for tensors on a device."""
    return TensorPackingConverter(space, device) if space.parts else TensorActionConverter(space, device)


class ActionConverter:
    """A converter of stored actions, which are not nested, to what environments take, and back.

    Choices are stored from 0 up, and start at `start`. Box entries are brought within their bounds:
    `clip` cuts off what lies beyond them, `rescale` stretches -1 .. 1 over them first, and `squash`
    takes the tanh before that; both leave entries alone that are not bounded on both sides.

    Attributes:
        dtype: of the environment's actions.
        start: added to choices; None for 0.
        squashes: true for the entries that the tanh is taken of; None for none.
        stretch: factors and addends of the entries; None for none.
        bounds: least and greatest values of the entries; None for choices.
    """

    def __init__(self, space: SpaceSpec) -> None:
        """Read the action space."""
        self.dtype = np.dtype(space.dtype)
        self.start = np.array(space.start).reshape(space.shape) if any(space.start) else None
        self.bounds: tuple[NDArray[Any], NDArray[Any]] | None = None
        self.squashes: NDArray[Any] | None = None
        self.stretch: tuple[NDArray[Any], NDArray[Any]] | None = None
        if space.kind == "box":
            low = np.array([-np.inf if x is None else x for x in space.low], self.dtype)
            high = np.array([np.inf if x is None else x for x in space.high], self.dtype)
            low, high = low.reshape(space.shape), high.reshape(space.shape)
            self.bounds = low, high
            has_both = np.isfinite(low) & np.isfinite(high)
            if space.fit == "squash":
                self.squashes = has_both
            # bounds of -1 and 1 need no stretching
            if space.fit != "clip" and np.any((low != -1) | (high != 1), where=has_both):
                # halved first: the width of the widest bounds overflows
                half, middle = np.where(has_both, high / 2 - low / 2, 1), np.where(has_both, high / 2 + low / 2, 0)
                self.stretch = half.astype(self.dtype), middle.astype(self.dtype)

    def __call__(self, actions: NDArray[Any]) -> NDArray[Any]:
        """Convert `[B, *shape]`; the result has the environment's dtype."""
        if self.start is not None:
            actions = actions + self.start
        actions = actions.astype(self.dtype, copy=False)
        if self.squashes is not None:
            actions = np.where(self.squashes, np.tanh(actions), actions)
        if self.stretch is not None:
            actions = actions * self.stretch[0] + self.stretch[1]
        return actions if self.bounds is None else np.clip(actions, *self.bounds)

    def stored(self, actions: NDArray[Any]) -> NDArray[Any]:
        """Return stored actions of which this makes `actions [B, *shape]`: the inverse, but for rounding.

        Somebody else's actions have been within the bounds: `clip` leaves them as they are,
        `rescale` maps them linearly to -1 .. 1, and `squash` takes the inverse tanh of that, no
        nearer to a bound than 1e-6, since a bound itself would be infinitely far.
        """
        if self.bounds is None:
            return actions.astype(np.int64) - (0 if self.start is None else self.start)
        values = actions.astype(np.float64)
        if self.stretch is not None:
            half, middle = self.stretch
            # bounds that are equal leave one action, whatever is stored
            values = np.divide(values - middle, half, out=np.zeros_like(values), where=half != 0)
        if self.squashes is not None:
            most = 1 - _SHY_OF_BOUNDS
            values = np.where(self.squashes, np.arctanh(values.clip(-most, most)), values)
        return values


def is_outside(space: SpaceSpec, actions: NDArray[Any]) -> NDArray[np.bool_]:
    """Return which of `actions [B, *shape]`, as environments take them, a space does not have, `[B]`."""
    if space.kind == "box":
        low = np.array([-np.inf if x is None else x for x in space.low])
        high = np.array([np.inf if x is None else x for x in space.high])
    else:
        sizes = space.sizes or (2,) * space.size
        low = np.array(space.start or (0,) * space.size)
        high = low + np.array(sizes) - 1
    flat = actions.reshape(len(actions), space.size)
    has = np.isfinite(flat) & (low <= flat) & (flat <= high)
    if space.kind != "box":
        has &= flat == np.floor(flat)
    outside: NDArray[np.bool_] = ~has.all(-1)
    return outside


class TensorActionConverter:
    """The same conversion as an ActionConverter's, of tensors on any device."""

    def __init__(self, space: SpaceSpec, device: str = "cpu") -> None:
        """Read the action space; its numbers are put on `device`."""
        import torch  # here, as environments' processes convert arrays and load no PyTorch

        arrays = ActionConverter(space)

        def tensor(array: NDArray[Any] | None) -> Any:
            return None if array is None else torch.from_numpy(np.asarray(array)).to(device)

        self._dtype = torch.from_numpy(np.zeros((), arrays.dtype)).dtype
        self._start, self._squashes = tensor(arrays.start), tensor(arrays.squashes)
        self._stretch = [tensor(each) for each in arrays.stretch or ()]
        self._bounds = [tensor(each) for each in arrays.bounds or ()]

    def __call__(self, actions: Tensor) -> Tensor:
        """Convert `[B, *shape]`; the result has the environment's dtype."""
        if self._start is not None:
            actions = actions + self._start
        actions = actions.to(self._dtype)
        if self._squashes is not None:
            actions = actions.tanh().where(self._squashes, actions)
        if self._stretch:
            actions = actions * self._stretch[0] + self._stretch[1]
        return actions.clamp(*self._bounds) if self._bounds else actions


class PackingConverter:
    """A converter of stored nested actions `[B, n]` to rows of bytes, and back."""

    def __init__(self, space: SpaceSpec) -> None:
        """Read the action space."""
        self._unpack = Unpacker(space)
        self._leaves = [(ActionConverter(leaf), leaf) for _, leaf in space.parts]
        self._ends = np.cumsum([leaf.size for _, leaf in space.parts])[:-1]

    def __call__(self, actions: NDArray[Any]) -> NDArray[np.uint8]:
        """Convert `[B, n]`."""
        columns = np.split(actions, self._ends, axis=1)
        return pack_parts(
            [
                # choices as whole numbers first: their start need not be one that floats hold
                convert((each if leaf.kind == "box" else each.astype(np.int64)).reshape(-1, *leaf.shape))
                for each, (convert, leaf) in zip(columns, self._leaves, strict=True)
            ]
        )

    def stored(self, rows: NDArray[np.uint8]) -> NDArray[np.float64]:
        """Return stored actions of which this makes `rows`; see `ActionConverter.stored`."""
        parts = zip(self._unpack.parts(rows), self._leaves, strict=True)
        flat = [convert.stored(part).reshape(len(rows), leaf.size) for part, (convert, leaf) in parts]
        return np.concatenate(flat, axis=1, dtype=np.float64)


class TensorPackingConverter:
    """The same conversion as a PackingConverter's, of tensors on any device."""

    def __init__(self, space: SpaceSpec, device: str = "cpu") -> None:
        """Read the action space; its numbers are put on `device`."""
        self._leaves = [(TensorActionConverter(leaf, device), leaf) for _, leaf in space.parts]

    def __call__(self, actions: Tensor) -> Tensor:
        """Convert `[B, n]`."""
        import torch

        columns = actions.split([leaf.size for _, leaf in self._leaves], dim=1)
        converted = [
            convert((each if leaf.kind == "box" else each.long()).reshape(-1, *leaf.shape))
            for each, (convert, leaf) in zip(columns, self._leaves, strict=True)
        ]
        flat = [each.reshape(len(actions), math.prod(each.shape[1:])).contiguous() for each in converted]
        return torch.cat([each.view(torch.uint8) for each in flat], dim=1)


class MaskCheck:
    """A check of packed observations: does the action mask in them leave an action to choose?

    Attributes:
        place: where the mask's bytes are in a row.
    """

    def __init__(self, spec: EnvSpec) -> None:
        """Find the mask in the observations of an environment; where there is none, all passes."""
        masks = list(_mask_places(spec))
        # each number of a MultiDiscrete is chosen for itself; a MultiBinary may have no 1 at all
        choices = [mask for mask in masks if mask[0].sizes]
        first = min([start for *_, start in masks], default=0)
        self._choices = [
            (dtype, _bytes_of(leaf, dtype, start - first), np.cumsum([0, *leaf.sizes[:-1]]))
            for leaf, dtype, start in choices
        ]
        end = max([_bytes_of(*mask).stop for mask in masks], default=0)
        self.place = slice(first, end) if choices else slice(0)

    def allows(self, masks: NDArray[np.uint8]) -> Any:
        """Return where masks leave something to choose, `[...]` bool, from their bytes `[..., n]`."""
        allowed = [
            np.logical_or.reduceat(np.ascontiguousarray(masks[..., place]).view(dtype) != 0, starts, axis=-1).all(-1)
            for dtype, place, starts in self._choices
        ]
        return allowed[0] if len(allowed) == 1 else np.logical_and.reduce(allowed)

    @property
    def has_mask(self) -> bool:
        """Return True if there is something to check."""
        return self.place.stop > 0

    def __call__(self, row: NDArray[np.uint8]) -> None:
        """Check one observation, as `spaces.Packer` packs it.

        Raises:
            ValueError: the mask allows nothing.
        """
        if not self.allows(row[self.place]):
            raise ValueError("an action_mask that allows no action; at least one is expected where an episode goes on")


def _mask_places(spec: EnvSpec) -> Iterator[tuple[SpaceSpec, np.dtype[Any], int]]:
    """Yield each leaf of the actions that is masked, and type and first byte of its entries in observations."""
    places: dict[KeyPath, tuple[np.dtype[Any], int]] = {}
    masks, end, num_entries = mask_paths(spec), 0, 0
    for path, leaf in spec.observation.parts:
        dtype = np.dtype(leaf.dtype)
        if path in masks:
            places[path], num_entries = (dtype, end), num_entries + leaf.size
        end += leaf.size * dtype.itemsize
    if num_entries != spec.action.num_choices:
        return
    for path, leaf in spec.action.leaves:
        if leaf.kind != "box":
            # a mask of its own, or the next entries of the one for all
            mask = own if (own := (*ACTION_MASK, *path)) in places else ACTION_MASK
            dtype, start = places[mask]
            places[mask] = dtype, start + leaf.num_choices * dtype.itemsize
            yield leaf, dtype, start


def _bytes_of(leaf: SpaceSpec, dtype: np.dtype[Any], start: int) -> slice:
    """Return where the mask of a leaf's choices lies, from its first byte."""
    return slice(start, start + leaf.num_choices * dtype.itemsize)

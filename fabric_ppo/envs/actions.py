"""Actions between agents and environments: their conversion, and masks that must leave some."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fabric_ppo.envs.spaces import ACTION_MASK, EnvSpec, SpaceSpec

if TYPE_CHECKING:
    from torch import Tensor


class ActionConverter:
    """A converter of stored actions to what environments take.

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


class MaskCheck:
    """A check of packed observations: does the action mask in them leave an action to choose?

    Attributes:
        place: where the mask's bytes are in a row.
    """

    def __init__(self, spec: EnvSpec) -> None:
        """Find the mask in the observations of an environment; where there is none, all passes."""
        self._dtype = np.dtype(np.uint8)
        self.place = slice(0)
        # each number of a MultiDiscrete is chosen for itself; a MultiBinary may have no 1 at all
        self._starts = np.cumsum([0, *spec.action.sizes[:-1]])
        end = 0
        for path, leaf in spec.observation.parts:
            dtype = np.dtype(leaf.dtype)
            start, end = end, end + leaf.size * dtype.itemsize
            if path == ACTION_MASK and leaf.size == sum(spec.action.sizes):
                self._dtype, self.place = dtype, slice(start, end)

    def allows(self, masks: NDArray[np.uint8]) -> Any:
        """Return where masks leave something to choose, `[...]` bool, from their bytes `[..., n]`."""
        is_possible = np.ascontiguousarray(masks).view(self._dtype) != 0
        return np.logical_or.reduceat(is_possible, self._starts, axis=-1).all(-1)

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

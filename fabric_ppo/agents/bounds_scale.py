"""Scaling of whole numbers in observations to 0 .. 1, by the bounds of their space."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from fabric_ppo.envs.spaces import SpaceSpec

_LOWER_HALF = 2**32 - 1


class BoundsScale(nn.Module):
    """A map of whole numbers to 0 .. 1, by the bounds of their space; other numbers stay.

    Attributes:
        least, width: `[n]` float64, the lower bounds and the distances to the upper ones; n is 1
            where all entries have the same.
        least_halves: `[2, n]` int64, upper and lower 32 bits of the lower bounds.
    """

    least: Tensor
    width: Tensor
    least_halves: Tensor

    def __init__(self, space: SpaceSpec) -> None:
        """Read the bounds of a Box that has some."""
        super().__init__()
        size = max(len(space.low), len(space.high))
        pairs = [
            (0, 1) if low is None or high is None else (low, high - low or 1)
            for low, high in zip(
                space.low * (size // len(space.low)), space.high * (size // len(space.high)), strict=True
            )
        ]
        # float32 holds numbers of up to 16 bits, and their differences
        self._is_wide = np.dtype(space.dtype).itemsize > 2
        # not saved: they follow from the space
        for name, values in zip(("least", "width"), zip(*pairs, strict=True), strict=True):
            self.register_buffer(name, torch.tensor(values, dtype=torch.float64), persistent=False)
        offset = -(2**63) if space.dtype == "uint64" else 0
        halves = [divmod(int(low) + offset, 2**32) for low, _ in pairs]
        self.register_buffer("least_halves", torch.tensor(halves).T, persistent=False)

    def forward(self, numbers: Tensor, dtype: torch.dtype) -> Tensor:
        """Scale whole numbers `[B, n]`; return them in the floating-point type `dtype`."""
        width = self.width.to(numbers.device)
        if not self._is_wide:
            return numbers.to(dtype).sub_(self.least.to(numbers.device)).div_(width).to(dtype)
        return self._above_least(numbers).div_(width).to(dtype)

    def _above_least(self, numbers: Tensor) -> Tensor:
        """Return the distances to the lower bounds as float64, exact up to 2**53."""
        # float64 does not hold the numbers themselves; by halves, since a difference may overflow
        if numbers.dtype == torch.uint64:
            numbers = numbers.to(torch.int64) ^ -(2**63)  # wraps around: the same order, minus 2**63
        numbers = numbers.to(torch.int64)
        upper, lower = self.least_halves.to(numbers.device).unbind(0)
        distance: Tensor = ((numbers >> 32) - upper).double() * 2.0**32 + ((numbers & _LOWER_HALF) - lower).double()
        return distance


def scale_of(space: SpaceSpec) -> BoundsScale | None:
    """Return the scale of a Box; None if it has none but that of bytes, 0 .. 255."""
    return BoundsScale(space) if space.kind == "box" and space.low else None

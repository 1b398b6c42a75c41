"""Running statistics that observations and rewards are normalised by: buffers of the agent, which it carries along.

They are sums in float64, merged once per update over all ranks: it does not matter in what order, or on how many
ranks, the data were seen. A rollout and the update that trains on it see the statistics of the rollouts before it.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

_EPSILON = 1e-8
_BOUND = 10.0


class RunningMoments(nn.Module):
    """Mean and variance of all rows seen so far, entry by entry.

    Attributes:
        count: `[1]`, rows.
        total, squares: `[size]`, sums of the entries and of their squares.
    """

    def __init__(self, size: int) -> None:
        """Nothing seen: mean 0, variance 1."""
        super().__init__()
        for name, length in (("count", 1), ("total", size), ("squares", size)):
            self.register_buffer(name, torch.zeros(length, dtype=torch.float64))

    count: Tensor
    total: Tensor
    squares: Tensor

    @property
    def num_sums(self) -> int:
        """Length of what `sums` gives."""
        return 1 + 2 * len(self.total)

    def sums(self, rows: Tensor) -> Tensor:
        """What `absorb` adds for `rows [B, size]`: count, sums and sums of squares, `[1 + 2 * size]`."""
        rows = rows.double()
        return torch.cat([rows.new_full((1,), len(rows)), rows.sum(0), rows.square().sum(0)])

    def absorb(self, sums: Tensor) -> None:
        """Add the `sums` of further rows."""
        size = len(self.total)
        for buffer, part in zip((self.count, self.total, self.squares), sums.split([1, size, size]), strict=True):
            buffer += part.to(buffer)

    def mean_and_std(self) -> tuple[Tensor, Tensor]:
        """`[size]` each, float64; 0 and 1 before anything was seen."""
        if not self.count.item():
            return torch.zeros_like(self.total), torch.ones_like(self.total)
        mean = self.total / self.count
        return mean, (self.squares / self.count - mean.square()).clamp(min=0).add(_EPSILON).sqrt()

    def normalizer(self, dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
        """`rows [B, size] -> [B, size]`: less the mean, over the deviation, within +-10; as of now."""
        mean, std = (each.to(dtype) for each in self.mean_and_std())
        return lambda rows: ((rows - mean) / std).clamp_(-_BOUND, _BOUND)


class RewardScale(RunningMoments):
    """The deviation of discounted returns so far, which rewards are divided by; it keeps their sign and their zero.

    As in Gymnasium's `NormalizeReward`, but for when the statistics are renewed.
    """

    def __init__(self, gamma: float) -> None:
        """Discount with `gamma`."""
        super().__init__(1)
        self.gamma = gamma

    def scaled(self, rewards: Tensor) -> Tensor:
        """Rewards over the deviation, within +-10."""
        _, std = self.mean_and_std()
        return (rewards / std.to(rewards)).clamp_(-_BOUND, _BOUND)

    def discounted(self, rewards: Tensor, ended: Tensor, carried: Tensor) -> tuple[Tensor, Tensor]:
        """Returns so far of the episodes in progress, discounted, `[T, N]`, and those to carry on, `[N]`.

        Args:
            rewards: `[T, N]`.
            ended: `[T, N]`, where an episode ended.
            carried: `[N]`, from the rollout before.
        """
        so_far = []
        for reward, end in zip(rewards.double(), ended, strict=True):
            carried = self.gamma * carried + reward
            so_far.append(carried)
            carried = carried.masked_fill(end, 0.0)
        return torch.stack(so_far), carried

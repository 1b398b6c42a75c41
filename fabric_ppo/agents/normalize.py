"""Running statistics that observations and rewards are normalised by: buffers of the agent.

They are sums in float64, merged once per update over all ranks: neither the order in which the data
were seen nor the number of ranks matters. They change between updates only: a rollout and the
update that trains on it see the statistics of the rollouts before it.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

_EPSILON = 1e-8
_BOUND = 10.0


class RunningMoments(nn.Module):
    """Mean and variance of all rows seen so far, entry by entry.

    Attributes:
        count: `[1]`, rows.
        total, squares: `[size]`, sums of the entries and of their squares.
        mean, std: `[size]`, what follows from these sums; 0 and 1 before anything was seen.
    """

    fast_forms = frozenset({"array", "closed"})
    count: Tensor
    total: Tensor
    squares: Tensor
    mean: Tensor
    std: Tensor

    def __init__(self, size: int) -> None:
        """Nothing seen: mean 0, standard deviation 1."""
        super().__init__()
        for name, length in (("count", 1), ("total", size), ("squares", size)):
            self.register_buffer(name, torch.zeros(length, dtype=torch.float64))
        self.register_buffer("mean", torch.zeros(size, dtype=torch.float64), persistent=False)
        self.register_buffer("std", torch.ones(size, dtype=torch.float64), persistent=False)
        self.register_load_state_dict_post_hook(lambda module, _: module._derive())

    def sums(self, rows: Tensor) -> Tensor:
        """Return the sums that `update` adds for `rows [B, size]`: `[1 + 2 * size]` float64.

        The number of rows comes first, then the sums of the entries and of their squares.
        """
        rows = rows.double()
        return torch.cat([rows.new_full((1,), len(rows)), rows.sum(0), rows.square().sum(0)])

    @property
    def num_sums(self) -> int:
        """Length of the vectors of `sums`, `state` and `update`."""
        return 1 + 2 * len(self.total)

    def update(self, sums: Tensor) -> None:
        """Add the `sums` of further rows."""
        self.load_sums(self.all_sums() + sums.to(self.total))

    def all_sums(self) -> Tensor:
        """Return the sums over all rows so far, as `sums` has them."""
        return torch.cat([self.count, self.total, self.squares])

    def load_sums(self, sums: Tensor) -> None:
        """Take the place of statistics elsewhere whose `all_sums` these are."""
        size = len(self.total)
        parts = sums.split([1, size, size])
        for buffer, part in zip((self.count, self.total, self.squares), parts, strict=True):
            buffer.copy_(part)
        self._derive()

    def _derive(self) -> None:
        """Compute mean and standard deviation; without a branch on a value that a GPU holds."""
        has_seen, count = self.count > 0, self.count.clamp(min=1)
        mean = self.total / count
        variance = (self.squares / count - mean.square()).clamp(min=0)
        self.mean.copy_(mean)
        self.std.copy_(torch.where(has_seen, (variance + _EPSILON).sqrt(), torch.ones_like(mean)))

    def forward(self, rows: Tensor) -> Tensor:
        """Normalise `rows [B, size]`: less the mean, over the deviation, within +-10."""
        mean, std = self.mean.to(rows.dtype), self.std.to(rows.dtype)
        return ((rows - mean) / std).clamp_(-_BOUND, _BOUND)


class RewardScale(RunningMoments):
    """The deviation of discounted returns so far, which rewards are divided by.

    Rewards keep their sign and their zero. As in Gymnasium's `NormalizeReward`, but that the
    statistics change between updates only.
    """

    def __init__(self, gamma: float) -> None:
        """Discount with `gamma`."""
        super().__init__(1)
        self.gamma = gamma

    def forward(self, rewards: Tensor) -> Tensor:
        """Divide `rewards [...]` by the deviation; within +-10."""
        return (rewards / self.std.to(rewards)).clamp_(-_BOUND, _BOUND)

    def discounted(self, rewards: Tensor, ended: Tensor, carried: Tensor) -> tuple[Tensor, Tensor]:
        """Return the discounted returns so far of the episodes in progress, `[T, N]`.

        The second value, `[N]`, is to be carried on to the next rollout.

        Args:
            rewards: `[T, N]`.
            ended: `[T, N]`, true where an episode ended.
            carried: `[N]`, from the rollout before.
        """
        so_far = []
        for reward, end in zip(rewards.double(), ended, strict=True):
            carried = self.gamma * carried + reward
            so_far.append(carried)
            carried = carried.masked_fill(end, 0.0)
        return torch.stack(so_far), carried

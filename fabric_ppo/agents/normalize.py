"""Running statistics by which observations and rewards are normalised: buffers of the agent.

They are sums in float64, merged once per update over all ranks: neither the order of the data nor
the number of ranks matters. They change between updates only: a rollout and the update that trains
on it use the statistics of the rollouts before it.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

_EPSILON = 1e-8
"""Addend of the variance, so that an entry that never changes is not divided by 0."""
BOUND = 10.0
"""Largest absolute value of a normalised number."""


class RunningMoments(nn.Module):
    """Mean and standard deviation of all rows so far, for each of their entries.

    Attributes:
        count: `[1]`, number of rows.
        total, squares: `[size]`, sums of the entries and of their squares.
        mean, std: `[size]`, computed from these sums; 0 and 1 before the first row.
    """

    fast_forms = frozenset({"acting", "loss"})
    count: Tensor
    total: Tensor
    squares: Tensor
    mean: Tensor
    std: Tensor

    def __init__(self, size: int) -> None:
        """Start without rows: with mean 0 and standard deviation 1."""
        super().__init__()
        for name, length in (("count", 1), ("total", size), ("squares", size)):
            self.register_buffer(name, torch.zeros(length, dtype=torch.float64))
        # float32 or bfloat16 would lose rows once there are millions; mean and std follow from the
        # sums, so they are not saved
        self.register_buffer("mean", torch.zeros(size, dtype=torch.float64), persistent=False)
        self.register_buffer("std", torch.ones(size, dtype=torch.float64), persistent=False)
        self.register_load_state_dict_post_hook(lambda module, _: module._derive())

    def sums(self, rows: Tensor) -> Tensor:
        """Return the sums over `rows [B, size]` that `update` adds, `[1 + 2 * size]` float64.

        They are the number of rows, the sums of the entries, and the sums of their squares.
        """
        rows = rows.double()
        return torch.cat([rows.new_full((1,), len(rows)), rows.sum(0), rows.square().sum(0)])

    @property
    def num_sums(self) -> int:
        """Length of the vectors of `sums`, `all_sums` and `update`."""
        return 1 + 2 * len(self.total)

    def update(self, sums: Tensor) -> None:
        """Add the `sums` of further rows."""
        self.load_sums(self.all_sums() + sums.to(self.total))

    def all_sums(self) -> Tensor:
        """Return the sums over all rows so far, in the order of `sums`."""
        return torch.cat([self.count, self.total, self.squares])

    def load_sums(self, sums: Tensor) -> None:
        """Replace the sums by those that `all_sums` of other statistics returned."""
        size = len(self.total)
        parts = sums.split([1, size, size])
        for buffer, part in zip((self.count, self.total, self.squares), parts, strict=True):
            buffer.copy_(part)
        self._derive()

    def _derive(self) -> None:
        """Compute mean and standard deviation from the sums."""
        # no `if` on a count that may lie on a GPU: it would wait for the device
        has_seen, count = self.count > 0, self.count.clamp(min=1)
        mean = self.total / count
        variance = (self.squares / count - mean.square()).clamp(min=0)
        self.mean.copy_(mean)
        self.std.copy_(torch.where(has_seen, (variance + _EPSILON).sqrt(), torch.ones_like(mean)))

    def forward(self, rows: Tensor) -> Tensor:
        """Normalise `rows [B, size]`: `(rows - mean) / std`, clipped to +-10."""
        mean, std = self.mean.to(rows.dtype), self.std.to(rows.dtype)
        return ((rows - mean) / std).clamp_(-BOUND, BOUND)


class RewardScale(RunningMoments):
    """Standard deviation of the discounted returns so far, by which rewards are divided.

    Rewards keep their sign and their zero. It is Gymnasium's `NormalizeReward`, except that the
    statistics change between updates only.
    """

    def __init__(self, gamma: float) -> None:
        """Start without returns, which are to be discounted with `gamma`."""
        super().__init__(1)
        self.gamma = gamma

    def forward(self, rewards: Tensor) -> Tensor:
        """Divide `rewards [...]` by the standard deviation, and clip them to +-10."""
        return (rewards / self.std.to(rewards)).clamp_(-BOUND, BOUND)

    def discounted(self, rewards: Tensor, ended: Tensor, carried: Tensor) -> tuple[Tensor, Tensor]:
        """Return the discounted returns up to each step, `R[t] = r[t] + gamma * R[t - 1]`.

        Args:
            rewards: `[T, N]`.
            ended: `[T, N]`, true where an episode ended.
            carried: `[N]` float64, the second value that the rollout before returned.

        Returns:
            The returns `[T, N]` float64, and those of the episodes in progress at the end, `[N]`.
        """
        so_far = []
        for reward, end in zip(rewards.double(), ended, strict=True):
            carried = self.gamma * carried + reward
            so_far.append(carried)
            carried = carried.masked_fill(end, 0.0)
        return torch.stack(so_far), carried


class Normalizing(nn.Module):
    """A module with running statistics of observations and rewards.

    Attributes:
        obs_moments, critic_moments, reward_scale: the statistics; None where nothing is normalised
            by them.
    """

    obs_moments: RunningMoments | None
    critic_moments: RunningMoments | None
    reward_scale: RewardScale | None

    @property
    def _statistics(self) -> list[RunningMoments]:
        found = (self.obs_moments, self.critic_moments, self.reward_scale)
        return [each for each in found if each is not None]

    def _with_parts(self, sums: Tensor) -> Iterator[tuple[RunningMoments, Tensor]]:
        """Yield the statistics, each with its part of `sums [n]`."""
        own = self._statistics
        return zip(own, sums.split([each.num_sums for each in own]), strict=True)

    def statistics(self) -> Tensor:
        """Return the sums of the running statistics, `[n]` float64; empty where there are none."""
        sums = [each.all_sums() for each in self._statistics]
        return torch.cat(sums) if sums else torch.zeros(0, dtype=torch.float64)

    def load_statistics(self, sums: Tensor) -> None:
        """Take over the running statistics of another agent, from its `statistics`."""
        for each, part in self._with_parts(sums):
            each.load_sums(part)

    def update_statistics(self, sums: Tensor) -> None:
        """Add the observations and rewards of a rollout, as the sum of all ranks' `moments`."""
        for each, part in self._with_parts(sums):
            each.update(part)

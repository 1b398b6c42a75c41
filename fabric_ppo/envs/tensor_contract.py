"""Contract of environments that take and give PyTorch's tensors, on any device."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

from numpy.typing import NDArray
from torch import Tensor

from fabric_ppo.envs.contract import ArrayEnvs, PastEpisode, VectorEnvs

FinalPlace = Literal["next row", "given", "hidden"]
"""Where the final observation of an episode is: in the row after it, which is no transition; in the
output `final_obs`; or nowhere."""


class StepOutputs(NamedTuple):
    """Rows that a step of TensorEnvs is written into, on their device.

    Attributes:
        obs: `[N, ...]`, in the dtype of the observation space.
        rewards: `[N]` float32.
        terminated, truncated, valid: `[N]` bool, as in `ArrayEnvs.step`.
        final_obs: `[N, ...]`; where an episode ended, its final observation. Other rows are not
            read. None unless `TensorEnvs.finals` is `given`.
    """

    obs: Tensor
    rewards: Tensor
    terminated: Tensor
    truncated: Tensor
    valid: Tensor
    final_obs: Tensor | None


class TensorEnvs(VectorEnvs):
    """N environments that take and give tensors on their device.

    Attributes:
        finals: where the final observations of episodes are found. Where they are hidden, the value
            of the observation before stands for that of a final one.
        rows_per_game: environments that play one game together, as its agents; 1 for all others.
    """

    finals: FinalPlace = "next row"
    rows_per_game: int = 1

    @abstractmethod
    def reset(self, obs: Tensor) -> None:
        """Start every environment's first episode; see `ArrayEnvs.reset`."""

    @abstractmethod
    def begin(self, seeds: Sequence[int], obs: Tensor) -> None:
        """Start a test's episodes instead, one for each seed; write the first observations into `obs`."""

    @abstractmethod
    def step(self, actions: Tensor, outputs: StepOutputs) -> None:
        """Take one step in each environment.

        It waits for no device that it does not have to wait for; whether numbers are finite is
        looked at once a rollout.

        Args:
            actions: as the environments take them (`actions.TensorActionConverter`), `[N, *shape]`.
            outputs: written into; rows are those of `ArrayEnvs.step`, with `valid` false where
                `finals` is `next row` and an episode only begins.

        Raises:
            EnvironmentFault: an environment failed.
        """

    def carried(self) -> list[Tensor]:
        """Return all that a step reads of the steps before it, if a graph can record steps; else nothing.

        A graph can if, on a GPU, a step waits for no number, and nothing but these tensors changes.
        """
        return []

    def carry(self, tensors: Sequence[Tensor]) -> None:
        """Go on from other tensors, in the order of `carried`."""
        raise NotImplementedError

    def over(self, outputs: StepOutputs) -> Tensor:
        """Return where the last step ended an episode, or a whole game, `[N]` bool."""
        return outputs.terminated | outputs.truncated

    @property
    def can_render(self) -> bool:
        """False if it is known that there are no pictures."""
        return True

    def render(self) -> NDArray[Any]:
        """Return a picture of the first environment, `[height, width, 3]` uint8.

        Raises:
            NotImplementedError: there is none.
        """
        raise NotImplementedError

    @abstractmethod
    def rebuild(self, past: Sequence[PastEpisode], obs: Tensor, seconds: float = math.inf) -> list[str]:
        """Bring every environment's episode back to where it was; see `ArrayEnvs.rebuild`."""


Envs = ArrayEnvs | TensorEnvs
"""Environments of any backend."""

"""Check that an update ends with finite numbers; otherwise its starting weights are restored."""

from __future__ import annotations

import math

import torch
from torch import nn

from fabric_ppo.fast.written_for import ACTING, LOSS, edited, replaced
from fabric_ppo.ppo.update import UpdateStats
from fabric_ppo.process.errors import TrainingError
from fabric_ppo.run.snapshot import Copies

_FINITE = ("policy_loss", "value_loss", "entropy_loss", "approx_kl", "grad_norm")
_COMPUTING = tuple(dict.fromkeys((*LOSS, *ACTING)))
"""Files whose edits are detected: an edit is the most likely cause."""


class Guard:
    """Copy of the weights and running statistics that an update starts from.

    Attributes:
        kept: the copy, name -> tensor on the CPU; each update makes a new one.
    """

    def __init__(self, agent: nn.Module) -> None:
        """Copy the present weights."""
        self._agent = agent
        # the tensors themselves, which stay where they are while a run trains
        self._weights = agent.state_dict()
        self.kept = Copies(self._weights)

    def keep(self) -> None:
        """Copy the weights at the end of an update."""
        self.kept = Copies(self._weights)

    @torch.no_grad()
    def check(self, stats: UpdateStats, update: int) -> None:
        """Check that the losses of an update and the weights after it are finite.

        Args:
            stats: numbers of the update.
            update: updates before this one.

        Raises:
            TrainingError: they are not; the agent has the kept weights again.
        """
        broken = [name for name in _FINITE if not math.isfinite(getattr(stats, name))]
        weights = self._weights
        # one answer from the device for all tensors; which of them is broken matters only then
        if not bool(torch.cat([tensor.flatten() for tensor in weights.values()]).isfinite().all()):
            odd = {name for name, tensor in weights.items() if not bool(tensor.isfinite().all())}
            is_weight = bool(odd & dict(self._agent.named_parameters()).keys())
            broken.append("weights" if is_weight else "running statistics")
        if broken:
            self._agent.load_state_dict(self.kept)
            hints = [f"mend the edit of {name}" for name in edited(_COMPUTING)]
            hints += [f"mend what is replaced in {name}" for name in replaced(_COMPUTING)]
            if broken != ["running statistics"]:  # these come from observations, which no learning rate changes
                hints.append("lower --learning-rate, or normalize large observations or rewards?")
            hint = "; " * bool(hints) + ", or ".join(hints)
            raise TrainingError(f"update {update + 1}: {', '.join(broken)} not finite{hint}")

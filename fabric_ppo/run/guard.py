"""The guard of an update: it must end with finite numbers, or its beginning is restored."""

from __future__ import annotations

import math

import torch
from torch import nn

from fabric_ppo.ppo.update import UpdateStats
from fabric_ppo.process.errors import TrainingError

_FINITE = ("policy_loss", "value_loss", "entropy_loss", "approx_kl", "grad_norm")


class Guard:
    """The weights and running statistics that an update starts from.

    Attributes:
        kept: those, by name.
    """

    def __init__(self, agent: nn.Module) -> None:
        """Keep the weights as they are now."""
        self._agent = agent
        self.kept = {name: tensor.clone() for name, tensor in agent.state_dict().items()}

    def keep(self) -> None:
        """Keep the weights as they are now, at the end of an update."""
        for name, tensor in self._agent.state_dict().items():
            self.kept[name].copy_(tensor)

    @torch.no_grad()
    def check(self, stats: UpdateStats, update: int) -> None:
        """See that an update's losses, and the weights after it, are finite.

        Raises:
            TrainingError: they are not; the weights are those that were kept.
        """
        broken = [name for name in _FINITE if not math.isfinite(getattr(stats, name))]
        weights = self._agent.state_dict()
        if not bool(torch.cat([tensor.flatten() for tensor in weights.values()]).isfinite().all()):
            odd = {name for name, tensor in weights.items() if not bool(tensor.isfinite().all())}
            is_weight = bool(odd & dict(self._agent.named_parameters()).keys())
            broken.append("weights" if is_weight else "running statistics")
        if broken:
            self._agent.load_state_dict(self.kept)
            hint = "" if broken == ["running statistics"] else "; lower --learning-rate?"
            raise TrainingError(f"update {update + 1}: {', '.join(broken)} not finite{hint}")

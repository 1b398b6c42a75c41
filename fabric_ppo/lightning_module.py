"""The agent and its loss as a LightningModule."""

from __future__ import annotations

import torch
from lightning.pytorch import LightningModule

from fabric_ppo.agent import Agent
from fabric_ppo.batch import Rows
from fabric_ppo.config import Config
from fabric_ppo.loss import Losses
from fabric_ppo.update import make_optimizer, minibatch_loss


class PPOModule(LightningModule):
    """An agent that knows its loss and its optimizer.

    Called through Fabric's wrapper (`forward`), so that precision is applied and DDP sees the forward pass.
    """

    def __init__(self, agent: Agent, config: Config) -> None:
        """Wrap `agent`, which is trained in place."""
        super().__init__()
        self.agent = agent
        self.config = config

    def forward(self, rows: Rows) -> Losses:
        """See `training_step`."""
        return self.training_step(rows)

    def training_step(self, rows: Rows) -> Losses:
        """The PPO loss of a minibatch."""
        return minibatch_loss(self.agent, rows, self.config)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam."""
        return make_optimizer(self.agent, self.config)

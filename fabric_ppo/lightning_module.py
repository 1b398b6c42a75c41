"""What Lightning is given: the agent and its loss as a LightningModule, and a logger for Fabric."""

from __future__ import annotations

from collections.abc import Mapping

from lightning.fabric.loggers.tensorboard import TensorBoardLogger
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch import LightningModule
from torch import nn

from fabric_ppo.agent import Agent
from fabric_ppo.batch import Rows
from fabric_ppo.config import Config
from fabric_ppo.loggers import add_scalars
from fabric_ppo.loss import MinibatchLoss
from fabric_ppo.optimizer import ClippedAdam
from fabric_ppo.update import PPOLoss, make_optimizer


class PPOModule(LightningModule):
    """An agent that knows its loss and its optimizer.

    Called through Fabric's wrapper (`forward`), so that precision is applied and DDP sees the forward pass.
    """

    def __init__(self, agent: Agent, config: Config) -> None:
        """Take over the weights of `agent`, which goes on acting with them."""
        super().__init__()
        self.loss = PPOLoss(agent, config)
        self.config = config

    def forward(self, minibatch: Sealed) -> MinibatchLoss:
        """See `training_step`."""
        return self.training_step(minibatch.rows)

    def training_step(self, rows: Rows) -> MinibatchLoss:  # type: ignore[override]
        """The PPO loss of a minibatch."""
        loss: MinibatchLoss = self.loss(rows)
        return loss

    def configure_optimizers(self) -> ClippedAdam:
        """Adam, which clips gradients first."""
        return make_optimizer(self, self.config)


class Sealed:
    """Rows in a wrapping that Fabric does not look into: mixed precision would round what the networks learn from."""

    def __init__(self, rows: Rows) -> None:
        """Wrap `rows`."""
        self.rows = rows


class SealsRows(nn.Module):
    """What `Fabric.setup` made of a PPOModule, as a function of rows."""

    def __init__(self, ppo: nn.Module) -> None:
        """Wrap `ppo`."""
        super().__init__()
        self.ppo = ppo

    def forward(self, rows: Rows) -> MinibatchLoss:
        """The PPO loss of a minibatch."""
        loss: MinibatchLoss = self.ppo(Sealed(rows))
        return loss


class ScalarsLogger(TensorBoardLogger):
    """Fabric's TensorBoard logger, which writes what it is told at once as one event."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:  # type: ignore[override]
        """See `loggers.add_scalars`."""
        add_scalars(self.experiment, metrics, step)

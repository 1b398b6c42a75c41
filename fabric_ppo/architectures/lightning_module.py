"""The agent and its loss as Lightning has them: a LightningModule, and its call through Fabric."""

from __future__ import annotations

from lightning.pytorch import LightningModule
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from fabric_ppo.agents.agent import Agent
from fabric_ppo.config import Config
from fabric_ppo.fast.clipped_adam import ClippedAdam
from fabric_ppo.fast.loss_module import PPOLoss, make_optimizer
from fabric_ppo.ppo.batch import Rows
from fabric_ppo.ppo.loss import Coefficients, LossFn, MinibatchLoss


class _Minibatch:
    """Rows in a wrapping that Fabric does not look into.

    Mixed precision, which is for the networks, would round what they learn from.
    """

    def __init__(self, rows: Rows, coefs: Coefficients) -> None:
        self.rows, self.coefs = rows, coefs


class PPOModule(LightningModule):
    """An agent with its loss and its optimizer.

    Called through Fabric's wrapper (`forward`), so that precision is applied and DDP sees the
    forward pass.
    """

    def __init__(self, agent: Agent, config: Config) -> None:
        """Take over the weights of `agent`, which goes on acting with them."""
        super().__init__()
        self.loss = PPOLoss(agent, config)
        self.config = config

    def forward(self, minibatch: _Minibatch) -> MinibatchLoss:
        """See `training_step`."""
        return self.training_step(minibatch.rows, minibatch.coefs)

    def training_step(self, rows: Rows, coefs: Coefficients) -> MinibatchLoss:  # type: ignore[override]
        """Compute the PPO loss of a minibatch."""
        loss: MinibatchLoss = self.loss(rows, coefs)
        return loss

    def configure_optimizers(self) -> ClippedAdam:
        """Make Adam, which clips gradients first."""
        return make_optimizer(self, self.config)


def loss_through(wrapped: nn.Module) -> LossFn:
    """Return the loss of a minibatch, through the wrapper that `Fabric.setup` put around a PPOModule."""
    return lambda rows, coefs: wrapped(_Minibatch(rows, coefs))


def ddp_inside(wrapped: nn.Module) -> DistributedDataParallel | None:
    """Return DDP's wrapper inside of Fabric's; None where there is only one rank."""
    inside = (each for each in wrapped.modules() if isinstance(each, DistributedDataParallel))
    return next(inside, None)

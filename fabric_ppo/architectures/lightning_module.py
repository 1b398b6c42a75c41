"""The agent and its loss as a LightningModule, and calls of it through Fabric's wrapper."""

from __future__ import annotations

import torch
from lightning.pytorch import LightningModule
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from fabric_ppo.agents.agent import Agent
from fabric_ppo.config import Config
from fabric_ppo.fast.compiled_loss import LossWithGradient
from fabric_ppo.fast.loss_module import PPOLoss, make_optimizer
from fabric_ppo.ppo.batch import Rows
from fabric_ppo.ppo.loss import Coefficients, LossFn, MinibatchLoss
from fabric_ppo.ppo.returned import checked_optimizer


class _Minibatch:
    """Minibatch and coefficients as one argument of a type that Fabric does not convert.

    With mixed precision Fabric would round tensors among the arguments: returns and advantages too,
    not only the inputs of the networks.
    """

    def __init__(self, rows: Rows, coefs: Coefficients) -> None:
        self.rows, self.coefs = rows, coefs


class _Known:
    """A loss whose gradient is known, of a type that Fabric does not convert.

    Converted, it would be an ordinary tensor, whose backward pass takes twenty times as long.
    """

    def __init__(self, loss: MinibatchLoss) -> None:
        self.loss = loss


class PPOModule(LightningModule):
    """An agent with its loss and its optimizer.

    It is called through Fabric's wrapper, by `forward`, so that the precision is applied and DDP
    averages the gradients.
    """

    def __init__(self, agent: Agent, config: Config, prints: bool | None = None) -> None:
        """Make the loss of `agent`, which acts with the same weights; see `PPOLoss`."""
        super().__init__()
        self.loss = PPOLoss(agent, config, prints)
        self.config = config

    def forward(self, minibatch: _Minibatch) -> MinibatchLoss | _Known:
        """See `training_step`."""
        loss = self.training_step(minibatch.rows, minibatch.coefs)
        return _Known(loss) if isinstance(loss.loss, LossWithGradient) else loss

    def training_step(self, rows: Rows, coefs: Coefficients) -> MinibatchLoss:  # type: ignore[override]
        """Compute the PPO loss of a minibatch."""
        loss: MinibatchLoss = self.loss(rows, coefs)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Make the optimizer.

        Raises:
            ConfigError: `make_optimizer` has returned something else, which Fabric could not wrap, or
                an optimizer whose step needs a closure.
        """
        return checked_optimizer(make_optimizer(self, self.config))


def loss_through(wrapped: nn.Module) -> LossFn:
    """Return the loss as a function that calls a PPOModule through Fabric's wrapper."""

    def loss_fn(rows: Rows, coefs: Coefficients) -> MinibatchLoss:
        loss: MinibatchLoss | _Known = wrapped(_Minibatch(rows, coefs))
        return loss.loss if isinstance(loss, _Known) else loss

    return loss_fn


def ddp_inside(wrapped: nn.Module) -> DistributedDataParallel | None:
    """Return DDP's wrapper inside Fabric's; None where there is only one rank."""
    inside = (each for each in wrapped.modules() if isinstance(each, DistributedDataParallel))
    return next(inside, None)

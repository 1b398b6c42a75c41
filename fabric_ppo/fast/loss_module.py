"""The PPO loss as a module with one flat parameter; stands for `ppo.loss.minibatch_loss`."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from fabric_ppo.agents.agent import Agent
from fabric_ppo.config import Config
from fabric_ppo.fast.coefficient_tensors import CoefficientTensors, rest_of
from fabric_ppo.fast.compiled_agent import has_small_layers
from fabric_ppo.fast.compiled_convolutions import compile_convolutions
from fabric_ppo.fast.compiled_loss import CompiledLoss, has_compiled_loss, in_graph, mixes_precisions
from fabric_ppo.fast.flat_weights import FlatWeights
from fabric_ppo.fast.optimizers import named_optimizer
from fabric_ppo.fast.reasons import reasons_for_plain
from fabric_ppo.fast.twin import float64_twin, is_close, move_weights
from fabric_ppo.fast.written_for import LOSS
from fabric_ppo.ppo import loss as plain
from fabric_ppo.ppo.batch import Rows, blank_rows
from fabric_ppo.ppo.loss import Coefficients, Losses, MinibatchLoss
from fabric_ppo.ppo.returned import checked_minibatch_loss
from fabric_ppo.ppo.schedules import coefficients
from fabric_ppo.process.console import is_rank_zero, print_from_rank_zero, print_line
from fabric_ppo.process.launch import read_launch
from fabric_ppo.process.machine import why_no_compiler

_PRICE = (
    "with autograd: for small networks 2 to 6 times as slow as fast/compiled_loss.py; "
    "--compile gets a part of that back"
)


class PPOLoss(nn.Module):
    """The PPO loss of an agent, a module from a minibatch and coefficients to a MinibatchLoss.

    It is a compiled function where all parts of the agent declare that they can be compiled, else
    autograd's. Autograd's is also used, and a line is printed, where the code that the compiled
    function stands for has been edited, or where loss or gradient of the run's first minibatch
    differ by more than rounding.

    Attributes:
        weights: all weights of the agent, in one parameter.
    """

    def __init__(self, agent: Agent, config: Config, prints: bool | None = None) -> None:
        """Make the weights of `agent` one parameter; the agent acts with the same memory.

        Args:
            agent: what is trained.
            config: hyperparameters.
            prints: whether this rank prints that autograd's loss is used; None: rank 0 does.
        """
        super().__init__()
        self.weights = FlatWeights(agent)
        self._agent = (agent,)  # in a tuple, so that its weights are not registered twice
        self._config, self._is_alone = config, read_launch().world_size == 1
        self._prints = is_rank_zero() if prints is None else prints
        self._fast: CompiledLoss | None = None
        # not asked here: a module is moved to its device after it is made
        self._can_compile: bool | None = None
        self._is_fit: bool | None = None
        self._has_parts = True
        self._compiled: Callable[..., Any] | None = None
        self._compiled_with: Coefficients | None = None

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> PPOLoss:
        """See `nn.Module._apply`, which `.to(...)` calls to move or convert all tensors."""
        super()._apply(fn, recurse)
        # it refers to the weights' old memory
        self._fast = None
        return self

    def forward(self, rows: Rows, coefs: Coefficients) -> MinibatchLoss:
        """Compute the loss of a minibatch; `loss.backward()` gives the gradient of `weights`."""
        if self._compiled is not None and rest_of(coefs) == self._compiled_with:
            return MinibatchLoss(*self._compiled(coefs, *rows))
        fast = self._fast_loss(rows, coefs)
        if fast is None:
            return plain_loss(self.weights, rows, coefs)
        loss = fast(rows, coefs)
        if not self._has_parts:  # an edit of what is logged
            with torch.no_grad():
                loss = loss._replace(parts=plain_loss(self.weights, rows, coefs).parts)
        # DDP averages what passes through autograd
        return loss if self._is_alone else loss._replace(loss=in_graph(loss.loss))

    def _fast_loss(self, rows: Rows, coefs: Coefficients) -> CompiledLoss | None:
        """Return the compiled loss, checked on the run's first minibatch; None if unfit."""
        if self._is_fit is False or not rows.weights.is_cpu or mixes_precisions("cpu"):
            return None
        if self._is_fit and self._fast is not None:
            return self._fast
        # a share without rows holds no numbers to compare
        if self._is_fit is None and len(rows.weights) > 0:
            self._is_fit = self._can_stand_for(rows, coefs)
        if self._is_fit is False or not self.load_kernels():
            return None
        if self._fast is None:
            self._fast = CompiledLoss(self._agent[0], self.weights)
        return self._fast

    def _can_stand_for(self, rows: Rows, coefs: Coefficients) -> bool:
        """Return True if the compiled loss equals the plain one; print a line where a change is why not."""
        (agent,) = self._agent
        reasons = reasons_for_plain(agent, "loss", LOSS)
        if not reasons and self.load_kernels():
            is_equal, self._has_parts = losses_agree(agent, rows, coefs)
            if is_equal:
                return True
            reasons = ["edited or replaced: ppo/loss.py or agents/"]
        if self._prints and reasons and has_small_layers(agent):
            print_line(f"{'; '.join(reasons)}; training follows this code, {_PRICE}", sys.stderr)
        return False

    def load_kernels(self) -> bool:
        """Return whether the compiled loss may be used; load it, and compile what is missing, at the first call."""
        if self._can_compile is None:
            self._can_compile = has_compiled_loss(self._agent[0])
        return self._can_compile

    def compile_images(self) -> None:
        """Have the agent's networks for images use compiled convolutions."""
        compile_convolutions(self._agent[0])

    def compile_loss(self) -> None:
        """Compile autograd's loss with `torch.compile` at once, for minibatches of any size."""
        (agent,) = self._agent
        coefs = coefficients(self._config, 0, 1)
        tensors, self._compiled_with = CoefficientTensors(self.weights.flat), rest_of(coefs)

        def columns(coefs: Coefficients, *rows: Tensor) -> tuple[Tensor, ...]:
            return tuple(plain_loss(self.weights, Rows(*rows), coefs))

        function = torch.compile(columns, dynamic=True)

        def compiled(coefs: Coefficients, *rows: Tensor) -> tuple[Tensor, ...]:
            # a recorded step comes with tensors of its own
            is_put = torch.is_tensor(coefs.clip_coef)
            found: tuple[Tensor, ...] = function(coefs if is_put else tensors.put(coefs), *rows)
            return found

        self._compiled = compiled
        blank = blank_rows(agent, self._config.per_rank_batch_size)
        # compilation starts at the first call, that of the backward pass at the first gradient
        torch.autograd.grad(self(blank, coefs).loss, self.weights.flat)


def plain_loss(weights: FlatWeights, rows: Rows, coefs: Coefficients) -> MinibatchLoss:
    """Compute the loss of a minibatch as `ppo.loss.minibatch_loss` does, for gradients of `weights`.

    Raises:
        ConfigError: it has been edited or replaced, and does not return a loss.
    """
    found = weights.call(plain.minibatch_loss, rows, coefs)
    return checked_minibatch_loss(found, MinibatchLoss, len(Losses._fields) - 1)


def losses_agree(agent: Agent, rows: Rows, coefs: Coefficients) -> tuple[bool, bool]:
    """Return whether compiled function and autograd give the same loss and gradient, and the same logged parts.

    They are compared on a copy of the agent in float64, where rounding is small.
    """
    twin = float64_twin(agent)
    weights = FlatWeights(twin)
    fast = CompiledLoss(twin, weights)
    rows = Rows(*rows[:2], *(column.double() for column in rows[2:-1]))
    # with an entropy bonus also where there is none yet
    coefs = coefs._replace(ent_coef=coefs.ent_coef or 0.01)
    # in the first minibatch nothing is clipped, for its rows were collected with the present
    # weights: they are also moved to both sides of each bound. Not by a whole multiple, for of a
    # row that lies on a bound rounding decides
    near = (rows, _moved(rows, math.pi * coefs.clip_coef))
    agreed = [_agree(weights, fast, each, coefs) for each in near]
    move_weights(twin)
    of_losses, of_parts = zip(*agreed, _agree(weights, fast, _moved(rows, math.pi), coefs), strict=True)
    return all(of_losses), all(of_parts)


def _moved(rows: Rows, reach: float) -> Rows:
    """Return rows whose log-probabilities, values and returns are up to `reach` away."""
    sides = torch.linspace(-reach, reach, len(rows.weights)).to(rows.weights)
    return rows._replace(
        log_probs=rows.log_probs + sides,
        values=rows.values + sides.flip(0),
        returns=rows.returns + sides.roll(1),
    )


def _agree(weights: FlatWeights, fast: CompiledLoss, rows: Rows, coefs: Coefficients) -> tuple[bool, bool]:
    """Return whether both losses of a minibatch and their gradients are close, and whether their parts are."""
    exact, compiled = plain_loss(weights, rows, coefs), fast(rows, coefs)
    (expected,) = torch.autograd.grad(exact.loss, weights.flat)
    (grad,) = torch.autograd.grad(compiled.loss, weights.flat)
    are_close = [is_close(a.detach(), b.detach()) for a, b in zip(exact, compiled, strict=True)]
    return is_close(expected, grad) and are_close[0], are_close[1]


def compile_loss(loss: PPOLoss, config: Config) -> None:
    """Compile the loss before training time is measured, with `--compile` by PyTorch's compiler."""
    loss.compile_images()
    if not config.compile:
        loss.load_kernels()
        return
    if why := why_no_compiler():  # on a GPU --compile is of use without one, see `captured_step`
        print_from_rank_zero(f"--compile: {why}; the kernels of the loss are PyTorch's own")
        return
    started = time.perf_counter()
    if config.torch_deterministic:
        # `prepare_process` sets the mode in a way that does not load the compiler, nor reach it
        torch.use_deterministic_algorithms(True, warn_only=True)
    loss.compile_loss()
    print_from_rank_zero(f"--compile took {time.perf_counter() - started:.1f} s")


def make_optimizer(module: nn.Module, config: Config) -> torch.optim.Optimizer:
    """Make the optimizer of a module's parameters, that of `--optimizer`; any of PyTorch's will do."""
    return named_optimizer(module.parameters(), config)

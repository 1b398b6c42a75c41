"""The PPO loss with its gradient, compiled; stands for `ppo.loss.minibatch_loss`.

It is for agents made of small perceptrons, on the CPU. At PPO's usual sizes a gradient step does
little arithmetic and much bookkeeping: PyTorch starts some hundred small operations. Here they are
one function of `kernels.c`.
"""

from __future__ import annotations

import ctypes
import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils._pytree import tree_map_only

from fabric_ppo.agents.agent import Agent, declared_forms
from fabric_ppo.agents.mlp import linear_layers
from fabric_ppo.fast.compiled_agent import CompiledAgent, has_small_layers
from fabric_ppo.fast.flat_weights import FlatWeights, frozen_weights
from fabric_ppo.fast.kernels import CoefficientsStruct, Minibatch, kernels
from fabric_ppo.ppo.batch import Rows
from fabric_ppo.ppo.loss import Coefficients, Losses, MinibatchLoss

_NUM_PARTS = len(Losses._fields) - 1


def has_compiled_loss(agent: Agent) -> bool:
    """Return True if the loss of this agent can be a compiled one; it compiles what is missing."""
    # its gradient is that of all weights
    can = "loss" in declared_forms(agent) and has_small_layers(agent) and not frozen_weights(agent)
    # the first minibatch is compared in float64
    return can and all(kernels(dtype) is not None for dtype in (agent.dtype, torch.float64))


def mixes_precisions(device_type: str) -> bool:
    """Return True if autocast is on, which changes only operations that autograd records."""
    is_available = torch.amp.is_autocast_available(device_type)
    return is_available and torch.is_autocast_enabled(device_type)


class CompiledLoss:
    """The loss of an agent as a function of minibatches, while its weights keep their memory."""

    def __init__(self, agent: Agent, weights: FlatWeights) -> None:
        """Refer to the weights of an agent.

        Args:
            agent: one for which `has_compiled_loss` is true.
            weights: its weights; gradients flow to `weights.flat`.
        """
        self._flat, self._agent = weights.flat, agent
        self._compiled = CompiledAgent(agent, weights.flat.detach())
        # type and width of the columns in `Minibatch`, which C takes for granted
        is_gaussian, real = agent.log_std is not None, agent.dtype
        types = (self._compiled.obs_dtype or real, real if is_gaussian else torch.int64, *[real] * 5)
        size = math.prod(agent.distribution.action_shape)
        widths = (linear_layers(agent.trunk or agent.policy)[0].in_features, size, *[1] * 5)
        self._columns = list(zip(types, widths, strict=True))
        self._coefs, self._struct = Coefficients(0, 0, 0, False), CoefficientsStruct()
        library = kernels(agent.dtype)
        assert library is not None
        self._minibatch_loss = library.minibatch_loss

    def __call__(self, rows: Rows, coefs: Coefficients) -> MinibatchLoss:
        """Compute the loss of a minibatch, and its gradient."""
        count, flat = rows.weights.shape[0], self._flat
        obs = self._inputs(rows.obs) if self._compiled.obs_dtype is None else rows.obs
        columns = [obs, *rows[1:7]]
        for column, (dtype, width) in zip(columns, self._columns, strict=True):
            if column.dtype is not dtype or not column.is_contiguous() or column.numel() != count * width:
                columns = self._converted(columns, count)
                break
        if coefs is not self._coefs:
            numbers = (coefs.clip_coef, coefs.vf_coef, coefs.ent_coef)
            self._coefs, self._struct = coefs, CoefficientsStruct(*map(float, numbers), coefs.clip_vloss)
        gradient, parts = torch.empty_like(flat), torch.empty(_NUM_PARTS, dtype=torch.float64)
        value = self._minibatch_loss(
            self._compiled.pointer,
            ctypes.byref(Minibatch(count, *[column.data_ptr() for column in columns])),
            ctypes.byref(self._struct),
            gradient.data_ptr(),
            parts.data_ptr(),
        )
        # not torch.full, which refuses a number that the type of the weights has no room for
        loss = torch.tensor(value, dtype=torch.float64).to(flat.dtype)
        return MinibatchLoss(LossWithGradient.of(loss, flat, gradient), parts)

    @torch.no_grad()
    def _inputs(self, obs: Tensor) -> Tensor:
        return self._agent.inputs(obs)

    def _converted(self, columns: list[Tensor], count: int) -> list[Tensor]:
        """Return columns of the types and in the layout that C takes for granted.

        Raises:
            ValueError: they have different lengths.
        """
        if [each.numel() for each in columns] != [count * width for _, width in self._columns]:
            raise ValueError(f"the columns of Rows have different lengths: {[tuple(each.shape) for each in columns]}")
        return [each.to(dtype).contiguous() for each, (dtype, _) in zip(columns, self._columns, strict=True)]


class LossWithGradient(Tensor):
    """A loss whose gradient is known: `backward` stores it, without a pass of autograd.

    Such a pass takes a quarter as long as the loss. In any other use, such as a sum with a penalty,
    it is an ordinary tensor of autograd's graph.
    """

    _weights: nn.Parameter
    _gradient: Tensor | None

    @classmethod
    def of(cls, value: Tensor, weights: nn.Parameter, gradient: Tensor) -> LossWithGradient:
        """Make a loss with its gradient, `[n]`, by `weights`."""
        made: LossWithGradient = torch.Tensor._make_subclass(cls, value)
        made._weights, made._gradient = weights, gradient
        return made

    def backward(self, *args: Any, **options: Any) -> None:
        """See `torch.Tensor.backward`."""
        weights = self._weights
        # hooks belong to autograd
        if args or any(options.values()) or weights._backward_hooks or weights._post_accumulate_grad_hooks:
            in_graph(self).backward(*args, **options)
            return
        # what is stored may be changed in place, as by clipping
        gradient, self._gradient = _still_there(self._gradient), None
        weights.grad = gradient if weights.grad is None else weights.grad + gradient

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call a function of PyTorch with losses that are in autograd's graph."""
        args, kwargs = tree_map_only(LossWithGradient, in_graph, (args, kwargs or {}))
        return func(*args, **kwargs)


def in_graph(loss: Tensor) -> Tensor:
    """Return a LossWithGradient as a node of autograd's graph, as which DDP and other code needs it."""
    assert isinstance(loss, LossWithGradient)
    with torch._C.DisableTorchFunctionSubclass():
        value = loss.as_subclass(torch.Tensor)
    made: Tensor = _WithGradient.apply(loss._weights, value, loss._gradient)
    return made


def _still_there(gradient: Tensor | None) -> Tensor:
    """Return a gradient; raise a RuntimeError, as autograd does, if it was given away."""
    if gradient is None:
        raise RuntimeError("backward a second time through a loss: retain_graph=True the first time is expected")
    return gradient


class _WithGradient(torch.autograd.Function):
    """A loss whose gradient has been computed."""

    @staticmethod
    def forward(ctx: Any, weights: Tensor, loss: Tensor, gradient: Tensor | None) -> Tensor:
        ctx.gradient = gradient
        return loss.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor | None, ...]:
        return _still_there(ctx.gradient) * grad_loss, None, None

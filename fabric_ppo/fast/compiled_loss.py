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
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils._pytree import tree_map_only

from fabric_ppo.agents.agent import Agent, declared_forms
from fabric_ppo.fast.compiled_agent import CompiledAgent, has_small_layers
from fabric_ppo.fast.flat_weights import FlatWeights, frozen_weights
from fabric_ppo.fast.kernels import CoefficientsStruct, Minibatch, kernels
from fabric_ppo.ppo.batch import Rows
from fabric_ppo.ppo.loss import Coefficients, MinibatchLoss


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
        self.flat, self._agent, self._turn = weights.flat, agent, 0
        self._compiled = CompiledAgent(agent, weights.flat.detach())
        # type and width of the columns in `Minibatch`, which C takes for granted
        is_gaussian, real = agent.log_std is not None, agent.dtype
        self._types = (self._compiled.obs_dtype or real, real if is_gaussian else torch.int64, *[real] * 5)
        size = math.prod(agent.distribution.action_shape)
        self._widths = ((agent.trunk or agent.policy).linear_layers[0].in_features, size, *[1] * 5)
        self._coefs, self._struct = Coefficients(0, 0, 0, False), CoefficientsStruct()
        library = kernels(agent.dtype)
        assert library is not None
        self._minibatch_loss = library.minibatch_loss

    def __call__(self, rows: Rows, coefs: Coefficients) -> MinibatchLoss:
        """Compute the loss of a minibatch; `backward` may be called until the next call."""
        obs = rows.obs
        if self._compiled.obs_dtype is None:
            with torch.no_grad():
                obs = self._agent.inputs(obs)
        count = rows.weights.shape[0]
        columns = [
            (each if each.dtype is dtype else each.to(dtype)).contiguous()
            for each, dtype in zip((obs, *rows[1:7]), self._types, strict=True)
        ]
        if [each.numel() for each in columns] != [count * width for width in self._widths]:
            raise ValueError(f"the columns of Rows have different lengths: {[tuple(each.shape) for each in columns]}")
        minibatch = Minibatch(count, *[each.data_ptr() for each in columns])
        if coefs is not self._coefs:
            numbers = (coefs.clip_coef, coefs.vf_coef, coefs.ent_coef)
            self._coefs, self._struct = coefs, CoefficientsStruct(*map(float, numbers), coefs.clip_vloss)
        evaluation = self.flat.new_empty((3, count))
        loss = self._minibatch_loss(
            self._compiled.pointer, ctypes.byref(minibatch), ctypes.byref(self._struct), evaluation.data_ptr()
        )
        self._turn += 1
        value = torch.tensor(loss, dtype=self.flat.dtype)
        return MinibatchLoss(LossWithGradient.of(value, self, self._turn), *evaluation.unbind())

    def gradient(self, turn: int) -> Tensor:
        """Return the gradient of the loss of the call number `turn`, `[n]`.

        Raises:
            RuntimeError: a later call has overwritten it.
        """
        if turn != self._turn:
            raise RuntimeError("backward came too late: the gradient of this loss was modified by the next one")
        return self._compiled.gradient.clone()


class LossWithGradient(Tensor):
    """A loss whose gradient is known: `backward` stores it, without a pass of autograd.

    Such a pass takes a quarter as long as the loss. In any other use, such as a sum with a penalty,
    it is an ordinary tensor of autograd's graph.
    """

    _source: CompiledLoss
    _turn: int

    @classmethod
    def of(cls, value: Tensor, source: CompiledLoss, turn: int) -> LossWithGradient:
        """Make the loss of the call number `turn` of `source`."""
        made: LossWithGradient = torch.Tensor._make_subclass(cls, value)
        made._source, made._turn = source, turn
        return made

    def backward(self, *args: Any, **options: Any) -> None:
        """See `torch.Tensor.backward`."""
        weights = self._source.flat
        # hooks belong to autograd
        if args or any(options.values()) or weights._backward_hooks or weights._post_accumulate_grad_hooks:
            in_graph(self).backward(*args, **options)
            return
        gradient = self._source.gradient(self._turn)
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
    made: Tensor = _WithGradient.apply(loss._source.flat, value, loss._source, loss._turn)
    return made


class _WithGradient(torch.autograd.Function):
    """A loss whose gradient has been computed."""

    @staticmethod
    def forward(ctx: Any, weights: Tensor, loss: Tensor, source: CompiledLoss, turn: int) -> Tensor:
        ctx.source, ctx.turn = source, turn
        return loss.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor | None, ...]:
        return ctx.source.gradient(ctx.turn).mul_(grad_loss), None, None, None

"""Gradient clipping and an Adam step in as few kernels as possible.

It stands for `torch.nn.utils.clip_grad_norm_` followed by `torch.optim.Adam` (arXiv 1412.6980).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fabric_ppo.process.profile import timed


class ClippedAdam(torch.optim.Adam):
    """Adam whose step clips the gradient first: `clip_grad_norm_`, then `Adam(fused=True)`.

    The state is Adam's, under Adam's names. At PPO's usual sizes PyTorch's two calls spend several
    times as long on bookkeeping as on arithmetic: here the bookkeeping is done once. Nothing waits
    for the device.

    PyTorch's hooks before and after a step are called; its profiler does not see the step.
    """

    def __init__(self, params: Iterable[nn.Parameter], lr: float, eps: float, max_grad_norm: float) -> None:
        """Optimise `params`.

        Args:
            params: parameters; each must have a gradient in every step.
            lr, eps: Adam's.
            max_grad_norm: largest norm of the gradient; a longer one is scaled down to it.
        """
        super().__init__(params, lr=lr, eps=eps)
        self._max_grad_norm = max_grad_norm
        self._parts: list[_Part] = []

    def zero_grad(self, set_to_none: bool = True) -> None:
        """See `torch.optim.Optimizer.zero_grad`, which profiles and checks more."""
        if not set_to_none:
            super().zero_grad(set_to_none=False)
            return
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.grad = None

    @timed("optimizer")
    def step(self, closure: Callable[[], Any] | None = None) -> Tensor:  # type: ignore[override]
        """Clip all gradients together, in place, to the largest norm, and take one Adam step.

        Args:
            closure: recomputes the gradients, as in `torch.optim.Optimizer.step`.

        Returns:
            The norm before clipping, a scalar.
        """
        # Fabric and users may hook into steps; the wrapper is entered only when somebody does
        if self._optimizer_step_pre_hooks or self._optimizer_step_post_hooks:
            hooked: Any = torch.optim.Optimizer.profile_hook_step(type(self)._step)
            return hooked(self, closure)  # type: ignore[no-any-return]
        return self._step(closure)

    # keeps PyTorch from wrapping `step` for its profiler and for hooks, which are rarely there: the
    # wrapper takes as long as the kernels
    step.hooked = True  # type: ignore[attr-defined]

    @torch.no_grad()
    def _step(self, closure: Callable[[], Any] | None) -> Tensor:
        if closure is not None:
            with torch.enable_grad():
                closure()
        parts = self._initialize()
        grads = [grad for part in parts for grad in part.grads()]
        norm = _norm(grads)
        # the factor of clip_grad_norm_, min(max_norm / (norm + 1e-6), 1), from tensors: each Python
        # number would be converted to one in every step
        most, tiny, one = parts[0].constants
        scale = torch.minimum(most / (norm + tiny), one)
        for grad in grads:
            grad.mul_(scale)
        for part in parts:
            part.step()
        return norm

    # PyTorch wraps these three methods to hide them from its compiler, and loads the compiler for
    # that: unwrapped, they save a process seconds at its start
    add_param_group = inspect.unwrap(torch.optim.Optimizer.add_param_group)

    def state_dict(self) -> dict[str, Any]:
        """See `torch.optim.Optimizer.state_dict`; before the first step the state is zeros."""
        # a state that is always there has the same shape in every checkpoint and packet
        self._initialize()
        unwrapped: dict[str, Any] = inspect.unwrap(torch.optim.Optimizer.state_dict)(self)
        return unwrapped

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """See `torch.optim.Optimizer.load_state_dict`."""
        inspect.unwrap(torch.optim.Optimizer.load_state_dict)(self, state_dict)
        for parameter, state in self.state.items():
            # the fused kernel takes the count of steps as a float on the parameter's device
            state["step"] = state["step"].to(parameter.device, torch.float32)
        self._parts = []

    def _initialize(self) -> list[_Part]:
        """Return the parameter groups as `_Part`s."""
        # not in __init__: a module may be moved to its device after its optimizer is made
        self._parts = self._parts or [self._part(group) for group in self.param_groups]
        return self._parts

    def _part(self, group: dict[str, Any]) -> _Part:
        """Return a parameter group as a `_Part`, with a state of zeros where it has none."""
        params = group["params"]
        for each in params:
            if not self.state[each]:
                zero = torch.zeros((), device=each.device)
                self.state[each] = {
                    "step": zero,
                    "exp_avg": torch.zeros_like(each),
                    "exp_avg_sq": torch.zeros_like(each),
                }
        states = [self.state[each] for each in params]
        first, second, steps = ([state[name] for state in states] for name in ("exp_avg", "exp_avg_sq", "step"))
        numbers = (self._max_grad_norm, 1e-6, 1.0)
        constants = [torch.tensor(each, dtype=params[0].dtype, device=params[0].device) for each in numbers]
        return _Part(group, params, first, second, steps, constants)


@dataclass(frozen=True)
class _Part:
    """Parameter group with the tensors of its state, as PyTorch's kernels take them.

    Attributes:
        group: the group, with its learning rate, betas and epsilon.
        params, exp_avgs, exp_avg_sqs, steps: parameters, and the state of each.
        constants: largest norm, 1e-6 and 1 as scalars on the parameters' device.
    """

    group: dict[str, Any]
    params: list[nn.Parameter]
    exp_avgs: list[Tensor]
    exp_avg_sqs: list[Tensor]
    steps: list[Tensor]
    constants: list[Tensor]

    def grads(self) -> list[Tensor]:
        """Return the gradients of the parameters."""
        return [each.grad for each in self.params]  # type: ignore[misc]

    def step(self) -> None:
        """Take one Adam step with the gradients as they are."""
        # read anew in each step: schedules change the learning rate in the group
        group = self.group
        beta1, beta2 = group["betas"]
        torch._foreach_add_(self.steps, 1.0)
        torch._fused_adam_(
            self.params,  # type: ignore[arg-type]
            self.grads(),
            self.exp_avgs,
            self.exp_avg_sqs,
            [],
            self.steps,
            lr=group["lr"],
            beta1=beta1,
            beta2=beta2,
            weight_decay=0.0,
            eps=group["eps"],
            amsgrad=False,
            maximize=False,
        )


def _norm(grads: list[Tensor]) -> Tensor:
    """Compute the Euclidean norm of all gradients together, a scalar."""
    # as clip_grad_norm_ does: the norm of the norms
    norms: list[Tensor] = [torch.linalg.vector_norm(each) for each in grads]
    return norms[0] if len(norms) == 1 else _norm([torch.stack(norms)])

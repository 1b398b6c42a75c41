"""Adam behind a clip of the gradient's norm, in as few kernels as there can be.

It stands for `clip_grad_norm_` and `torch.optim.Adam`, one after the other.
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
    """`clip_grad_norm_` and then `torch.optim.Adam(fused=True)`, as one step.

    The state is Adam's, under Adam's names. Bookkeeping is saved: at PPO's usual sizes PyTorch's
    two calls take several times as long to find out what to do as to do it. Nothing waits for the
    device.

    PyTorch's hooks before and after a step are called; its profiler does not see the step.
    """

    def __init__(self, params: Iterable[nn.Parameter], lr: float, eps: float, max_grad_norm: float) -> None:
        """Take over `params`.

        Args:
            params: what is trained; each has a gradient in every step.
            lr, eps: Adam's.
            max_grad_norm: a longer gradient is scaled down to this norm.
        """
        super().__init__(params, lr=lr, eps=eps)
        self._max_grad_norm = max_grad_norm
        self._parts: list[_Part] = []

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients."""
        if not set_to_none:
            super().zero_grad(set_to_none=False)
            return
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.grad = None

    @timed("optimizer")
    def step(self, closure: Callable[[], Any] | None = None) -> Tensor:  # type: ignore[override]
        """Clip all gradients, in place, to the norm they may have together, and take one Adam step.

        Args:
            closure: computes the gradients anew, as `torch.optim.Optimizer.step` has it.

        Returns:
            The norm before clipping.
        """
        if self._optimizer_step_pre_hooks or self._optimizer_step_post_hooks:
            hooked: Any = torch.optim.Optimizer.profile_hook_step(type(self)._step)
            return hooked(self, closure)  # type: ignore[no-any-return]
        return self._step(closure)

    # so PyTorch does not wrap `step`, for its profiler and for hooks that are seldom there, which
    # costs as much as the kernels
    step.hooked = True  # type: ignore[attr-defined]

    @torch.no_grad()
    def _step(self, closure: Callable[[], Any] | None) -> Tensor:
        if closure is not None:
            with torch.enable_grad():
                closure()
        parts = self._initialize()
        grads = [grad for part in parts for grad in part.grads()]
        norm = _norm(grads)
        # clip_grad_norm_'s factor; of tensors, for a Python number costs each operation a conversion
        most, tiny, one = parts[0].constants
        scale = torch.minimum(most / (norm + tiny), one)
        for grad in grads:
            grad.mul_(scale)
        for part in parts:
            part.step()
        return norm

    # PyTorch hides these three from its compiler, and loads the compiler for it: without them it is
    # not loaded, which saves a process seconds at its start
    add_param_group = inspect.unwrap(torch.optim.Optimizer.add_param_group)

    def state_dict(self) -> dict[str, Any]:
        """See `torch.optim.Optimizer.state_dict`; with zeros before the first step."""
        self._initialize()
        unwrapped: dict[str, Any] = inspect.unwrap(torch.optim.Optimizer.state_dict)(self)
        return unwrapped

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """See `torch.optim.Optimizer.load_state_dict`."""
        inspect.unwrap(torch.optim.Optimizer.load_state_dict)(self, state_dict)
        for parameter, state in self.state.items():
            state["step"] = state["step"].to(parameter.device, torch.float32)  # as the kernel wants it
        self._parts = []

    def _initialize(self) -> list[_Part]:
        """Look up what a step needs; only now, for the parameters may have moved since the start."""
        self._parts = self._parts or [self._part(group) for group in self.param_groups]
        return self._parts

    def _part(self, group: dict[str, Any]) -> _Part:
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
    """A parameter group with the memory of its state at hand."""

    group: dict[str, Any]
    params: list[nn.Parameter]
    exp_avgs: list[Tensor]
    exp_avg_sqs: list[Tensor]
    steps: list[Tensor]
    constants: list[Tensor]

    def grads(self) -> list[Tensor]:
        """Return the gradients of its parameters."""
        return [each.grad for each in self.params]  # type: ignore[misc]

    def step(self) -> None:
        """Take one Adam step with the gradients as they are."""
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
    """Compute the Euclidean norm of all gradients together."""
    norms: list[Tensor] = [torch.linalg.vector_norm(each) for each in grads]
    return norms[0] if len(norms) == 1 else _norm([torch.stack(norms)])

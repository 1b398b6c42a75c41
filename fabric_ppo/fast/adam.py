"""An Adam step in one function or few kernels; stands for `torch.optim.Adam` (arXiv 1412.6980)."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from fabric_ppo.fast.kernels import kernels_for
from fabric_ppo.process.profile import timed


class LeanAdam(torch.optim.Adam):
    """Adam that takes the step of `Adam(fused=True)`, or with a weight decay that of `AdamW(fused=True)`.

    The state is Adam's, under Adam's names. At PPO's usual sizes PyTorch's own spends several times
    as long on bookkeeping as on arithmetic: here the bookkeeping is done once. Nothing waits for
    the device.

    PyTorch's hooks before and after a step are called; its profiler does not see the step.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        lr: float,
        eps: float,
        betas: tuple[float, float] = (0.9, 0.999),
        weight_decay: float = 0.0,
    ) -> None:
        """Optimise `params`.

        Args:
            params: parameters; each must have a gradient in every step.
            lr, eps, betas: Adam's.
            weight_decay: share of a parameter, times the learning rate, that a step takes off it
                (decoupled from the gradient: arXiv 1711.05101, algorithm 2).
        """
        super().__init__(params, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay)
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
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one Adam step; see `torch.optim.Optimizer.step`.

        Args:
            closure: recomputes the gradients.

        Returns:
            The value of the closure; None without one.
        """
        # Fabric and users may hook into steps; the wrapper is entered only when somebody does
        if self._optimizer_step_pre_hooks or self._optimizer_step_post_hooks:
            hooked: Any = torch.optim.Optimizer.profile_hook_step(type(self)._step)
            return hooked(self, closure)
        return self._step(closure)

    # keeps PyTorch from wrapping `step` for its profiler and for hooks, which are rarely there: the
    # wrapper takes as long as the kernels
    step.hooked = True  # type: ignore[attr-defined]

    def _step(self, closure: Callable[[], Any] | None) -> Any:
        value = None
        if closure is not None:
            with torch.enable_grad():
                value = closure()
        for part in self._initialize():
            part.step()
        return value

    def write_rates(self) -> None:
        """Write the learning rates of the groups into tensors, from which steps read them from now on.

        A recorded step has no other way to learn of a new rate.
        """
        for part in self._initialize():
            part.rates[:] = part.rates or [torch.zeros((), device=part.params[0].device)]
            part.rates[0].fill_(part.group["lr"])

    def tensors(self) -> list[Tensor]:
        """Return everything that a step changes: parameters, and their state."""
        parts = self._initialize()
        columns = [column for part in parts for column in (part.params, part.exp_avgs, part.exp_avg_sqs, part.steps)]
        return [each.detach() for column in columns for each in column]

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
        return _Part(group, params, first, second, steps)


@dataclass(frozen=True)
class _Part:
    """Parameter group with the tensors of its state, as PyTorch's kernels take them.

    Attributes:
        group: the group, with its learning rate, betas and epsilon.
        params, exp_avgs, exp_avg_sqs, steps: parameters, and the state of each.
        rates: the learning rate as a tensor, which stands for that of the group; empty for none.
    """

    group: dict[str, Any]
    params: list[nn.Parameter]
    exp_avgs: list[Tensor]
    exp_avg_sqs: list[Tensor]
    steps: list[Tensor]
    rates: list[Tensor] = field(default_factory=list)

    def step(self) -> None:
        """Take one Adam step with the gradients as they are."""
        # read anew in each step: schedules change the learning rate in the group
        group = self.group
        beta1, beta2 = group["betas"]
        if group["weight_decay"]:
            self._decay()
        library = kernels_for([*self.params, *self.exp_avgs, *self.exp_avg_sqs])
        if library is None or self.rates:
            self._fused_step()
            return
        for parameter, mean, square, step in zip(self.params, self.exp_avgs, self.exp_avg_sqs, self.steps, strict=True):
            grad = parameter.grad.contiguous()  # type: ignore[union-attr]
            places = [each.data_ptr() for each in (parameter, grad, mean, square)]
            library.adam(*places, grad.numel(), step.data_ptr(), group["lr"], beta1, beta2, group["eps"])

    @torch.no_grad()
    def _decay(self) -> None:
        """Take the decay off the parameters, as AdamW does before Adam's step."""
        rate = self.rates[0] if self.rates else self.group["lr"]
        torch._foreach_mul_(self.params, 1 - rate * self.group["weight_decay"])  # type: ignore[arg-type]

    @torch.no_grad()
    def _fused_step(self) -> None:
        """Take the step with PyTorch's kernels."""
        beta1, beta2 = self.group["betas"]
        torch._foreach_add_(self.steps, 1.0)
        torch._fused_adam_(
            self.params,  # type: ignore[arg-type]
            [each.grad for each in self.params],  # type: ignore[misc]
            self.exp_avgs,
            self.exp_avg_sqs,
            [],
            self.steps,
            lr=self.rates[0] if self.rates else self.group["lr"],
            beta1=beta1,
            beta2=beta2,
            weight_decay=0.0,
            eps=self.group["eps"],
            amsgrad=False,
            maximize=False,
        )

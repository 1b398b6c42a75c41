"""The weights of a module as one vector; stands for its separate parameters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from fabric_ppo.ppo.returned import checked_optimizer
from fabric_ppo.process.errors import ConfigError
from fabric_ppo.process.launch import read_launch

T = TypeVar("T")
_NO_HOOKS = (
    "a hook on the gradient of one of the agent's weights would not be called: a change of `.grad` in the script's "
    "step, after backward, is expected"
)


class WeightView(nn.Parameter):
    """A weight of a module whose memory is a part of `FlatWeights.flat`, and so is its gradient.

    An optimizer may hold it as any other parameter. What is computed from it with gradients, such as
    a penalty that a script adds to the loss, adds its own to that of `flat`. A copy of it is a tensor
    of its own.
    """

    _flat: nn.Parameter | None = None
    _place = slice(0)

    def link(self, flat: nn.Parameter, place: slice) -> None:
        """Refer to a part of a vector from now on."""
        self.data = flat.data[place].view(self.shape)
        if self._flat is None:
            super().requires_grad_(True)
            super().register_post_accumulate_grad_hook(WeightView._pass_on)
        self._flat, self._place = flat, place

    def _pass_on(self) -> None:
        """Add a gradient that autograd has stored here to that of `flat`."""
        stored: Any = torch.Tensor.grad
        own = stored.__get__(self)
        stored.__set__(self, None)
        if read_launch().world_size > 1:
            raise ConfigError(
                "a gradient of the agent's weights that does not pass through its loss is not averaged over ranks: "
                "a term of minibatch_loss in fabric_ppo/ppo/loss.py is expected, or one of ppo.parameters()"
            )
        before = self.grad
        self.grad = own if before is None else before + own

    def register_hook(self, hook: Callable[[Tensor], Any]) -> RemovableHandle:
        """Raise a ConfigError: the gradient of `flat` does not pass here."""
        raise ConfigError(_NO_HOOKS)

    def is_in(self, held: set[int]) -> bool:
        """Return True if it, or the vector that it is a part of, is among these identities."""
        return id(self) in held or id(self._flat) in held

    @property
    def requires_grad(self) -> bool:
        """True: it trains.

        Setting it to False raises a ConfigError: the vector is laid out already.
        """
        return True

    @requires_grad.setter
    def requires_grad(self, value: bool) -> None:
        self.requires_grad_(value)

    def requires_grad_(self, requires_grad: bool = True) -> WeightView:
        """Raise a ConfigError if this would freeze a weight that trains already."""
        if not requires_grad and self._flat is not None:
            raise ConfigError(
                "requires_grad_(False) comes too late for a weight that trains: "
                "before the agent's loss is made is expected, such as in make_agent of fabric_ppo/agents/make.py"
            )
        return self

    @property
    def grad(self) -> Tensor | None:
        """Its part of the gradient of `flat`; None where there is none."""
        whole = None if self._flat is None else self._flat.grad
        return None if whole is None else whole[self._place].view(self.shape)

    @grad.setter
    def grad(self, value: Tensor | None) -> None:
        if self._flat is None:
            return
        if value is None:
            self._flat.grad = None
            return
        if self._flat.grad is None:
            self._flat.grad = torch.zeros_like(self._flat)
        self._flat.grad[self._place] = value.flatten()


class _Caller(nn.Module):
    """A function of a module as a module itself, whose weights `functional_call` can take the place of."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, function: Callable[..., Any], *args: Any) -> Any:
        """Return `function(module, *args)`."""
        return function(self.module, *args)


class FlatWeights(nn.Module):
    """All weights of a module that train as one parameter; the module's own become views of it.

    Clipping is then one norm and Adam one kernel. DDP has one bucket with one hook, whose sums do
    not depend on the order in which gradients are ready. The module itself is not registered here:
    it acts with the same memory, and its `state_dict` keeps its names. A weight that requires no
    gradient is frozen: it stays as it is, and no optimizer sees it.

    Attributes:
        flat: the weights, `[n]`, in the order of the module's `named_parameters`.
    """

    def __init__(self, module: nn.Module) -> None:
        """Take over the weights of `module`.

        Raises:
            ConfigError: all of them are frozen, or one has a hook on its gradient.
        """
        super().__init__()
        # in tuples, so that they are not registered
        self._linked, self._caller = (module,), (_Caller(module),)
        named = {name: each for name, each in module.named_parameters() if is_trained(each)}
        if not named:
            raise ConfigError("all weights of the agent are frozen: one that requires a gradient is expected")
        self._shapes = {name: each.shape for name, each in named.items()}
        self._sizes = [each.numel() for each in named.values()]
        self.flat = nn.Parameter(torch.cat([each.detach().flatten() for each in named.values()]))
        for each in named.values():
            if not isinstance(each, WeightView):
                if each._backward_hooks or each._post_accumulate_grad_hooks:
                    raise ConfigError(_NO_HOOKS)
                # the object stays, for an optimizer may hold it already
                each.__class__ = WeightView
        self._link()

    @property
    def named_weights(self) -> dict[str, WeightView]:
        """Name -> weight of the module, of those that train."""
        return {name: each for name, each in self._linked[0].named_parameters() if isinstance(each, WeightView)}

    def _link(self) -> None:
        """Make the module's parameters views of `flat`."""
        end = 0
        for name, parameter in self.named_weights.items():
            start, end = end, end + parameter.numel()
            if parameter.device.type != self.flat.device.type == "meta":  # no object can go there
                owner, _, own_name = name.rpartition(".")
                parameter = WeightView(parameter.to("meta"))
                setattr(self._linked[0].get_submodule(owner), own_name, parameter)
            parameter.link(self.flat, slice(start, end))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> FlatWeights:
        """See `nn.Module._apply`, which `.to(...)` calls to move or convert all tensors."""
        super()._apply(fn, recurse)
        # `flat` has new memory, and the module, which is not registered, has not moved yet
        self._link()
        (linked,) = self._linked
        for parameter in linked.parameters():
            if not is_trained(parameter):
                parameter.data = fn(parameter.data)
        for module in linked.modules():
            for name, buffer in module.named_buffers(recurse=False):
                setattr(module, name, fn(buffer))
        return self

    def views(self, flat: Tensor) -> dict[str, Tensor]:
        """Return name -> view of its part of a vector like `flat`, in the parameter's shape."""
        parts = flat.split(self._sizes)
        named = zip(self._shapes.items(), parts, strict=True)
        return {name: part.view(shape) for (name, shape), part in named}

    def forward(self, *args: Any) -> Any:
        """Call the module so that gradients flow to `flat`."""
        # autograd sees the weights as views of one parameter
        (module,) = self._linked
        return torch.func.functional_call(module, self.views(self.flat), args)

    def call(self, function: Callable[..., T], *args: Any) -> T:
        """Return `function(module, *args)`, in which gradients of all that the module has flow to `flat`."""
        views = {f"module.{name}": view for name, view in self.views(self.flat).items()}
        called: T = torch.func.functional_call(self._caller[0], views, (function, *args))
        return called


def is_trained(parameter: nn.Parameter) -> bool:
    """Return True unless a parameter is frozen."""
    return parameter.requires_grad or isinstance(parameter, WeightView)


def frozen_weights(module: nn.Module) -> dict[str, nn.Parameter]:
    """Return name -> weight of a module, of those that are frozen."""
    return {name: each for name, each in module.named_parameters() if not is_trained(each)}


def untrained_state(module: nn.Module) -> dict[str, Tensor]:
    """Return name -> tensor of what a module's state has beside the weights that train: frozen ones and buffers."""
    trained = {name for name, each in module.named_parameters() if is_trained(each)}
    return {name: each for name, each in module.state_dict().items() if name not in trained}


def split_weights(module: nn.Module, prefix: str) -> tuple[list[WeightView], list[WeightView]]:
    """Return the weights that train and whose names begin with `prefix`, and the others.

    Args:
        module: one that holds a FlatWeights, such as `make_optimizer` gets.
        prefix: beginning of names in the agent's `state_dict`, such as `value.`.

    Raises:
        ConfigError: no name begins so.
    """
    flat = next(each for each in module.modules() if isinstance(each, FlatWeights))
    named = flat.named_weights
    chosen = [each for name, each in named.items() if name.startswith(prefix)]
    if not chosen:
        first = ", ".join(dict.fromkeys(name.partition(".")[0] for name in named))
        raise ConfigError(f"no weight's name begins with {prefix}: {first} are there")
    return chosen, [each for name, each in named.items() if not name.startswith(prefix)]


def require_all_held(optimizer: torch.optim.Optimizer, agent: nn.Module) -> None:
    """Check what `make_optimizer` has returned.

    Raises:
        ConfigError: it is no optimizer, its step needs a closure, or it does not hold all weights of
            the agent that train.
    """
    checked_optimizer(optimizer)
    held = {id(each) for group in optimizer.param_groups for each in group["params"]}
    weights = {name: each for name, each in agent.named_parameters() if isinstance(each, WeightView)}
    left_out = [name for name, each in weights.items() if not each.is_in(held)]
    if left_out:
        more = f" and {len(left_out) - 1} more" if len(left_out) > 1 else ""
        raise ConfigError(
            f"the optimizer does not hold {left_out[0]}{more} of the agent's {len(weights)} weights: "
            "module.parameters() in make_optimizer, or all of agent.parameters(), are expected; "
            "a weight that is not to be trained is frozen in make_agent, by requires_grad_(False)"
        )

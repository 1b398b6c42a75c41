"""The weights of a module as one vector; stands for its separate parameters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


class FlatWeights(nn.Module):
    """All weights of a module as one parameter; the module's own parameters become views of it.

    Clipping is then one norm and Adam one kernel. DDP has one bucket with one hook, whose sums do
    not depend on the order in which gradients are ready. The module itself is not registered here:
    it acts with the same memory, and its `state_dict` keeps its names.

    Attributes:
        flat: the weights, `[n]`, in the order of the module's `named_parameters`.
    """

    def __init__(self, module: nn.Module) -> None:
        """Take over the weights of `module`."""
        super().__init__()
        self._linked = (module,)  # in a tuple, so that it is not registered
        named = dict(module.named_parameters())
        self._names = list(named)
        self._shapes = [parameter.shape for parameter in named.values()]
        self._sizes = [parameter.numel() for parameter in named.values()]
        flattened = [parameter.detach().flatten() for parameter in named.values()]
        self.flat = nn.Parameter(torch.cat(flattened))
        self._link()

    def _link(self) -> None:
        """Make the module's parameters views of `flat`."""
        (module,) = self._linked
        for name, view in self.views(self.flat.data).items():
            owner, _, own_name = name.rpartition(".")
            # gradients are those of `flat`: a view with one of its own would hold a second copy
            parameter = nn.Parameter(view, requires_grad=False)
            setattr(module.get_submodule(owner), own_name, parameter)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> FlatWeights:
        """See `nn.Module._apply`, which `.to(...)` calls to move or convert all tensors."""
        super()._apply(fn, recurse)
        # `flat` has new memory, and the module, which is not registered, has not moved yet
        self._link()
        for module in self._linked[0].modules():
            for name, buffer in module.named_buffers(recurse=False):
                setattr(module, name, fn(buffer))
        return self

    def views(self, flat: Tensor) -> dict[str, Tensor]:
        """Return name -> view of its part of a vector like `flat`, in the parameter's shape."""
        parts = flat.split(self._sizes)
        named = zip(self._names, parts, self._shapes, strict=True)
        return {name: part.view(shape) for name, part, shape in named}

    def forward(self, *args: Any) -> Any:
        """Call the module so that gradients flow to `flat`."""
        # autograd sees the weights as views of one parameter
        (module,) = self._linked
        return torch.func.functional_call(module, self.views(self.flat), args)

"""All weights of a module as one vector."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


class FlatWeights(nn.Module):
    """All weights of a module as one parameter `flat`; the module's own become views of it.

    Clipping is then one norm, Adam one kernel, and DDP one bucket with one hook, whose sums do not
    depend on the order in which gradients come. The module itself is not registered here: it goes
    on acting with the same memory, and its `state_dict` keeps its names.
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
        self._gradient = torch.empty(0)
        self._gradient_views: dict[str, list[Tensor]] = {}
        self._link()

    def _link(self) -> None:
        (module,) = self._linked
        for name, view in self.views(self.flat.data).items():
            owner, _, own_name = name.rpartition(".")
            parameter = nn.Parameter(view, requires_grad=False)
            setattr(module.get_submodule(owner), own_name, parameter)
        self._gradient = torch.zeros_like(self.flat.data)
        self._gradient_views = {}
        for name, view in self.views(self._gradient).items():
            self._gradient_views.setdefault(name.split(".")[0], []).append(view)

    def gradient(self) -> tuple[Tensor, dict[str, list[Tensor]]]:
        """Return memory for a gradient written by hand, and its parts by submodule.

        The next gradient overwrites it.
        """
        return self._gradient, self._gradient_views

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> FlatWeights:
        """Move or convert; `.to(...)` gives `flat` new memory, and the views follow."""
        super()._apply(fn, recurse)
        self._link()
        for module in self._linked[0].modules():
            for name, buffer in module.named_buffers(recurse=False):
                setattr(module, name, fn(buffer))
        return self

    def views(self, flat: Tensor) -> dict[str, Tensor]:
        """Map the module's names to their parts of a vector like `flat`."""
        parts = flat.split(self._sizes)
        named = zip(self._names, parts, self._shapes, strict=True)
        return {name: part.view(shape) for name, part, shape in named}

    def forward(self, *args: Any) -> Any:
        """Call the module so that gradients reach `flat`."""
        (module,) = self._linked
        return torch.func.functional_call(module, self.views(self.flat), args)

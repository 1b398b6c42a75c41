"""Multi-layer perceptrons, and all weights of a module as one vector."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor, nn

Activation = Literal["relu", "tanh"]


class MLP(nn.Sequential):
    """Linear layers with activations between them."""

    def __init__(self, inputs: int, hidden_sizes: tuple[int, ...], outputs: int, activation: Activation) -> None:
        """Build the layers with PyTorch's own initialisation, from the global generator."""
        module = {"relu": nn.ReLU, "tanh": nn.Tanh}[activation]
        widths = [inputs, *hidden_sizes]
        hidden = [layer for n, m in pairwise(widths) for layer in (nn.Linear(n, m), module())]
        super().__init__(*hidden, nn.Linear(widths[-1], outputs))
        self.activation = activation
        self._linears = tuple(layer for layer in self if isinstance(layer, nn.Linear))

    @property
    def linear_layers(self) -> tuple[nn.Linear, ...]:
        """From the inputs to the outputs."""
        return self._linears

    @property
    def weights(self) -> list[Tensor]:
        """Weight and bias of each layer, from the inputs to the outputs."""
        return [tensor for layer in self._linears for tensor in (layer.weight, layer.bias)]

    def frozen(self) -> Callable[[Tensor], Tensor]:
        """`forward` without gradients, for as long as the weights stay as they are: the fast way, for few rows."""
        *hidden, last = [(layer.bias, layer.weight.t().contiguous()) for layer in self._linears]
        activate = torch.tanh_ if self.activation == "tanh" else torch.relu_

        def forward(features: Tensor) -> Tensor:
            for bias, weight in hidden:
                features = activate(torch.addmm(bias, features, weight))
            return torch.addmm(last[0], features, last[1])

        return forward

    def layer_values(self, features: Tensor) -> list[Tensor]:
        """Inputs of every layer, and then the outputs; without gradients."""
        values = [features]
        for layer in self._linears:
            value = torch.addmm(layer.bias, values[-1], layer.weight.t())
            if layer is not self._linears[-1]:
                value = value.tanh_() if self.activation == "tanh" else value.relu_()
            values.append(value)
        return values

    def backward_into(self, grads: Sequence[Tensor], values: list[Tensor], grad_out: Tensor) -> None:
        """Backpropagate `grad_out [B, outputs]`; write the gradient of each of `weights` into `grads`.

        `values` are those of `layer_values`. Neither they nor `grad_out` are changed.
        """
        grad = grad_out
        for index in range(len(self._linears) - 1, -1, -1):
            value = values[index]
            torch.mm(grad.t(), value, out=grads[2 * index])
            torch.sum(grad, 0, out=grads[2 * index + 1])
            if index > 0:
                grad = grad @ self._linears[index].weight
                # the derivative of the activation, from its own output
                if self.activation == "tanh":
                    grad.addcmul_(grad * value, value, value=-1)
                else:
                    grad.mul_(value > 0)


class FlatWeights(nn.Module):
    """All weights of a module as one parameter `flat`; the module's own become views of it.

    Clipping is then one norm, Adam one kernel, and DDP one bucket with one hook, whose sums do not depend on the
    order in which gradients come. The module itself is not registered here: it goes on acting with the same memory,
    and its `state_dict` keeps its names.
    """

    def __init__(self, module: nn.Module) -> None:
        """Take over the weights of `module`."""
        super().__init__()
        self._linked = (module,)  # in a tuple, so that it is not registered
        named = dict(module.named_parameters())
        self._names = list(named)
        self._shapes = [parameter.shape for parameter in named.values()]
        self._sizes = [parameter.numel() for parameter in named.values()]
        self.flat = nn.Parameter(torch.cat([parameter.detach().flatten() for parameter in named.values()]))
        self._gradient = torch.empty(0)
        self._gradient_views: dict[str, list[Tensor]] = {}
        self._link()

    def _link(self) -> None:
        (module,) = self._linked
        for name, view in self.views(self.flat.data).items():
            owner, _, own_name = name.rpartition(".")
            setattr(module.get_submodule(owner), own_name, nn.Parameter(view, requires_grad=False))
        self._gradient = torch.zeros_like(self.flat.data)
        self._gradient_views = {}
        for name, view in self.views(self._gradient).items():
            self._gradient_views.setdefault(name.split(".")[0], []).append(view)

    def gradient(self) -> tuple[Tensor, dict[str, list[Tensor]]]:
        """Memory for a gradient written by hand, and its parts by submodule; overwritten by the next one."""
        return self._gradient, self._gradient_views

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> FlatWeights:
        """`.to(...)` gives `flat` new memory: the views follow."""
        super()._apply(fn, recurse)
        self._link()
        return self

    def views(self, flat: Tensor) -> dict[str, Tensor]:
        """The module's names -> their parts of a vector like `flat`."""
        parts = flat.split(self._sizes)
        return {name: part.view(shape) for name, part, shape in zip(self._names, parts, self._shapes, strict=True)}

    def forward(self, *args: Any) -> Any:
        """Call the module so that gradients reach `flat`."""
        (module,) = self._linked
        return torch.func.functional_call(module, self.views(self.flat), args)

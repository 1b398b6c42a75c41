"""Multi-layer perceptrons, and all weights of a module as one vector."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

Activation = Literal["relu", "tanh"]
Array = NDArray[Any]

ROWS_AT_A_TIME = 8
"""Few rows round differently from many: batches that act are padded to a multiple of this."""
MANY_ROWS = 1024
"""Rows from which the transposed product is the faster one for a narrow gradient of weights: a fifth of the time for
8 inputs and 64 outputs. It rounds differently."""
_SMALL = 2**15
"""Weights of a layer up to which its product with eight rows is left to one thread by OpenBLAS, which NumPy calls."""


class Tanh(nn.Tanh):
    """Tanh, on the CPU without gradients by way of `exp`: a third of the time of PyTorch's, exact to two roundings."""

    def forward(self, features: Tensor) -> Tensor:
        """Same shape."""
        if torch.is_grad_enabled() or not _has_exact_exp(features):
            return super().forward(features)
        # tanh x = 2 sigmoid 2x - 1
        return (features * 2).sigmoid_().mul_(2).sub_(1)


def _has_exact_exp(values: Tensor) -> bool:
    """Whether `exp` of these is exact to the last place but one."""
    return values.device.type == "cpu" and values.dtype in (torch.float32, torch.float64)


class MLP(nn.Sequential):
    """Linear layers with activations between them, and if wanted a layer norm before each activation."""

    def __init__(
        self,
        inputs: int,
        hidden_sizes: tuple[int, ...],
        outputs: int,
        activation: Activation,
        layer_norm: bool = False,
    ) -> None:
        """Build the layers with PyTorch's own initialisation, from the global generator; 0 outputs: hidden layers only.

        Layer norm is that of arXiv 1607.06450.
        """
        module = {"relu": nn.ReLU, "tanh": Tanh}[activation]
        widths = [inputs, *hidden_sizes]
        layers: list[nn.Module] = []
        for n, m in pairwise(widths):
            layers += [nn.Linear(n, m), *([nn.LayerNorm(m)] if layer_norm else []), module()]
        super().__init__(*layers, *([nn.Linear(widths[-1], outputs)] if outputs else []))
        self.activation = activation
        self.num_hidden = len(hidden_sizes)
        self.has_layer_norm = layer_norm
        self._linears = tuple(layer for layer in self if isinstance(layer, nn.Linear))

    @property
    def linear_layers(self) -> tuple[nn.Linear, ...]:
        """From the inputs to the outputs."""
        return self._linears

    @property
    def weights(self) -> list[Tensor]:
        """Weight and bias of each layer, from the inputs to the outputs."""
        return [tensor for layer in self._linears for tensor in (layer.weight, layer.bias)]

    @property
    def is_small(self) -> bool:
        """Whether its products are so small that what it costs to start one counts: then `frozen` is for it."""
        weights = [layer.weight for layer in self._linears]
        is_on_cpu = weights[0].device.type == "cpu" and weights[0].dtype in (torch.float32, torch.float64)
        return is_on_cpu and not self.has_layer_norm and all(weight.numel() <= _SMALL for weight in weights)

    def frozen(self) -> Callable[[Array], Array]:
        """`forward` for arrays of rows `[8 k, inputs]`, while the weights stay as they are: the fast way for few rows.

        NumPy starts a small product in half the time that PyTorch takes. By eights, rows round the same way however
        many there are, and wherever they stand.
        """
        layers = [
            (np.ascontiguousarray(layer.weight.detach().t().numpy()), layer.bias.detach().numpy(), k < self.num_hidden)
            for k, layer in enumerate(self._linears)
        ]
        is_tanh = self.activation == "tanh"

        def forward(features: Array) -> Array:
            values = features.reshape(-1, ROWS_AT_A_TIME, features.shape[-1])
            for weight, bias, is_hidden in layers:
                values = np.matmul(values, weight)
                values += bias
                if is_hidden and is_tanh:
                    np.tanh(values, out=values)
                elif is_hidden:
                    np.maximum(values, 0, out=values)
            return values.reshape(len(features), -1)

        return forward

    def closed_form(self) -> ClosedForm:
        """Forward and backward pass written out, for as long as the weights keep their memory."""
        return ClosedForm(self)


class ClosedForm:
    """A perceptron's forward and backward pass without autograd, in as few kernels and as little memory as it takes.

    It reads the weights of an MLP in place. What lies between the layers is kept in memory of its own, which the next
    pass overwrites.
    """

    def __init__(self, network: MLP) -> None:
        """Look up the weights of `network`."""
        linears = network.linear_layers
        self._tanh, self._num_hidden = network.activation == "tanh", network.num_hidden
        self._layers = [(layer.bias.detach(), layer.weight.detach(), layer.weight.detach().t()) for layer in linears]
        weight = self._layers[0][1]
        self._memory = weight.new_empty(0)
        self._between: dict[int, list[tuple[Tensor, Tensor]]] = {}
        self._minus_one = torch.tensor(-1.0, dtype=weight.dtype, device=weight.device)
        self._by_sigmoid = _has_exact_exp(weight)

    def _buffers(self, rows: int) -> list[tuple[Tensor, Tensor]]:
        """For each hidden layer memory for its values and for their gradients, both `[rows, width]`."""
        if rows not in self._between:
            widths = [weight.shape[0] for _, weight, _ in self._layers[: self._num_hidden]]
            if self._memory.numel() < 2 * rows * sum(widths):
                self._memory = self._memory.new_empty(2 * rows * sum(widths))
                self._between = {}
            twice = [width for width in widths for _ in ("values", "gradients")]
            parts = self._memory[: rows * sum(twice)].split([rows * width for width in twice])
            views = [part.view(rows, width) for part, width in zip(parts, twice, strict=True)]
            self._between[rows] = list(zip(views[::2], views[1::2], strict=True))
        return self._between[rows]

    def layer_values(self, features: Tensor) -> list[Tensor]:
        """Inputs of every layer, and then the outputs, new memory unless all layers are hidden; without gradients."""
        values = [features]
        for (bias, _, weight), (value, _) in zip(self._layers, self._buffers(len(features)), strict=False):
            if not self._tanh:
                torch.addmm(bias, values[-1], weight, out=value).relu_()
            elif self._by_sigmoid:
                # as Tanh does
                torch.addmm(bias, values[-1], weight, alpha=2, beta=2, out=value).sigmoid_()
                torch.add(self._minus_one, value, alpha=2, out=value)
            else:
                torch.addmm(bias, values[-1], weight, out=value).tanh_()
            values.append(value)
        for bias, _, weight in self._layers[self._num_hidden :]:
            values.append(torch.addmm(bias, values[-1], weight))
        return values

    def backward_into(self, grads: Sequence[Tensor], values: list[Tensor], grad_out: Tensor) -> Tensor:
        """Backpropagate `grad_out [B, outputs]`; write the gradient of each of `MLP.weights` into `grads`.

        `values` are those of `layer_values`. Neither they nor `grad_out` are changed.

        Returns:
            The gradient with respect to the first layer's sums, for `grad_features`; the next pass overwrites it.
        """
        grad, buffers = grad_out, self._buffers(len(grad_out))
        for index in range(len(self._layers) - 1, -1, -1):
            if index < self._num_hidden:
                grad = self._through_activation(grad, values[index + 1], buffers[index][1])
            value = values[index]
            weight_grad = grads[2 * index]
            if len(value) >= MANY_ROWS and 2 * weight_grad.shape[1] <= weight_grad.shape[0]:
                weight_grad.copy_(torch.mm(value.t(), grad).t())
            else:
                torch.mm(grad.t(), value, out=weight_grad)
            torch.sum(grad, 0, out=grads[2 * index + 1])
            if index > 0:
                grad = torch.mm(grad, self._layers[index][1], out=buffers[index - 1][1])
        return grad

    def grad_features(self, grad_sums: Tensor) -> Tensor:
        """The gradient with respect to the features, `[B, inputs]`, from what `backward_into` returned."""
        return torch.mm(grad_sums, self._layers[0][1])

    def _through_activation(self, grad: Tensor, value: Tensor, into: Tensor) -> Tensor:
        """The gradient before an activation, whose derivative follows from its own output `value`."""
        if self._tanh:
            return torch.ops.aten.tanh_backward.grad_input(grad, value, grad_input=into)  # type: ignore[no-any-return]
        return torch.ops.aten.threshold_backward.grad_input(grad, value, 0, grad_input=into)  # type: ignore[no-any-return]


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
        for module in self._linked[0].modules():
            for name, buffer in module.named_buffers(recurse=False):
                setattr(module, name, fn(buffer))
        return self

    def views(self, flat: Tensor) -> dict[str, Tensor]:
        """The module's names -> their parts of a vector like `flat`."""
        parts = flat.split(self._sizes)
        return {name: part.view(shape) for name, part, shape in zip(self._names, parts, self._shapes, strict=True)}

    def forward(self, *args: Any) -> Any:
        """Call the module so that gradients reach `flat`."""
        (module,) = self._linked
        return torch.func.functional_call(module, self.views(self.flat), args)

"""Forward and backward pass of a perceptron without autograd; stands for `agents.mlp.MLP`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fabric_ppo.agents.mlp import MLP, has_exact_exp

MANY_ROWS = 1024
"""Number of rows from which a layer with few inputs computes its weights' gradient transposed.

For 8 inputs and 64 outputs that takes a fifth of the time; it rounds differently.
"""


class ClosedForm:
    """Both passes of an MLP in few kernels and little memory.

    It reads the weights in place, so it is valid while they keep their memory. Values between the
    layers are kept in buffers, which the next pass overwrites.
    """

    def __init__(self, network: MLP) -> None:
        """Refer to the weights of `network`."""
        self._tanh, self._num_hidden = network.activation == "tanh", network.num_hidden
        self._layers = [
            (layer.bias.detach(), layer.weight.detach(), layer.weight.detach().t()) for layer in network.linear_layers
        ]
        weight = self._layers[0][1]
        self._memory = weight.new_empty(0)
        self._between: dict[int, list[tuple[Tensor, Tensor]]] = {}
        self._minus_one = torch.tensor(-1.0, dtype=weight.dtype, device=weight.device)
        self._by_sigmoid = has_exact_exp(weight)

    def _buffers(self, rows: int) -> list[tuple[Tensor, Tensor]]:
        """Return buffers for values and gradients of each hidden layer, `[rows, width]` each."""
        # minibatches have one or two sizes, which share one piece of memory
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
        """Return the inputs of every layer and then the outputs, `[B, width]` each.

        The outputs of a network with an output layer are new memory; all else is overwritten by the
        next pass.
        """
        values = [features]
        buffers = self._buffers(len(features))
        for (bias, _, weight), (value, _) in zip(self._layers, buffers, strict=False):
            if not self._tanh:
                torch.addmm(bias, values[-1], weight, out=value).relu_()
            elif self._by_sigmoid:
                # tanh x = 2 sigmoid 2x - 1, as in agents.mlp.Tanh; addmm computes 2x at no cost
                torch.addmm(bias, values[-1], weight, alpha=2, beta=2, out=value).sigmoid_()
                torch.add(self._minus_one, value, alpha=2, out=value)
            else:
                torch.addmm(bias, values[-1], weight, out=value).tanh_()
            values.append(value)
        for bias, _, weight in self._layers[self._num_hidden :]:
            values.append(torch.addmm(bias, values[-1], weight))
        return values

    def backward_into(self, grads: Sequence[Tensor], values: list[Tensor], grad_out: Tensor) -> Tensor:
        """Backpropagate `grad_out`, and write the gradients of the weights into `grads`.

        Args:
            grads: where to write, weight and bias of each layer, from the inputs to the outputs.
            values: what `layer_values` returned; it is not changed.
            grad_out: gradient with respect to the outputs, `[B, outputs]`; it is not changed.

        Returns:
            The gradient with respect to the first layer's pre-activations `W x + b`, for
            `grad_features`; the next pass overwrites it.
        """
        grad, buffers = grad_out, self._buffers(len(grad_out))
        for index in range(len(self._layers) - 1, -1, -1):
            if index < self._num_hidden:
                grad = self._through_activation(grad, values[index + 1], buffers[index][1])
            value = values[index]
            weight_grad = grads[2 * index]
            # with pre-activations s = x W^T + b and their gradient g: dL/dW = g^T x, the sum of the
            # rows' outer products
            if len(value) >= MANY_ROWS and 2 * weight_grad.shape[1] <= weight_grad.shape[0]:
                weight_grad.copy_(torch.mm(value.t(), grad).t())
            else:
                torch.mm(grad.t(), value, out=weight_grad)
            # dL/db = sum of g over rows, and dL/dx = g W, the gradient for the layer before
            torch.sum(grad, 0, out=grads[2 * index + 1])
            if index > 0:
                grad = torch.mm(grad, self._layers[index][1], out=buffers[index - 1][1])
        return grad

    def grad_features(self, grad_sums: Tensor) -> Tensor:
        """Return the gradient with respect to the features, `[B, inputs]`.

        Args:
            grad_sums: what `backward_into` returned.
        """
        return torch.mm(grad_sums, self._layers[0][1])

    def _through_activation(self, grad: Tensor, value: Tensor, into: Tensor) -> Tensor:
        """Backpropagate through an activation; return the gradient before it, written to `into`.

        Args:
            grad: gradient with respect to the activation's output.
            value: the activation's output, `[B, width]`.
            into: where to write, `[B, width]`.
        """
        # both derivatives are functions of the output y: 1 - y^2 of tanh, [y > 0] of the rectifier
        aten = torch.ops.aten
        if self._tanh:
            return aten.tanh_backward.grad_input(grad, value, grad_input=into)  # type: ignore[no-any-return]
        return aten.threshold_backward.grad_input(grad, value, 0, grad_input=into)  # type: ignore[no-any-return]

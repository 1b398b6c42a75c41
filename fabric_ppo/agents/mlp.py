"""Multi-layer perceptrons."""

from __future__ import annotations

from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn

Activation = Literal["relu", "tanh"]

ROW_MULTIPLE = 16
"""Multiple to which batches that act are padded: a product of fewer rows rounds differently.

From 16 rows on, PyTorch's matrix products give a row the same bits however many other rows there
are. With AVX2 8 rows are enough, with AVX-512 they are not.
"""


_NARROW = 16
"""Outputs of a layer up to which a row's bits can depend on where it lies."""


class Tanh(nn.Tanh):
    """Tanh, on the CPU without gradients computed from `exp`.

    This takes a third of the time of PyTorch's tanh, and is exact to two roundings.
    """

    def forward(self, features: Tensor) -> Tensor:
        """Return the elementwise tanh of `features`."""
        if torch.is_grad_enabled() or not has_exact_exp(features):
            return super().forward(features)
        # tanh x = 2 sigmoid 2x - 1
        return (features * 2).sigmoid_().mul_(2).sub_(1)


class Linear(nn.Linear):
    """A linear layer that gives a row the same bits in any batch that acts.

    With few outputs, and inputs that are no multiple of 16 bytes, the rounding of PyTorch's products
    depends on where in memory a row lies (MKL on AMD's Zen 5); that of the transposed ones does not.
    """

    def forward(self, features: Tensor) -> Tensor:
        """Return the outputs for `features [B, n]`, `[B, m]`."""
        is_right = self.out_features > _NARROW or self.in_features * features.element_size() % 16 == 0
        # what is recorded keeps the layer as it is
        if is_right or torch.is_grad_enabled() or features.ndim != 2 or is_recorded():
            return super().forward(features)
        return torch.addmm(self.bias.unsqueeze(-1), self.weight, features.t()).t()


def is_recorded() -> bool:
    """Return True while a network is recorded, for a batch of any size, and not computed."""
    return torch.jit.is_tracing() or torch.compiler.is_compiling()  # type: ignore[attr-defined]


def has_exact_exp(values: Tensor) -> bool:
    """Return True if PyTorch's `exp` is exact to the last place but one on this device and type."""
    return values.device.type == "cpu" and values.dtype in (torch.float32, torch.float64)


def linear_layers(network: nn.Module) -> list[nn.Linear]:
    """Return the linear layers of a network, in the order in which it registered them."""
    return [layer for layer in network.modules() if isinstance(layer, nn.Linear)]


class MLP(nn.Sequential):
    """Linear layers with activations between them, optionally with a layer norm before each."""

    def __init__(
        self,
        inputs: int,
        hidden_sizes: tuple[int, ...],
        outputs: int,
        activation: Activation,
        layer_norm: bool = False,
    ) -> None:
        """Build the layers with PyTorch's own initialisation, from the global generator.

        Args:
            inputs: width of the features.
            hidden_sizes: widths of the hidden layers.
            outputs: width of the last linear layer; 0: hidden layers only.
            activation: after each hidden layer.
            layer_norm: normalise each hidden layer (arXiv 1607.06450) before its activation.
        """
        module = {"relu": nn.ReLU, "tanh": Tanh}[activation]
        widths = [inputs, *hidden_sizes]
        layers: list[nn.Module] = []
        for n, m in pairwise(widths):
            layers += [Linear(n, m), *([nn.LayerNorm(m)] if layer_norm else []), module()]
        if outputs:
            layers.append(Linear(widths[-1], outputs))
        super().__init__(*layers)
        self.activation = activation
        self.num_hidden = len(hidden_sizes)

    @property
    def linear_layers(self) -> list[nn.Linear]:
        """Linear layers from the inputs to the outputs."""
        return linear_layers(self)

    @property
    def fast_forms(self) -> frozenset[str]:
        """Fast forms that it has; see `Agent.parts`."""
        # they are written for these layers only: not for a layer norm, nor for a subclass
        is_known = all(type(layer) in (nn.Linear, Linear, nn.ReLU, Tanh) for layer in self)
        return frozenset({"acting", "loss"} if is_known else ())

"""Convolutions of images, compiled; stands for `ImageNetwork.convolve` of `agents/encoders.py`.

PyTorch's convolutions of few channels run at a fifth of the core's limit: layouts are converted back and
forth, and bytes become numbers in a pass of their own. Here an image goes through all layers at once,
in `convolutions.c`, and so does its gradient.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from fabric_ppo.agents.agent import Agent, is_altered
from fabric_ppo.agents.encoders import ImageNetwork
from fabric_ppo.fast.compiled_loss import mixes_precisions
from fabric_ppo.fast.kernels import ConvolutionStruct, kernels
from fabric_ppo.fast.twin import is_close, move_weights
from fabric_ppo.fast.written_for import edited
from fabric_ppo.process.console import print_from_rank_zero

_FILES = ("agents/encoders.py",)
Planes = tuple[int, int, int, int]
"""Sizes of an image: groups, height, width, depth."""
_ROWS_TO_COMPARE = 16
_LEAST_ROWS = 8
"""Rows for which a thread is worth starting."""


def compile_convolutions(agent: Agent) -> None:
    """Have the networks for images of an agent use compiled convolutions, where these can stand for theirs."""
    encoders = filter(None, (agent.encoder, agent.critic_encoder))
    for each in itertools.chain.from_iterable(encoder.modules() for encoder in encoders):
        if isinstance(each, ImageNetwork) and each.fast_convolve is None and _can_be_compiled(each):
            each.fast_convolve = CompiledConvolutions()


def _can_be_compiled(network: ImageNetwork) -> bool:
    """Return True if `convolutions.c` has the layers of a network; compile what is missing."""
    parameters = list(network.layers.parameters())
    if network.reads_bounds or not all(each.is_cpu and each.requires_grad for each in parameters):
        return False
    layers = list(network.layers)
    is_known = len(layers) > 1 and all(
        _is_plain(layer) if k % 2 == 0 else type(layer) is nn.ReLU for k, layer in enumerate(layers)
    )
    # the first images are compared in float64
    return is_known and all(kernels(dtype) is not None for dtype in (parameters[0].dtype, torch.float64))


def _is_plain(layer: nn.Module) -> bool:
    """Return True for a convolution that `convolutions.c` can do: by whole strides, without padding."""
    if type(layer) is not nn.Conv2d or layer.bias is None or layer.groups != 1:
        return False
    (kernel, height), (stride, down) = layer.kernel_size, layer.stride
    is_square = kernel == height and stride == down and layer.dilation == (1, 1) and layer.padding == (0, 0)
    return is_square and kernel % stride == 0 and layer.out_channels % 16 == 0


class CompiledConvolutions:
    """A function from a network and its images to features, checked on the first images that it sees.

    The plain convolutions are used, and a line is printed, where their code has been edited, or where
    features or gradients of the first images differ by more than rounding. They are used without a line
    where PyTorch records what is computed, to translate it, or mixes precisions.
    """

    def __init__(self) -> None:
        """Begin without a comparison."""
        self._is_equal: bool | None = None

    def __call__(self, network: ImageNetwork, obs: Tensor) -> Tensor:
        """Return the features `[B, n]` of images of bytes `[B, ...]`."""
        is_recorded = torch.compiler.is_compiling() or torch.jit.is_tracing()  # type: ignore[attr-defined]
        if self._is_equal is False or is_recorded or obs.device.type != "cpu" or mixes_precisions("cpu"):
            return network.convolve(obs)
        if self._is_equal is None and len(obs):
            self._is_equal = self._can_stand_for(network, obs[:_ROWS_TO_COMPARE])
            if not self._is_equal:
                return network.convolve(obs)
        return compiled_features(network, obs)

    def _can_stand_for(self, network: ImageNetwork, obs: Tensor) -> bool:
        """Return True if compiled and plain convolutions are equal; print a line where a change is why not."""
        reasons = [f"edited: {name}" for name in edited(_FILES)]
        if any(map(is_altered, network.modules())):
            reasons.append(f"changed: {type(network).__name__}")
        if not reasons:
            if convolutions_agree(network, obs):
                return True
            reasons = ["edited: agents/"]
        print_from_rank_zero(
            f"{'; '.join(reasons)}; images follow this code, and not the faster fast/compiled_convolutions.py"
        )
        return False


def convolutions_agree(network: ImageNetwork, obs: Tensor) -> bool:
    """Return True if both forms give equal features and gradients, but for rounding.

    They are compared on a copy of the network in float64, where rounding is small.

    Args:
        network: its weights, and others, are tried.
        obs: `[B, ...]`, images of bytes.
    """
    # in an update the network's weights are parts of one vector, which are not copied by themselves
    weights = {id(each): nn.Parameter(each.detach().to(torch.float64, copy=True)) for each in network.parameters()}
    twin = copy.deepcopy(network, weights)
    with torch.enable_grad():
        for _ in range(2):
            forms = (twin.convolve(obs), compiled_features(twin, obs))
            plain, fast = (_with_gradients(twin, features) for features in forms)
            if not all(is_close(*pair) for pair in zip(plain, fast, strict=True)):
                return False
            move_weights(twin)
    return True


def _with_gradients(network: ImageNetwork, features: Tensor) -> list[Tensor]:
    """Return features of images, and a gradient of each weight of the convolutions."""
    slopes = torch.arange(features.numel()).to(features).cos().view_as(features)
    gradients = torch.autograd.grad(features, list(network.layers.parameters()), slopes)
    return [features.detach(), *gradients]


def compiled_features(network: ImageNetwork, obs: Tensor) -> Tensor:
    """Return the features `[B, n]` of images of bytes `[B, ...]`, in compiled code."""
    # the layers' parameters of this call: in an update they are views of one vector
    layers = [layer for layer in network.layers if isinstance(layer, nn.Conv2d)]
    parameters = [each for layer in layers for each in (layer.weight, layer.bias) if each is not None]
    strides, images = [layer.stride[0] for layer in layers], obs.contiguous()
    if not torch.is_grad_enabled():
        return _Work(images, network.planes, strides, parameters, keeps=False).features()
    features: Tensor = _Convolutions.apply(images, network.planes, strides, *parameters)
    return features


class _Convolutions(torch.autograd.Function):
    """Features of images of bytes, and the gradient of the weights."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, planes: Planes, strides: list[int], *parameters: Tensor) -> Tensor:
        ctx.work = _Work(images, planes, strides, parameters, keeps=True)
        features: Tensor = ctx.work.features()
        return features

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slopes: Tensor) -> tuple[Tensor | None, ...]:
        return None, None, None, *ctx.work.gradients(slopes.contiguous())


class _Work:
    """The layers of a network with the memory for some images, as `convolutions.c` takes them."""

    def __init__(
        self,
        images: Tensor,
        planes: Planes,
        strides: list[int],
        parameters: Sequence[Tensor],
        keeps: bool,
    ) -> None:
        """Bring the weights into the order of `convolutions.c`.

        Args:
            images: `[B, ...]` bytes.
            planes: sizes of one image: groups, height, width, depth.
            strides: of the layers.
            parameters: weight `[outputs, groups * depth, kernel, kernel]` and bias of each layer.
            keeps: keep what the gradient needs.
        """
        self._images, self._keeps = images, keeps
        self._layers: list[_Layer] = []
        for stride, weight, bias in zip(strides, parameters[::2], parameters[1::2], strict=True):
            self._layers.append(_Layer(planes, stride, weight.detach(), bias.detach(), bool(self._layers), keeps))
            planes = self._layers[-1].out_planes
        count, like = len(images), parameters[0]
        self._kept = [like.new_empty(count if keeps else 0, layer.num_values) for layer in self._layers]
        library = kernels(like.dtype)
        assert library is not None
        self._library = library
        self._like = like.detach()

    def features(self) -> Tensor:
        """Compute the features, `[B, n]`."""
        features = self._like.new_empty(len(self._images), self._layers[-1].num_values)
        self._in_threads(lambda rows: self._call(self._library.convolve, rows, features, None))
        return features

    def gradients(self, slopes: Tensor) -> list[Tensor]:
        """Compute the gradients of all parameters, from that of the features `[B, n]`."""

        def of_rows(rows: slice) -> list[Tensor]:
            gradients = [torch.zeros_like(each) for layer in self._layers for each in (layer.weights, layer.biases)]
            self._call(self._library.add_convolution_gradients, rows, slopes, gradients)
            return gradients

        # added up in the order of the rows, whichever thread is the first
        parts = self._in_threads(of_rows)
        sums = [torch.stack(each).sum(0) if len(each) > 1 else each[0] for each in zip(*parts, strict=True)]
        weights = [layer.in_order_of_torch(each) for layer, each in zip(self._layers, sums[::2], strict=True)]
        return [each for pair in zip(weights, sums[1::2], strict=True) for each in pair]

    def _in_threads(self, function: Callable[[slice], Any]) -> list[Any]:
        """Return `function(rows)` for parts of the rows, one for each of PyTorch's threads."""
        total = len(self._images)
        count = max(1, min(torch.get_num_threads(), total // _LEAST_ROWS))
        parts = [slice(total * k // count, total * (k + 1) // count) for k in range(count)]
        if count == 1:
            return [function(parts[0])]
        with ThreadPoolExecutor(count) as pool:
            return list(pool.map(function, parts))

    def _call(self, function: Any, rows: slice, features: Tensor, gradients: list[Tensor] | None) -> None:
        """Call a function of `convolutions.c` for some rows."""
        structs, memory = [], []
        for k, (layer, kept) in enumerate(zip(self._layers, self._kept, strict=True)):
            values = kept[rows] if self._keeps else kept.new_empty(layer.num_values)
            slopes = kept.new_zeros(layer.num_slopes if gradients else 0)
            places = [None, None] if gradients is None else [each.data_ptr() for each in gradients[2 * k : 2 * k + 2]]
            row = layer.num_values if self._keeps else 0
            structs.append(
                ConvolutionStruct(*layer.sizes, row, *layer.places, values.data_ptr(), slopes.data_ptr(), *places)
            )
            memory += [values, slopes]
        images, part = self._images[rows], features[rows]
        image = self._like.new_empty(images[:1].numel())
        array = (ConvolutionStruct * len(structs))(*structs)
        function(array, len(structs), images.data_ptr(), len(images), image.data_ptr(), part.data_ptr())


class _Layer:
    """A convolution, with its weights in the orders of `convolutions.c`."""

    def __init__(self, planes: Planes, stride: int, weight: Tensor, bias: Tensor, follows: bool, keeps: bool) -> None:
        """Describe a layer for images of `planes`, which are bytes unless it `follows` another one."""
        groups, height, width, depth = planes
        outputs, _, kernel, _ = weight.shape
        out_height, out_width = ((side - kernel) // stride + 1 for side in (height, width))
        self.sizes = (groups, height, width, depth, kernel, stride, outputs, out_height, out_width)
        self.out_planes = (1, out_height, out_width, outputs)
        self.num_values = out_height * out_width * outputs
        taps = kernel // stride
        self.num_slopes = (out_height + 2 * taps) * (out_width + 2 * taps) * outputs
        self._in_torch = (outputs, groups, depth, kernel, kernel)
        # bytes are not divided: the weights are
        self._scale = 1.0 if follows else 1 / 255
        ordered = weight.view(self._in_torch).permute(1, 3, 4, 2, 0).reshape(-1, outputs)
        self.weights = (ordered * self._scale).contiguous()
        self.biases = bias.contiguous()
        self._back = None
        if follows and keeps:
            by_tap = weight.view(outputs, groups * depth, taps, stride, taps, stride).permute(3, 5, 2, 4, 0, 1)
            # of the taps along a line the last comes first
            self._back = by_tap.flip(3).contiguous()
        back = None if self._back is None else self._back.data_ptr()
        self.places = (self.weights.data_ptr(), self.biases.data_ptr(), back)

    def in_order_of_torch(self, gradient: Tensor) -> Tensor:
        """Return a gradient like `weights` as PyTorch has it, `[outputs, channels, kernel, kernel]`."""
        outputs, groups, depth, kernel, _ = self._in_torch
        ordered = gradient.view(groups, kernel, kernel, depth, outputs).permute(4, 0, 3, 1, 2)
        return ordered.reshape(outputs, groups * depth, kernel, kernel) * self._scale

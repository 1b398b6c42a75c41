"""Encoders: from observations of any space to features, part by part."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn

from fabric_ppo.agents.bounds_scale import scale_of
from fabric_ppo.agents.mlp import ROW_MULTIPLE, is_recorded
from fabric_ppo.agents.repeatable import require_repeatable
from fabric_ppo.envs.ids import named_function
from fabric_ppo.envs.spaces import ACTION_MASK, KeyPath, SpaceSpec
from fabric_ppo.process.errors import USER_ERRORS, ConfigError, describe_error

_SMALLEST = {"nature": 36, "impala": 8, "small": 20}
"""Sides, in pixels, of the smallest images that a network takes."""


class Encoder(nn.Module):
    """A module from observations `[B, ...]` to features `[B, num_features + num_masks]`.

    A Box is flattened (whole numbers are scaled by their bounds to 0 .. 1), a choice becomes
    one-hot, bits stay bits, and images may go through a convolutional network. Parts of a nested
    space are encoded one by one and put side by side. The last features are the action mask, where
    there is one. All features have the agent's floating-point type.

    Attributes:
        num_features: number of features without the mask.
        num_masks: number of entries of the action mask; 0 where there is none.
        num_boxes: number of features that are numbers of a Box, unchanged but for the scale of
            whole numbers; `boxes` returns them.
        has_weights: true if there is anything to be trained.
    """

    def __init__(
        self,
        space: SpaceSpec,
        name: str = "flatten",
        num_choices: int = 0,
        masks: Sequence[KeyPath] = (ACTION_MASK,),
    ) -> None:
        """Build the networks with PyTorch's own initialisation, from the global generator.

        Args:
            space: the observations'. Parts that the value network alone takes are left out.
            name: the network for images; `auto` is `nature` for images that are large enough. Or
                the user's class for all Box parts, `module:Class` (see `OwnNetwork`).
            num_choices: number of entries that an action mask must have; 0: an action mask is an
                observation like others.
            masks: parts that are the action mask, in the order of the choices, if they are there.

        Raises:
            ConfigError: `name` is no network for these observations, or an action mask has another
                size.
        """
        super().__init__()
        if name in _SMALLEST and not any(is_image(part) for _, part in space.parts or [((), space)]):
            raise ConfigError(f"--encoder {name}: observations hold no image of bytes; auto or flatten is expected")
        space, begin = self._encoded(space)
        self._space = space
        parts = list(space.leaves)
        self._masks = [bool(num_choices) and path in masks for path, _ in parts]
        leaves = [
            # a mask's zeros stay zeros
            Flat(replace(part, low=(), high=())) if is_mask else _leaf(part, name)
            for (_, part), is_mask in zip(parts, self._masks, strict=True)
        ]
        self._leaves = nn.ModuleList(leaves)
        # the mask last, wherever the space has it
        places = {path: index for index, (path, _) in enumerate(parts) if self._masks[index]}
        self._order = [index for index, is_mask in enumerate(self._masks) if not is_mask]
        self._order += [places[path] for path in masks if path in places]
        widths = [leaf.num_features for leaf in leaves]
        self.num_features = sum(n for n, is_mask in zip(widths, self._masks, strict=True) if not is_mask)
        self.num_masks = sum(n for n, is_mask in zip(widths, self._masks, strict=True) if is_mask)
        if self.num_masks not in (0, num_choices):
            raise ConfigError(f"action_mask has {self.num_masks} entries; {num_choices}, one a choice, are expected")
        self._boxes = [
            index
            for index, (_, part) in enumerate(parts)
            if part.kind == "box" and isinstance(leaves[index], Flat) and not self._masks[index]
        ]
        self._box_widths = [widths[index] for index in self._boxes]
        self.num_boxes = sum(self._box_widths)
        self.has_weights = any(True for _ in self.parameters())
        # a nested observation is a row of bytes (`envs.spaces.Packer`): where each part lies in it
        ends = np.cumsum([begin, *(part.size * np.dtype(part.dtype).itemsize for _, part in parts)]).tolist()
        self._places = [
            (slice(start, stop), getattr(torch, part.dtype), part.shape)
            for (_, part), (start, stop) in zip(parts, pairwise(ends), strict=True)
        ]
        is_flat = len(space.shape) == 1 and space.kind == "box" and isinstance(leaves[0], Flat)
        types = {"float32": torch.float32, "float64": torch.float64}
        self._number_dtype = types.get(space.dtype) if is_flat else None

    def _encoded(self, space: SpaceSpec) -> tuple[SpaceSpec, int]:
        """Return the space of what is encoded, and where that begins in a row of a nested `space`."""
        return space.for_policy, 0

    @property
    def fast_forms(self) -> frozenset[str]:
        """Fast forms that may stand behind it; see `Agent.parts`."""
        if self.num_masks:  # they do not mask logits
            return frozenset()
        # the compiled gradient ends at the features: it cannot train an encoder
        return frozenset({"acting"} if self.has_weights else {"acting", "loss"})

    @property
    def number_dtype(self) -> torch.dtype | None:
        """Floating-point type of observations that are features, but for type and `normalize`; else None."""
        return self._number_dtype

    def boxes(self, obs: Tensor, dtype: torch.dtype) -> Tensor:
        """Return the features of `obs [B, ...]` that are numbers of a Box, `[B, num_boxes]`."""
        none = torch.zeros((len(obs), 0), dtype=dtype, device=obs.device)
        return torch.cat([none, *(self._part(index, obs, dtype) for index in self._boxes)], dim=-1)

    def _part(self, index: int, obs: Tensor, dtype: torch.dtype) -> Tensor:
        """Encode part `index` of `obs`."""
        features: Tensor = self._leaves[index](self._raw(index, obs), dtype)
        return features

    def _raw(self, index: int, obs: Tensor) -> Tensor:
        """Return part `index` of `obs`, `[B, *shape]`."""
        if not self._space.parts:
            return obs
        place, part_dtype, shape = self._places[index]
        # a copy, for bytes can be viewed as another type only where they are aligned for it
        part = obs[:, place].clone(memory_format=torch.contiguous_format)
        return part.view(part_dtype).view(-1, *shape)

    def forward(self, obs: Tensor, dtype: torch.dtype, normalize: nn.Module | None = None) -> Tensor:
        """Encode observations.

        Args:
            obs: `[B, ...]`, raw.
            dtype: floating-point type of the features.
            normalize: applied to `boxes`.

        Returns:
            `[B, num_features + num_masks]`.
        """
        raw = [self._raw(index, obs) for index in range(len(self._leaves))]
        return self.encode(raw, dtype, normalize)

    def encode(self, raw: Sequence[Tensor], dtype: torch.dtype, normalize: nn.Module | None = None) -> Tensor:
        """Encode observations whose parts are tensors of their own, `[B, *shape]` each; as `forward`."""
        parts: list[Tensor] = [leaf(part, dtype) for leaf, part in zip(self._leaves, raw, strict=True)]
        if normalize is not None:  # all Box parts at once, for they share one vector of statistics
            normalized = normalize(torch.cat([parts[index] for index in self._boxes], dim=-1))
            split = normalized.split(self._box_widths, dim=-1)
            for index, part in zip(self._boxes, split, strict=True):
                parts[index] = part
        if len(parts) == 1:
            return parts[0]
        return torch.cat([parts[k] for k in self._order], dim=-1)


class CriticEncoder(Encoder):
    """An encoder of the parts that the value network alone takes, from whole observations.

    It declares no fast form: these do not know it.
    """

    def _encoded(self, space: SpaceSpec) -> tuple[SpaceSpec, int]:
        """See `Encoder`."""
        assert space.for_critic is not None
        return space.for_critic, space.for_policy.size


class Flat(nn.Module):
    """An encoder without weights: numbers as they are or scaled, choices one-hot."""

    def __init__(self, space: SpaceSpec) -> None:
        """Encode observations of `space`, which has no parts."""
        super().__init__()
        self._sizes, self._start = space.sizes, space.start
        self._scale = scale_of(space)
        self._factor = 1 / 255 if space.kind == "box" and space.dtype == "uint8" else 1.0
        self.num_features = sum(space.sizes) or space.size

    def forward(self, obs: Tensor, dtype: torch.dtype) -> Tensor:
        """Encode `obs [B, ...]`."""
        if self._sizes:
            entries = obs.reshape(obs.shape[0], len(self._sizes)).long().unbind(1)
            # clamped, for the zeros with which batches are padded need not be choices: one_hot
            # raises on other values, on a GPU without a usable message
            hot = [
                nn.functional.one_hot((entry - start).clamp(0, size - 1), size)
                for entry, start, size in zip(entries, self._start, self._sizes, strict=True)
            ]
            return torch.cat(hot, dim=-1).to(dtype)
        if self._scale is not None:
            scaled: Tensor = self._scale(obs.reshape(obs.shape[0], self.num_features), dtype)
            return scaled
        features = obs.to(dtype).reshape(obs.shape[0], self.num_features)
        return features * self._factor if self._factor != 1.0 else features


class ImageNetwork(nn.Module):
    """Convolutions for images of bytes, with the channels on their first or their last axis.

    The channels of stacked frames are those of one image, the oldest frame's first.

    Attributes:
        layers, head: the convolutions, and the linear layer on top.
        planes: sizes of an image in memory, `[groups, height, width, depth]`: a channel is an entry of a
            group, on its last axis.
        fast_convolve: stands for `convolve`, called with this network and `obs`; None: nothing does.
    """

    def __init__(self, space: SpaceSpec, layers: nn.Sequential, width: int) -> None:
        """Put a linear layer of `width` outputs and a rectifier on top of `layers`."""
        super().__init__()
        self._channels_last = channels_last(space)
        self._scale = scale_of(space)
        channels, *sides = image_size(space)
        depth = space.shape[-1] if self._channels_last else 1
        self.planes = (channels // depth, sides[0], sides[1], depth)
        self.fast_convolve: Callable[[ImageNetwork, Tensor], Tensor] | None = None
        with torch.no_grad():  # the size of the convolutions' output, from a blank image
            self._flat = layers(torch.zeros(1, channels, *sides)).numel()
        self.layers = layers
        self.head = nn.Linear(self._flat, width)
        self.num_features = width

    @property
    def reads_bounds(self) -> bool:
        """True if bytes are scaled by other bounds than 0 and 255."""
        return self._scale is not None

    def forward(self, obs: Tensor, _: torch.dtype) -> Tensor:
        """Encode `obs [B, H, W, C]` or `[B, C, H, W]`; of N frames `[B, N, ...]`, gray too."""
        features = self.convolve(obs) if self.fast_convolve is None else self.fast_convolve(self, obs)
        if torch.is_grad_enabled() or is_recorded():
            return torch.relu(self.head(features))
        # an image that is acted on has the same bits with few other images as with many
        padded = nn.functional.pad(features, (0, 0, 0, -len(features) % ROW_MULTIPLE))
        return torch.relu(self.head(padded))[: len(features)]

    def convolve(self, obs: Tensor) -> Tensor:
        """Compute the convolutions of `obs`, `[B, n]`."""
        if self._scale is not None:
            obs = self._scale(obs.flatten(1), self.head.weight.dtype).view(obs.shape)
        images = obs.movedim(-1, -3) if self._channels_last else obs
        if images.ndim == 5:
            images = images.flatten(1, 2)
        # on CPUs, channels last make the backward pass faster, and the forward pass slower
        trains_on_cpu = torch.is_grad_enabled() and obs.device.type == "cpu"
        layout = torch.channels_last if trains_on_cpu else torch.preserve_format
        # bytes become numbers here: they travel and are stored as bytes
        images = images.to(self.head.weight.dtype, memory_format=layout)
        if self._scale is None:
            images = images.div_(255)
        features: Tensor = self.layers(images).reshape(obs.shape[0], self._flat)
        return features


class OwnNetwork(nn.Module):
    """A module of the user's own for a Box, from `[B, *shape]` to `[B, num_features]`.

    It gets bytes and integers as they are, other numbers in the agent's floating-point type.
    """

    def __init__(self, space: SpaceSpec, name: str) -> None:
        """Make the module, by calling `name` (`module:Class`) with `space`.

        Raises:
            ConfigError: this fails, it is no module, it has no `num_features`, or its output has
                another width.
        """
        super().__init__()
        make = named_function(name, "encoder")
        try:
            network = make(space)
        except USER_ERRORS as error:
            reason = describe_error(error).splitlines()[0]
            raise ConfigError(f"--encoder {name}: it raised {reason}") from error
        if not isinstance(network, nn.Module) or not isinstance(getattr(network, "num_features", None), int):
            raise ConfigError(f"--encoder {name}: a torch.nn.Module with a whole number num_features is expected")
        self.network, self.num_features = network, int(network.num_features)  # type: ignore[arg-type]
        self._try(space, name)

    @torch.no_grad()
    def _try(self, space: SpaceSpec, name: str) -> None:
        """Raise a ConfigError unless two blank observations can be encoded."""
        self.eval()  # so that layers with running statistics do not count the blank ones
        blank = torch.from_numpy(np.zeros((2, *space.shape), space.dtype))
        try:
            shape = tuple(self(blank, torch.get_default_dtype()).shape)
        except USER_ERRORS as error:
            reason = describe_error(error).splitlines()[0]
            raise ConfigError(f"--encoder {name}: with {list(blank.shape)} it raised {reason}") from error
        if shape != (2, self.num_features):
            made = f"it makes {list(shape)} of {list(blank.shape)}"
            raise ConfigError(f"--encoder {name}: {made}; [2, num_features], here {self.num_features}, is expected")
        require_repeatable(self, lambda twin: twin(blank, torch.get_default_dtype()), f"--encoder {name}: its")
        self.train()

    def forward(self, obs: Tensor, dtype: torch.dtype) -> Tensor:
        """Encode `obs [B, *shape]` as `[B, num_features]` of type `dtype`."""
        features: Tensor = self.network(obs.to(dtype) if obs.is_floating_point() else obs)
        return features.to(dtype)


def channels_last(space: SpaceSpec) -> bool:
    """Return True if the last axis of an image holds the channels, rather than the first.

    The smaller of the two axes counts as the one with the channels. Stacked gray images have none:
    their frames stand for channels.
    """
    if space.frames > 1 and len(space.shape) == 3:
        return False
    first, _, last = space.shape[-3:]
    return last <= first


def is_image(space: SpaceSpec) -> bool:
    """Return True if a space holds images: bytes on three axes, or frames of two or three."""
    num_axes = (3, 4) if space.frames > 1 else (3,)
    return space.kind == "box" and space.dtype == "uint8" and len(space.shape) in num_axes


def image_size(space: SpaceSpec) -> tuple[int, int, int]:
    """Return channels, height and width of images; stacked frames are further channels.

    >>> image_size(SpaceSpec("box", (4, 96, 80, 3), "uint8", frames=4))
    (12, 96, 80)
    """
    *frames, first, second, third = space.shape
    if channels_last(space):
        first, second, third = third, first, second
    return math.prod(frames) * first, second, third


def nature(channels: int) -> nn.Sequential:
    """Return the convolutions of Mnih et al., Nature 518 (2015), Methods.

    The paper's network has a linear layer of 512 on top.
    """
    return _convolutions((channels, 32, 8, 4), (32, 64, 4, 2), (64, 64, 3, 1))


def small(channels: int) -> nn.Sequential:
    """Return the convolutions of Mnih et al., "Playing Atari" (arXiv 1312.5602), section 4.1.

    The paper's network has a linear layer of 256 on top.
    """
    return _convolutions((channels, 16, 8, 4), (16, 32, 4, 2))


def _convolutions(*sizes: tuple[int, int, int, int]) -> nn.Sequential:
    pairs = [(nn.Conv2d(n, m, kernel, stride), nn.ReLU()) for n, m, kernel, stride in sizes]
    return nn.Sequential(*(layer for pair in pairs for layer in pair))


class _Residual(nn.Module):
    """A residual block of two convolutions, `x + f(x)`."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        convs = [nn.Conv2d(channels, channels, 3, padding=1) for _ in range(2)]
        self.layers = nn.Sequential(nn.ReLU(), convs[0], nn.ReLU(), convs[1])

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.layers(x)
        return out


def impala(channels: int) -> nn.Sequential:
    """Return the deep network of Espeholt et al., "IMPALA" (arXiv 1802.01561), figure 3.

    The paper's network has a linear layer of 256 on top.
    """
    blocks = [
        nn.Sequential(nn.Conv2d(n, m, 3, padding=1), nn.MaxPool2d(3, 2, padding=1), _Residual(m), _Residual(m))
        for n, m in pairwise((channels, 16, 32, 32))
    ]
    return nn.Sequential(*blocks, nn.ReLU())


def _leaf(space: SpaceSpec, name: str) -> Flat | ImageNetwork | OwnNetwork:
    """Make the encoder of a space without parts.

    Raises:
        ConfigError: its images are too small for the network `name`.
    """
    if ":" in name and space.kind == "box":
        return OwnNetwork(space, name)
    if name == "flatten" or ":" in name or not is_image(space):
        return Flat(space)
    channels, *sides = image_size(space)
    # a smaller image has no pixel left after nature's convolutions
    if name == "auto":
        name = "nature" if min(sides) >= _SMALLEST["nature"] else "flatten"
        return _leaf(space, name)
    if min(sides) < _SMALLEST[name]:
        size, least = "x".join(map(str, sides)), _SMALLEST[name]
        raise ConfigError(f"--encoder {name}: images are {size}; at least {least}x{least} is needed, or flatten")
    network, width = {"nature": (nature, 512), "impala": (impala, 256), "small": (small, 256)}[name]
    return ImageNetwork(space, network(channels), width)


def orthogonal_init(network: nn.Module) -> None:
    """Initialise layers with orthogonal weights of gain sqrt(2) and zero biases.

    The user's own encoder stays as its class made it.
    """
    own = {each for owner in network.modules() if isinstance(owner, OwnNetwork) for each in owner.modules()}
    for module in network.modules():
        if module not in own and isinstance(module, (nn.Conv2d, nn.Linear)):
            nn.init.orthogonal_(module.weight, math.sqrt(2))
            assert module.bias is not None
            nn.init.zeros_(module.bias)

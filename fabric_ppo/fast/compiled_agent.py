"""An agent's networks as `kernels.c` takes them."""

from __future__ import annotations

import ctypes
import math
from typing import Any

import torch
from torch import Tensor

from fabric_ppo.agents.agent import Agent
from fabric_ppo.agents.mlp import MLP, linear_layers
from fabric_ppo.agents.normalize import BOUND
from fabric_ppo.fast.kernels import AgentStruct, Encoding, Layer, Network

_ACTIVATIONS = {"relu": 1, "tanh": 2}
_NO_ACTIVATION = 0
_SOURCES = {None: 0, torch.float32: 1, torch.float64: 2}
BLOCK_ROWS = 64
"""Rows that go through all layers at once: their values between the layers stay in the cache."""
_PANEL = 32
"""Most columns of a tile in `kernels.c`."""
_LARGEST = 2**16
"""Most weights of a layer whose products are faster here than in PyTorch's libraries."""


def has_small_layers(agent: Agent) -> bool:
    """Return True if starting PyTorch's products takes long beside computing them, on the CPU."""
    return agent.device.type == "cpu" and is_small(agent)


def is_small(agent: Agent) -> bool:
    """Return True if the agent's perceptrons have small layers."""
    networks = [network for network in (agent.trunk, agent.policy, agent.value) if network is not None]
    layers = [layer for network in networks for layer in linear_layers(network)]
    return all(layer.weight.numel() <= _LARGEST for layer in layers)


class CompiledAgent:
    """The struct of an agent with the memory that it points to, valid while `weights` keeps its own.

    Attributes:
        pointer: to the struct, for the functions of `kernels.c`.
        obs_dtype: type of observations that the functions encode themselves; None: they take
            `Agent.inputs` of them.
    """

    def __init__(self, agent: Agent, weights: Tensor) -> None:
        """Describe an agent of perceptrons.

        Args:
            agent: the networks' shapes.
            weights: its parameters one after the other, `[n]`, on the CPU.
        """
        self.weights = weights
        places, end = {}, 0
        for name, parameter in agent.named_parameters():
            places[name], end = end, end + parameter.numel()
        networks = {"trunk": agent.trunk, "policy": agent.policy, "value": agent.value}
        self.obs_dtype = _raw_dtype(agent)
        self._layers = {name: _layers(name, network, places) for name, network in networks.items()}
        self._memory = {"transposed": torch.empty_like(weights), **_memory(self._layers, weights)}
        least, most = agent.architecture.log_std_bounds
        self._struct = AgentStruct(
            num_weights=weights.numel(),
            block_rows=BLOCK_ROWS,
            is_gaussian=agent.log_std is not None,
            place_of_std=places.get("log_std", 0),
            least_log_std=-math.inf if least is None else least,
            most_log_std=math.inf if most is None else most,
            encoding=_encoding(agent, self.obs_dtype),
            **{name: Network(len(layers), layers) for name, layers in self._layers.items()},
            weights=weights.data_ptr(),
            **{name: memory.data_ptr() for name, memory in self._memory.items()},
        )
        self.pointer = ctypes.byref(self._struct)


def _raw_dtype(agent: Agent) -> torch.dtype | None:
    moments = agent.obs_moments
    has_doubles = moments is None or moments.mean.dtype == torch.float64
    return agent.encoder.number_dtype if has_doubles else None


def _encoding(agent: Agent, obs_dtype: torch.dtype | None) -> Encoding:
    """Return how `kernels.c` encodes observations; it reads the moments where they are."""
    moments = agent.obs_moments
    if obs_dtype is None or (moments is None and obs_dtype == agent.dtype):
        return Encoding(source=_SOURCES[None])
    if moments is None:
        return Encoding(source=_SOURCES[obs_dtype])
    return Encoding(_SOURCES[obs_dtype], moments.mean.data_ptr(), moments.std.data_ptr(), BOUND)


def _layers(name: str, network: MLP | None, places: dict[str, int]) -> Any:
    """Return the layers of a network, as an array of `Layer`."""
    if network is None:
        return (Layer * 0)()
    names = [each for each in places if each.startswith(f"{name}.") and each.endswith(".weight")]
    kinds = [_ACTIVATIONS[network.activation]] * network.num_hidden + [_NO_ACTIVATION]
    layers = [
        Layer(layer.in_features, layer.out_features, places[each], kind)
        for each, layer, kind in zip(names, linear_layers(network), kinds, strict=False)
    ]
    return (Layer * len(layers))(*layers)


def _memory(networks: dict[str, Any], like: Tensor) -> dict[str, Tensor]:
    """Allocate what a block of rows needs between the layers, by the names in `AgentStruct`."""
    widest = max(size for layers in networks.values() for layer in layers for size in (layer.inputs, layer.outputs))
    sizes = {f"{name}_values": sum(layer.outputs for layer in layers) for name, layers in networks.items()}
    sizes |= {"encoded": widest, "policy_slopes": networks["policy"][-1].outputs, "trunk_slopes": widest}
    memory = {name: like.new_empty(max(BLOCK_ROWS * width, 1)) for name, width in sizes.items()}
    # a copy of a narrow matrix, and the slopes at two layers
    return {**memory, "scratch": like.new_empty(max(widest, BLOCK_ROWS) * _PANEL + 2 * BLOCK_ROWS * widest)}

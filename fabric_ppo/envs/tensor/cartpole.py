"""CartPole as tensor code: Gymnasium's CartPole-v1 in float32 (Barto, Sutton and Anderson, 1983)."""

from __future__ import annotations

import math
from typing import Any

import gymnasium
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fabric_ppo.envs.functional import FunctionalEnv
from fabric_ppo.envs.tensor.twin import picture_of
from fabric_ppo.envs.tensor_seeds import seeded_uniforms

_GRAVITY, _FORCE, _TAU = 9.8, 10.0, 0.02  # m/s^2, N, s
_POLE_MASS, _TOTAL_MASS, _HALF_LENGTH = 0.1, 1.1, 0.5  # kg, kg, m
_MOST_X, _MOST_ANGLE = 2.4, 12 * math.pi / 180  # m, rad
_MOST_AT_START = 0.05

Columns = tuple[Tensor, Tensor, Tensor, Tensor]
"""Position, velocity, angle and angular velocity, `[B]` each."""


class CartPole(FunctionalEnv):
    """A pole on a cart that is pushed left or right; each step that it stands gives 1."""

    max_episode_steps = 500

    def __init__(self) -> None:
        """Describe the spaces, which are Gymnasium's."""
        most = np.array([2 * _MOST_X, np.inf, 2 * _MOST_ANGLE, np.inf], np.float32)
        self.observation_space: gymnasium.Space[Any] = gymnasium.spaces.Box(-most, most)
        self.action_space: gymnasium.Space[Any] = gymnasium.spaces.Discrete(2)

    def initial(self, seeds: Tensor) -> tuple[Columns, Tensor]:
        """See `FunctionalEnv.initial`: all four numbers are uniform from -0.05 to 0.05."""
        obs = ((seeded_uniforms(seeds, 4) * 2 - 1) * _MOST_AT_START).float()
        x, speed, angle, turning = obs.unbind(-1)
        return (x, speed, angle, turning), obs

    def transition(
        self, state: Columns, actions: Tensor, seeds: Tensor, step: Tensor
    ) -> tuple[Columns, Tensor, Tensor, Tensor]:
        """See `FunctionalEnv.transition`; Euler's method, with positions before velocities."""
        x, speed, angle, turning = state
        sine, cosine = angle.sin(), angle.cos()
        force = actions.to(x.dtype) * (2 * _FORCE) - _FORCE
        push = (force + _POLE_MASS * _HALF_LENGTH * turning.square() * sine) / _TOTAL_MASS
        inertia = _HALF_LENGTH * (4 / 3 - _POLE_MASS * cosine.square() / _TOTAL_MASS)
        turning_rate = (_GRAVITY * sine - cosine * push) / inertia
        rate = push - _POLE_MASS * _HALF_LENGTH * turning_rate * cosine / _TOTAL_MASS
        x, speed = x + _TAU * speed, speed + _TAU * rate
        angle, turning = angle + _TAU * turning, turning + _TAU * turning_rate
        terminated = (x.abs() > _MOST_X) | (angle.abs() > _MOST_ANGLE)
        obs = torch.stack([x, speed, angle, turning], -1)
        return (x, speed, angle, turning), obs, torch.ones_like(x), terminated

    def render(self, state: Columns) -> NDArray[np.uint8]:
        """See `FunctionalEnv.render`."""
        return picture_of("CartPole-v1", [column.item() for column in state])

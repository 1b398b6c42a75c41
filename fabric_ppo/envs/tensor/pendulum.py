"""A pendulum as tensor code: Gymnasium's Pendulum-v1 in float32."""

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

_GRAVITY, _MASS, _LENGTH, _DT = 10.0, 1.0, 1.0, 0.05  # m/s^2, kg, m, s
_MOST_SPEED, _MOST_TORQUE = 8.0, 2.0  # rad/s, N m


class Pendulum(FunctionalEnv):
    """A pendulum that a bounded torque has to swing up and to hold; the reward is a negative cost."""

    max_episode_steps = 200

    def __init__(self) -> None:
        """Describe the spaces, which are Gymnasium's."""
        most = np.array([1.0, 1.0, _MOST_SPEED], np.float32)
        self.observation_space: gymnasium.Space[Any] = gymnasium.spaces.Box(-most, most)
        self.action_space: gymnasium.Space[Any] = gymnasium.spaces.Box(-_MOST_TORQUE, _MOST_TORQUE, (1,))

    def initial(self, seeds: Tensor) -> tuple[Tensor, Tensor]:
        """See `FunctionalEnv.initial`: any angle, and a velocity from -1 to 1."""
        angle, speed = (seeded_uniforms(seeds, 2) * 2 - 1).unbind(-1)
        state = torch.stack([angle * math.pi, speed], -1).float()
        return state, _observed(state)

    def transition(
        self, state: Tensor, actions: Tensor, seeds: Tensor, step: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """See `FunctionalEnv.transition`; state is the angle from upright and the velocity, `[B, 2]`."""
        angle, speed = state.unbind(-1)
        torque = actions[:, 0].clamp(-_MOST_TORQUE, _MOST_TORQUE)
        from_upright = (angle + math.pi).remainder(2 * math.pi) - math.pi
        cost = from_upright.square() + 0.1 * speed.square() + 0.001 * torque.square()
        gravity, lever = 3 * _GRAVITY / (2 * _LENGTH), 3 / (_MASS * _LENGTH**2)
        speed = (speed + (gravity * angle.sin() + lever * torque) * _DT).clamp(-_MOST_SPEED, _MOST_SPEED)
        state = torch.stack([angle + speed * _DT, speed], -1)
        return state, _observed(state), -cost, torch.zeros_like(cost, dtype=torch.bool)

    def render(self, state: Tensor) -> NDArray[np.uint8]:
        """See `FunctionalEnv.render`."""
        return picture_of("Pendulum-v1", state[0].tolist())


def _observed(state: Tensor) -> Tensor:
    """Return cosine and sine of the angle and the velocity, `[B, 3]`."""
    angle, speed = state.unbind(-1)
    return torch.stack([angle.cos(), angle.sin(), speed], -1)

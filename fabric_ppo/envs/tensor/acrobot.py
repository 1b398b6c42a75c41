"""An acrobot as tensor code: Gymnasium's Acrobot-v1 in float32 (Sutton, 1996; the book's equations)."""

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

_GRAVITY, _DT = 9.8, 0.2  # m/s^2, s
_MASS, _LENGTH, _CENTER, _INERTIA = 1.0, 1.0, 0.5, 1.0  # of each link: kg, m, m, kg m^2
_MOST_SPEEDS = 4 * math.pi, 9 * math.pi  # rad/s
_MOST_AT_START = 0.1


class Acrobot(FunctionalEnv):
    """Two links that a torque between them has to swing up; each step costs 1 until then."""

    max_episode_steps = 500

    def __init__(self) -> None:
        """Describe the spaces, which are Gymnasium's."""
        most = np.array([1.0, 1.0, 1.0, 1.0, *_MOST_SPEEDS], np.float32)
        self.observation_space: gymnasium.Space[Any] = gymnasium.spaces.Box(-most, most)
        self.action_space: gymnasium.Space[Any] = gymnasium.spaces.Discrete(3)

    def initial(self, seeds: Tensor) -> tuple[Tensor, Tensor]:
        """See `FunctionalEnv.initial`: all four numbers are uniform from -0.1 to 0.1."""
        state = ((seeded_uniforms(seeds, 4) * 2 - 1) * _MOST_AT_START).float()
        return state, _observed(state)

    def transition(
        self, state: Tensor, actions: Tensor, seeds: Tensor, step: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """See `FunctionalEnv.transition`; state is two angles and two velocities, `[B, 4]`."""
        torque = actions.to(state.dtype) - 1
        # the classical method of Runge and Kutta, of order 4
        first = _rates(state, torque)
        second = _rates(state + _DT / 2 * first, torque)
        third = _rates(state + _DT / 2 * second, torque)
        fourth = _rates(state + _DT * third, torque)
        state = state + _DT / 6 * (first + 2 * second + 2 * third + fourth)
        angles = (state[:, :2] + math.pi).remainder(2 * math.pi) - math.pi
        speeds = [state[:, 2 + k].clamp(-most, most) for k, most in enumerate(_MOST_SPEEDS)]
        state = torch.stack([*angles.unbind(-1), *speeds], -1)
        one, two, *_ = state.unbind(-1)
        terminated = -one.cos() - (one + two).cos() > 1
        return state, _observed(state), terminated.to(state.dtype) - 1, terminated

    def render(self, state: Tensor) -> NDArray[np.uint8]:
        """See `FunctionalEnv.render`."""
        return picture_of("Acrobot-v1", state[0].tolist())


def _rates(state: Tensor, torque: Tensor) -> Tensor:
    """Return the derivatives of `state [B, 4]` by time."""
    one, two, speed_one, speed_two = state.unbind(-1)
    cosine, sine = two.cos(), two.sin()
    inertia_one = _MASS * _CENTER**2 + _MASS * (_LENGTH**2 + _CENTER**2 + 2 * _LENGTH * _CENTER * cosine) + 2 * _INERTIA
    inertia_both = _MASS * (_CENTER**2 + _LENGTH * _CENTER * cosine) + _INERTIA
    weight_two = _MASS * _CENTER * _GRAVITY * (one + two - math.pi / 2).cos()
    coupling = _MASS * _LENGTH * _CENTER * sine
    weight_one = (
        -coupling * speed_two.square()
        - 2 * coupling * speed_two * speed_one
        + (_MASS * _CENTER + _MASS * _LENGTH) * _GRAVITY * (one - math.pi / 2).cos()
        + weight_two
    )
    pull = torque + inertia_both / inertia_one * weight_one - coupling * speed_one.square() - weight_two
    rate_two = pull / (_MASS * _CENTER**2 + _INERTIA - inertia_both.square() / inertia_one)
    rate_one = -(inertia_both * rate_two + weight_one) / inertia_one
    return torch.stack([speed_one, speed_two, rate_one, rate_two], -1)


def _observed(state: Tensor) -> Tensor:
    """Return cosine and sine of both angles and the velocities, `[B, 6]`."""
    one, two, speed_one, speed_two = state.unbind(-1)
    return torch.stack([one.cos(), one.sin(), two.cos(), two.sin(), speed_one, speed_two], -1)

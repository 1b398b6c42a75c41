"""What is known of Gymnasium's own classes holds for exactly these, whatever derives from them or wraps them."""

from __future__ import annotations

import gymnasium
import pytest
from gymnasium import wrappers
from gymnasium.envs.classic_control import CartPoleEnv

from fabric_ppo.envs.known import ignores_render_mode, is_gymnasium_class


class Derived(CartPoleEnv):
    """Somebody's own."""


class Limit(wrappers.TimeLimit):
    """Somebody's own."""


def disguised():
    """A class that claims to be Gymnasium's."""
    kind = type("CartPoleEnv", (CartPoleEnv,), {"__module__": CartPoleEnv.__module__})
    return kind()


@pytest.mark.parametrize(
    ("env", "is_own", "ignores"),
    [
        (gymnasium.make("CartPole-v1"), True, True),
        (wrappers.FlattenObservation(gymnasium.make("LunarLander-v3")), True, True),
        (Limit(CartPoleEnv(), 5), True, False),
        (wrappers.TransformObservation(CartPoleEnv(), lambda obs: obs, None), True, False),
        (wrappers.AddRenderObservation(gymnasium.make("CartPole-v1", render_mode="rgb_array")), True, False),
        (Derived(), False, False),
        (wrappers.TimeLimit(Derived(), 5), False, False),
        (disguised(), False, False),
    ],
    ids=["made", "wrapped", "own wrapper", "own function", "renders", "derived", "derived in a wrapper", "disguised"],
)
def test_what_is_known_of_an_environment(env, is_own, ignores):
    assert is_gymnasium_class(env) is is_own
    assert ignores_render_mode(env) is ignores

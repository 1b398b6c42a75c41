"""Facts about Gymnasium's own environments and wrappers, which hold for exactly these classes."""

from __future__ import annotations

import sys

import gymnasium

_ENVIRONMENTS = tuple(f"gymnasium.envs.{room}." for room in ("box2d", "classic_control", "mujoco", "toy_text"))
_WRAPPERS = frozenset(
    (
        *("ClipAction", "ClipReward", "DtypeObservation", "FlattenObservation", "FrameStackObservation"),
        *("NormalizeObservation", "NormalizeReward", "OrderEnforcing", "PassiveEnvChecker", "RecordEpisodeStatistics"),
        *("RescaleAction", "RescaleObservation", "TimeAwareObservation", "TimeLimit"),
    )
)
"""Wrappers that never render, and call no function of the user's own."""


def is_gymnasium_class(env: object) -> bool:
    """Return True if an environment's own class, and not only a base of it, comes with Gymnasium.

    Wrappers do not count.
    """
    return _is_own(getattr(env, "unwrapped", env))


def ignores_render_mode(env: object) -> bool:
    """Return True if an environment is known to return the same with and without a render mode.

    Any class that is not known might look at its mode, and any wrapper might render.
    """
    while isinstance(env, gymnasium.Wrapper):
        if not _is_own(env) or type(env).__name__ not in _WRAPPERS:
            return False
        env = env.env
    return _is_own(env) and type(env).__module__.startswith(_ENVIRONMENTS)


def _is_own(value: object) -> bool:
    """Return True if the class of `value` is one of Gymnasium's modules by that name."""
    kind = type(value)
    module = sys.modules.get(kind.__module__)
    return kind.__module__.startswith("gymnasium.") and getattr(module, kind.__qualname__, None) is kind

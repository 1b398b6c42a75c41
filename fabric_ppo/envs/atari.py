"""Atari games as agents are usually trained on them (`--env-preset atari`).

After Machado et al., arXiv 1709.06009, and Mnih et al., Nature 518 (2015). Training and test see
the same: up to 30 no-ops first, each action for 4 frames, the maximum of the last two of them, in
gray and 84 x 84, the last four such frames together. Games are played to their end and rewards are
the game's. Learning alone takes rewards by their sign and a lost life for an end
(`rollouts.collect`).
"""

from __future__ import annotations

from typing import Any

import gymnasium
from gymnasium.wrappers import AtariPreprocessing, FrameStackObservation

FRAMES = 4
"""Frames in one observation."""

MAKE_OPTIONS = {"frameskip": 1, "obs_type": "grayscale"}
"""Options of `gymnasium.make`: AtariPreprocessing skips frames and reads the screen itself."""


def preprocessed(env: gymnasium.Env[Any, Any]) -> gymnasium.Env[Any, Any]:
    """Wrap a game made with `MAKE_OPTIONS`: observations `[4, 84, 84]`, uint8, newest last."""
    return FrameStackObservation(AtariPreprocessing(env), FRAMES)


def envpool_options(env: gymnasium.Env[Any, Any]) -> dict[str, Any]:
    """Return the options with which EnvPool does the same to the game that `env` is."""
    # sticky actions differ from version to version of a game: ask the game itself
    chance = env.unwrapped.ale.getFloat("repeat_action_probability")  # type: ignore[attr-defined]
    return {
        "repeat_action_probability": chance,
        "use_fire_reset": False,
        "frame_skip": 4,
        "noop_max": 30,
        "stack_num": FRAMES,
    }

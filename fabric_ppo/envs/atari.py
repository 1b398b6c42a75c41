"""Atari games as agents are usually trained on them (Machado et al., arXiv 1709.06009; `--env-preset atari`).

What acts and what is tested see the same: up to 30 no-ops first, each action for 4 frames, the maximum of the last two
of them, in gray and 84 x 84, the last four such frames together. Games are played to their end and rewards are the
game's. What is learnt from takes rewards by their sign and a lost life for an end (`rollout.collect`).
"""

from __future__ import annotations

from typing import Any

import gymnasium
from gymnasium.wrappers import AtariPreprocessing, FrameStackObservation

FRAMES = 4
MAKE_OPTIONS = {"frameskip": 1, "obs_type": "grayscale"}
"""For `gymnasium.make`: AtariPreprocessing skips frames itself, and reads the screen itself."""


def preprocessed(env: gymnasium.Env[Any, Any]) -> gymnasium.Env[Any, Any]:
    """A game made with `MAKE_OPTIONS` -> its observations `[4, 84, 84]` of bytes, the newest frame last."""
    return FrameStackObservation(AtariPreprocessing(env), FRAMES)


def envpool_options(env: gymnasium.Env[Any, Any]) -> dict[str, Any]:
    """What has EnvPool do the same to the game that `env` is."""
    chance = env.unwrapped.ale.getFloat("repeat_action_probability")  # type: ignore[attr-defined]
    return {
        "repeat_action_probability": chance,
        "use_fire_reset": False,
        "frame_skip": 4,
        "noop_max": 30,
        "stack_num": FRAMES,
    }

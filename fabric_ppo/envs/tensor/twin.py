"""Pictures of tensor environments, drawn by Gymnasium's environments of the same names."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray


def picture_of(env_id: str, state: Sequence[float]) -> NDArray[np.uint8]:
    """Return the picture of a state of Gymnasium's environment, `[height, width, 3]`."""
    env: Any = _twin(env_id)
    env.state = np.array(state)
    picture: NDArray[np.uint8] = env.render()
    return picture


@functools.cache
def _twin(env_id: str) -> gymnasium.Env[Any, Any]:
    """Return an environment that draws; it is kept, for a window takes long to set up."""
    env = gymnasium.make(env_id, render_mode="rgb_array")
    env.reset(seed=0)
    return env.unwrapped

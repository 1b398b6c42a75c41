"""Stacks of an environment's last observations (`--frame-stack`): their spaces, and what fills them.

An observation is then the last N of the environment's own, oldest first, on a new first axis, as
Gymnasium's FrameStackObservation has it; where an episode begins, its first one fills the stack.
Of a Dict or Tuple each part is stacked, but for an action mask, which is the newest alone.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fabric_ppo.envs.spaces import MOST_CHOICES, EnvSpec, Packer, SpaceSpec, is_mask, nested_space
from fabric_ppo.process.errors import ConfigError


def with_frames(spec: EnvSpec, count: int) -> EnvSpec:
    """Return `spec` with observations that are stacks of `count` frames; the same for 1.

    Raises:
        ConfigError: the stack has more choices than a network takes.
    """
    if count == 1:
        return spec
    space = spec.observation
    parts = tuple((path, leaf if is_mask(path, spec.action) else _stacked(leaf, count)) for path, leaf in space.parts)
    choices = max(sum(leaf.sizes) for _, leaf in (*parts, ((), _stacked(space, count))))
    if choices > MOST_CHOICES:
        raise ConfigError(
            f"--frame-stack {count}: observations of {spec.env_id} have {choices:,} choices then; "
            f"{MOST_CHOICES:,} at most are expected"
        )
    return replace(spec, observation=nested_space(parts, space.num_critic) if parts else _stacked(space, count))


def num_frames(space: SpaceSpec) -> int:
    """Return the number of frames in an observation; 1 where it is no stack."""
    return max([space.frames, *(leaf.frames for _, leaf in space.parts)])


def frame_of(space: SpaceSpec) -> SpaceSpec:
    """Return the space of which `space` holds stacks: the environment's own."""
    if space.parts:
        return nested_space(tuple((path, frame_of(leaf)) for path, leaf in space.parts), space.num_critic)
    if space.frames == 1:
        return space
    shape, count = space.shape[1:], space.frames
    fields: dict[str, Any] = {name: _first(getattr(space, name), count) for name in ("sizes", "start", "low", "high")}
    kind = "discrete" if space.kind == "multi_discrete" and shape == () else space.kind
    return replace(space, **fields, kind=kind, shape=shape, frames=1)


def _stacked(space: SpaceSpec, count: int) -> SpaceSpec:
    """Return the space of `count` frames of a space without parts."""
    # bounds that all entries have in common are those of the stack, too
    fields = {name: values * count if len(values := getattr(space, name)) > 1 else values for name in ("low", "high")}
    fields |= {name: getattr(space, name) * count for name in ("sizes", "start")}
    kind = "multi_discrete" if space.kind == "discrete" else space.kind
    return replace(space, **fields, kind=kind, shape=(count, *space.shape), frames=count)


def _first(values: tuple[Any, ...], count: int) -> tuple[Any, ...]:
    """Return the part of `values` that is the first frame's; one value stands for all entries."""
    return values if len(values) <= 1 else values[: len(values) // count]


def _num_bytes(space: SpaceSpec) -> int:
    return space.size * np.dtype(space.dtype).itemsize


class FrameStack:
    """A reader of an environment's observations that returns the stack which each completes."""

    def __init__(self, space: SpaceSpec) -> None:
        """Begin with an empty stack; `space` is the space of the stacks."""
        frame = frame_of(space)
        self._read = Packer(frame)
        self._frames = np.zeros((num_frames(space), *frame.shape), frame.dtype)
        self._is_empty = True
        # where each part lies in a packed frame, and where its frames lie in a packed stack
        own, stacks = (np.cumsum([0, *(_num_bytes(leaf) for _, leaf in each.parts)]) for each in (frame, space))
        self._places = [
            (slice(own[k], own[k + 1]), slice(stacks[k], stacks[k + 1]), leaf.frames)
            for k, (_, leaf) in enumerate(space.parts)
        ]
        self._size = space.size

    def clear(self) -> None:
        """Forget all frames: the next one fills the stack, as an episode's first does."""
        self._is_empty = True

    def restore(self, stack: NDArray[Any]) -> None:
        """Take over the frames of a stack that `__call__` returned."""
        self._is_empty = False
        if not self._places:
            self._frames[...] = stack
        for place, stacks_place, count in self._places:
            self._frames[-count:, place] = stack[stacks_place].reshape(count, -1)

    def __call__(self, obs: Any) -> NDArray[Any]:
        """Add the environment's next observation.

        Returns:
            The stack, `[N, *shape]`; of a nested space packed, `[size]` bytes. It is a new array.

        Raises:
            ValueError: the observation cannot be what its space says (`spaces.Packer`).
        """
        frame = self._read(obs)
        if self._is_empty:
            self._frames[:] = frame
            self._is_empty = False
        else:
            self._frames[:-1] = self._frames[1:]
            self._frames[-1] = frame
        if not self._places:
            return self._frames.copy()
        stack = np.empty(self._size, np.uint8)
        for place, stacks_place, count in self._places:
            stack[stacks_place] = self._frames[-count:, place].reshape(-1)
        return stack

"""Arrays in memory that a run shares with the worker processes of its environments."""

from __future__ import annotations

import math
import mmap
import os
import tempfile

import numpy as np

from fabric_ppo.envs.contract import Array
from fabric_ppo.envs.spaces import EnvSpec

_ALIGNMENT = 64
"""Bytes: arrays begin at multiples of it, a cache line."""


def array_fields(spec: EnvSpec, num_info: int = 1) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Return, by name, the dtype and shape of one environment's part of the shared memory.

    `num_info` is the number of keys that are read of its `info`.
    """
    obs, action = spec.observation, spec.action
    return {
        "actions": (action.dtype, action.shape),
        "obs": (obs.dtype, obs.shape),
        "final_obs": (obs.dtype, obs.shape),
        "rewards": ("float32", ()),
        "terminated": ("bool", ()),
        "truncated": ("bool", ()),
        "lost_life": ("bool", ()),
        "info": ("float64", (num_info, 2)),
    }


def open_shared_file(spec: EnvSpec, num_envs: int, num_info: int = 1) -> int:
    """Return a new file without a name that has room for the arrays of `num_envs` environments.

    It is handed to processes by its descriptor, so a kill leaves nothing behind.

    Raises:
        OSError: there is no room for it.
    """
    if hasattr(os, "memfd_create"):
        file = os.memfd_create("environments")
    else:
        with tempfile.TemporaryFile() as temporary:
            file = os.dup(temporary.fileno())
    os.ftruncate(file, _layout(spec, num_envs, num_info)[1])
    return file


def map_arrays(file: int, spec: EnvSpec, num_envs: int, num_info: int = 1) -> dict[str, Array]:
    """Return what `open_shared_file` returned as arrays `[num_envs, ...]`, by name."""
    offsets, size = _layout(spec, num_envs, num_info)
    memory = mmap.mmap(file, size)
    return {
        name: np.frombuffer(memory, dtype, num_envs * math.prod(shape), offsets[name]).reshape(num_envs, *shape)
        for name, (dtype, shape) in array_fields(spec, num_info).items()
    }


def _layout(spec: EnvSpec, num_envs: int, num_info: int) -> tuple[dict[str, int], int]:
    """Return where each array begins, and the size of all, in bytes."""
    offsets, size = {}, 0
    for name, (dtype, shape) in array_fields(spec, num_info).items():
        offsets[name] = size
        size += num_envs * math.prod(shape) * np.dtype(dtype).itemsize
        size += -size % _ALIGNMENT
    return offsets, size

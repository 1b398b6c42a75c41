"""PyTorch's settings of this process, which code of an environment may change for itself."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch


@contextlib.contextmanager
def torch_settings_kept() -> Iterator[None]:
    """Run environments with gradients on, as PyTorch comes; restore all settings afterwards.

    An environment may train a network of its own, or switch gradients off for one.
    """
    dtype, threads, deterministic = (
        torch.get_default_dtype(),
        torch.get_num_threads(),
        torch.get_deterministic_debug_mode(),
    )
    try:
        with torch.enable_grad():
            yield
    finally:
        torch.set_default_dtype(dtype)
        torch.set_deterministic_debug_mode(deterministic)
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)

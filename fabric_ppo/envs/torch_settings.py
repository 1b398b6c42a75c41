"""PyTorch's settings of this process, which code of an environment may change for itself."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def torch_settings_kept() -> Iterator[None]:
    """Run environments with gradients on, as PyTorch comes; restore all settings afterwards.

    An environment may train a network of its own, or switch gradients off for one.
    """
    if (torch := sys.modules.get("torch")) is None:  # a worker that was not forked: it starts in a tenth of the time
        yield
        return
    device, dtype, threads, deterministic = (
        torch.get_default_device(),
        torch.get_default_dtype(),
        torch.get_num_threads(),
        torch.get_deterministic_debug_mode(),
    )
    try:
        with torch.enable_grad():
            yield
    finally:
        torch.set_default_dtype(dtype)
        # where one is set, PyTorch calls Python for each operation, also for "cpu"
        if torch.get_default_device() != device:
            torch.set_default_device(None if device.type == "cpu" else device)
        torch.set_deterministic_debug_mode(deterministic)
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)

"""Settings of this process that a run changes, and that a program around it keeps."""

from __future__ import annotations

import contextlib
import os
import random
import warnings
from collections.abc import Callable, Iterator
from typing import Any

_THREADS = "OMP_NUM_THREADS"


@contextlib.contextmanager
def callers_settings_kept() -> Iterator[None]:
    """Run the block with PyTorch's settings as PyTorch comes; restore the caller's afterwards.

    A notebook may have another default dtype or device, or gradients off: a run in it is to have
    the result of the script. Afterwards it has these again, and its threads, determinism, random
    state and filters of warnings.
    """
    import torch

    threads = os.environ.get(_THREADS)
    kept = [(restore, read()) for read, restore in _accessors()]
    device = torch.get_default_device()
    try:
        with warnings.catch_warnings(), torch.inference_mode(False), torch.enable_grad():
            torch.set_default_dtype(torch.float32)
            torch.set_deterministic_debug_mode("default")
            _set_default_device(torch.device("cpu"))
            yield
    finally:
        _set_default_device(device)
        for restore, value in kept:
            restore(value)
        if threads is None:
            os.environ.pop(_THREADS, None)
        else:
            os.environ[_THREADS] = threads


@contextlib.contextmanager
def settings_kept(seed: int) -> Iterator[None]:
    """Run the user's code, and restore afterwards all settings that training depends on.

    These are PyTorch's settings, NumPy's treatment of floating-point errors, the working directory,
    and the states of the global random generators of Python, NumPy and PyTorch. Within the block
    these generators start from `seed`, below 2**32.
    """
    import numpy as np
    import torch

    kept = [(restore, read()) for read, restore in (*_accessors(), *_generators())]
    device, folder = torch.get_default_device(), _working_directory()
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    torch.default_generator.manual_seed(seed)
    try:
        with np.errstate(), torch.enable_grad():
            yield
    finally:
        _set_default_device(device)
        for restore, value in kept:
            restore(value)
        if folder is not None and _working_directory() != folder:
            os.chdir(folder)


def _working_directory() -> str | None:
    """Return the working directory; None where it has been deleted."""
    try:
        return os.getcwd()
    except OSError:
        return None


def _generators() -> list[tuple[Callable[[], Any], Callable[[Any], object]]]:
    """Return a function that reads and one that sets, for global generators besides PyTorch's."""
    import numpy as np
    import torch

    found: list[tuple[Callable[[], Any], Callable[[Any], object]]] = [
        (random.getstate, random.setstate),
        (np.random.get_state, np.random.set_state),
    ]
    if torch.cuda.is_initialized():
        found.append((torch.cuda.get_rng_state_all, torch.cuda.set_rng_state_all))
    return found


def _accessors() -> list[tuple[Callable[[], Any], Callable[[Any], object]]]:
    """Return a function that reads and one that sets, for each of PyTorch's settings."""
    import torch
    from torch.backends import cudnn

    def attribute(holder: Any, name: str) -> tuple[Callable[[], Any], Callable[[Any], object]]:
        return lambda: getattr(holder, name), lambda value: setattr(holder, name, value)

    def anomalies() -> tuple[bool, bool]:
        return torch.is_anomaly_enabled(), torch.is_anomaly_check_nan_enabled()

    return [
        (torch.get_default_dtype, torch.set_default_dtype),
        (torch.get_num_threads, torch.set_num_threads),
        (torch.get_deterministic_debug_mode, torch.set_deterministic_debug_mode),
        attribute(torch.utils.deterministic, "fill_uninitialized_memory"),
        (torch.is_grad_enabled, torch.set_grad_enabled),
        (anomalies, lambda both: torch.autograd.set_detect_anomaly(*both)),
        (torch.get_rng_state, torch.set_rng_state),
        (torch.get_float32_matmul_precision, torch.set_float32_matmul_precision),
        *(attribute(cudnn, name) for name in ("enabled", "benchmark", "deterministic")),
    ]


def _set_default_device(device: Any) -> None:
    import torch

    # where one is set, PyTorch calls Python for each operation, also for "cpu"
    if torch.get_default_device() != device:
        torch.set_default_device(None if device.type == "cpu" else device)

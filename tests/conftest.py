"""What every test needs: one PyTorch thread, no display, and compiled functions that are there."""

from __future__ import annotations

import os

os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
os.environ.setdefault("SDL_AUDIODRIVER", "dummy")

import pytest
import torch

from fabric_ppo.fast.kernels import _cache_folder, kernels

torch.set_num_threads(1)
# here, where nobody looks at what is printed; processes with another home find them, too
os.environ["FABRIC_PPO_CACHE"] = str(_cache_folder())
for each in (torch.float32, torch.float64):
    kernels(each)


@pytest.fixture(autouse=True)
def _one_thread():
    """A run sets the number of threads for the whole process: put it back."""
    yield
    torch.set_num_threads(1)

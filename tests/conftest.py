"""What every test needs: one PyTorch thread, and no display."""

from __future__ import annotations

import os

os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
os.environ.setdefault("SDL_AUDIODRIVER", "dummy")

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _one_thread():
    """A run sets the number of threads for the whole process: put it back."""
    yield
    torch.set_num_threads(1)

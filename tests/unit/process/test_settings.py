"""Settings of this process that code of the user's own may change."""

from __future__ import annotations

import os
import random

import numpy as np
import pytest
import torch

from fabric_ppo.process.settings import settings_kept
from tests.fixtures.watchers import draw, unsettle


def settings():
    """What training depends on."""
    return {
        "dtype": torch.get_default_dtype(),
        "device": torch.get_default_device(),
        "threads": torch.get_num_threads(),
        "gradients": torch.is_grad_enabled(),
        "deterministic": torch.get_deterministic_debug_mode(),
        "filling": torch.utils.deterministic.fill_uninitialized_memory,
        "precision": torch.get_float32_matmul_precision(),
        "anomalies": torch.is_anomaly_enabled(),
        "cudnn": torch.backends.cudnn.benchmark,
        "errors": np.geterr(),
        "folder": os.getcwd(),
        "torch": torch.get_rng_state().tolist(),
        "numpy": [each.tolist() if isinstance(each, np.ndarray) else each for each in np.random.get_state()],  # noqa: NPY002
        "python": random.getstate(),
    }


def drawn(seed):
    with settings_kept(seed):
        return random.random(), np.random.random(), torch.rand(()).item()  # noqa: NPY002


@pytest.mark.parametrize("raises", [False, True])
def test_everything_is_as_before(raises):
    before = settings()
    with pytest.raises(LookupError) if raises else settings_kept(2), settings_kept(3):
        draw()
        unsettle()
        if raises:
            raise LookupError
    assert settings() == before


def test_gradients_are_on_within():
    with torch.no_grad(), settings_kept(3):
        assert torch.is_grad_enabled()


def test_draws_follow_from_the_seed_alone():
    first = drawn(3)
    draw()
    assert drawn(3) == first
    assert not set(drawn(4)) & set(first)


def test_a_folder_that_is_gone_is_no_error(tmp_path):
    before = os.getcwd()
    (tmp_path / "gone").mkdir()
    os.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    try:
        with settings_kept(3):
            os.chdir("/")
        assert os.getcwd() == "/"
    finally:
        os.chdir(before)

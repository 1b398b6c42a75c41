"""Runs with `fabric run --precision`."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

from tests.fixtures.resuming import finish


@pytest.mark.parametrize("env_id", ["CartPole-v1", "Pendulum-v1", "tests.fixtures.nested_envs:Masked-v0"])
@pytest.mark.parametrize(("script", "size"), [("fabric", 2), ("decoupled", 3)])
def test_a_run_in_mixed_precision(tmp_path, script, size, env_id):
    """Weights stay in 32 bits, and are others than without."""
    runs = [
        finish(script, size, tmp_path / str(precision), 2, precision=precision, env_id=env_id)
        for precision in ("bf16-mixed", None)
    ]
    mixed, single = (load_file(run / "policy.safetensors") for run in runs)
    assert all(tensor.dtype == torch.float32 and tensor.isfinite().all() for tensor in mixed.values())
    assert any(not torch.equal(mixed[name], single[name]) for name in mixed)

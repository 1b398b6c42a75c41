"""H3: player and trainers that share data end where as many coupled ranks do."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

from tests.fixtures.resuming import finish

pytestmark = pytest.mark.processes

PARTS = "tests.fixtures.mixed_envs:PartsMasks-v0"


@pytest.mark.parametrize("num_trainers", [1, 2, 3])
@pytest.mark.parametrize("env_id", ["CartPole-v1", "Pendulum-v1", "tensor/Pendulum-v1", PARTS])
def test_shared_data_ends_where_the_coupled_script_does(tmp_path, num_trainers, env_id):
    """As many ranks as trainers on the same environments, in float64."""
    flags = {"env_id": env_id, "share_data": True, "num_steps": 24, "precision": "64-true"}
    ours = finish("decoupled", 1 + num_trainers, tmp_path / "d", 1, num_envs=6, **flags)
    coupled = finish("fabric", num_trainers, tmp_path / "c", 1, num_envs=6 // num_trainers, **flags)
    expected = load_file(coupled / "policy.safetensors")
    for name, tensor in load_file(ours / "policy.safetensors").items():
        assert tensor.dtype == torch.float64
        assert (tensor - expected[name]).abs().max() < 1e-9

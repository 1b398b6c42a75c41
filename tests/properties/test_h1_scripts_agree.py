"""H1: the raw PyTorch and the Fabric script end with the same bits."""

from __future__ import annotations

import re
import shutil

import pytest

from tests.fixtures.launching import command, run
from tests.fixtures.resuming import finish, metrics

pytestmark = pytest.mark.processes


@pytest.mark.parametrize(
    ("world_size", "env_id", "share_data"),
    [
        (1, "CartPole-v1", False),
        (1, "Pendulum-v1", True),
        (2, "CartPole-v1", True),
        (2, "Pendulum-v1", False),
        (3, "CartPole-v1", False),
        (3, "Pendulum-v1", True),
        (1, "tensor/Acrobot-v1", False),
        (2, "tensor/CartPole-v1", True),
        (1, "tests.fixtures.mixed_envs:Parts-v0", False),
        (2, "tests.fixtures.mixed_envs:PartsMasks-v0", True),
    ],
)
def test_torch_and_fabric_end_with_the_same_bits(tmp_path, world_size, env_id, share_data):
    flags = {"env_id": env_id, "share_data": share_data, "ortho_init": True, "num_steps": 24}
    runs = [finish(script, world_size, tmp_path / script, 4, **flags) for script in ("torch", "fabric")]
    policies = [(run_dir / "policy.safetensors").read_bytes() for run_dir in runs]
    assert policies[0] == policies[1]
    assert metrics(runs[0]) == metrics(runs[1])


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_compiled_scripts_end_with_the_same_bits(tmp_path):
    """As processes of their own: a fork would inherit the compiler's threads from another test."""
    flags = [
        "--compile",
        "--num-steps",
        "24",
        "--total-timesteps",
        "96",
        "--update-epochs",
        "2",
        "--test-episodes",
        "1",
    ]
    for script in ("torch", "fabric"):
        done = run(command(script, 0, *flags, "--run-dir", script), tmp_path)
        assert done.returncode == 0, done.stderr
        assert re.search(r"^--compile took \d+\.\d s$", done.stderr, re.MULTILINE)
    policies = [(tmp_path / script / "policy.safetensors").read_bytes() for script in ("torch", "fabric")]
    assert policies[0] == policies[1]

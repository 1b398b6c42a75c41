"""Encoders, nested observations and action masks in whole runs."""

from __future__ import annotations

import json

import pytest
import torch
from gymnasium import spaces

from fabric_ppo.agents.make import make_agent
from fabric_ppo.agents.policy import load_agent
from fabric_ppo.config import SCRIPT_CONFIGS, Config
from fabric_ppo.envs.gymnasium_spaces import env_spec
from fabric_ppo.process.errors import flag
from fabric_ppo.rollouts.evaluate import evaluate
from tests.fixtures.configs import tiny
from tests.fixtures.launching import ROOT, command, run, run_ranks

NESTED, MASKED, IN_INFO = (f"tests.fixtures.nested_envs:{name}-v0" for name in ("Nested", "Masked", "MaskInInfo"))
FLAGS = tiny(hidden_sizes=(16,))


FROM_INFO = "fabric_ppo.envs.masks:action_mask_from_info"


LARGE = {"num_envs": 64, "num_steps": 128, "update_epochs": 2, "per_rank_batch_size": 1024, "hidden_sizes": 32}


@pytest.mark.parametrize(("env_id", "wrapper"), [(MASKED, []), (IN_INFO, ["--env-wrapper", FROM_INFO])])
def test_no_impossible_action_is_taken_in_a_hundred_thousand_steps(tmp_path, env_id, wrapper):
    """The environment raises at one; the policy of chance, among what is possible, earns 10 an episode."""
    flags = [f"{flag(name)}={value}" for name, value in LARGE.items()]
    flags += ["--env-id", env_id, *wrapper, "--total-timesteps=106496", "--learning-rate=3e-3", "--num-threads=1"]
    done = run(command("torch", 0, *flags, "--run-dir", str(tmp_path / "run")), ROOT)
    assert done.returncode == 0, done.stderr
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["env_steps"] == 106496
    assert summary["test"]["return_mean"] > 14


def result(script, world_size, run_dir, **flags):
    config = SCRIPT_CONFIGS[script](**FLAGS | flags, run_dir=str(run_dir))
    assert run_ranks(script, [config] * world_size) == [""] * world_size
    return (run_dir / "policy.safetensors").read_bytes()


def test_an_encoder_of_ones_own_in_every_script(tmp_path):
    """Its class makes its weights, also with --ortho-init; all scripts train them, also when resumed."""
    flags = {
        "encoder": "tests.fixtures.nested_envs:Linear",
        "ortho_init": True,
        "anneal_lr": False,
        "shared_trunk": True,
    }
    spec = env_spec("CartPole-v1", spaces.Box(-1, 1, (4,)), spaces.Discrete(2))
    kept, other = (make_agent(spec, Config(**flags | {"ortho_init": ortho})).encoder for ortho in (True, False))
    assert torch.equal(kept._leaves[0].network.layer.weight, other._leaves[0].network.layer.weight)
    whole = result("torch", 1, tmp_path / "torch", **flags)
    assert result("fabric", 1, tmp_path / "fabric", **flags) == whole
    result("decoupled", 2, tmp_path / "decoupled", **flags | {"total_timesteps": 128})
    assert result("decoupled", 2, tmp_path / "decoupled", **flags, resume=True) == whole
    layer = load_agent(tmp_path / "torch", own_code=True)._agent.encoder._leaves[0].network.layer
    assert not torch.equal(layer.weight, kept._leaves[0].network.layer.weight)


@pytest.mark.parametrize("env_id", [NESTED, MASKED, "tests.fixtures.nested_envs:Images-v0"])
def test_the_architectures_learn_the_same(tmp_path, env_id):
    flags = {"env_id": env_id, "num_envs": 2}
    policies = [result(script, 1, tmp_path / script, **flags) for script in ("torch", "fabric")]
    policies.append(result("decoupled", 2, tmp_path / "decoupled", **flags))
    assert policies[0] == policies[1] == policies[2]
    two = [result(script, 2, tmp_path / f"{script}2", **flags | {"num_envs": 1}) for script in ("torch", "fabric")]
    assert two[0] == two[1]


@pytest.mark.parametrize(
    ("env_id", "encoder"), [("Choices", "auto"), ("Bits", "auto"), ("Images", "impala"), ("ImagesFirst", "nature")]
)
def test_every_kind_of_observation_in_every_script(tmp_path, env_id, encoder):
    """The same bits from all three, also when resumed; the policy plays its test again."""
    flags = {"env_id": f"tests.fixtures.nested_envs:{env_id}-v0", "encoder": encoder, "num_envs": 2, "anneal_lr": False}
    flags |= {"num_steps": 8, "total_timesteps": 48, "seed": 3}
    whole = result("torch", 1, tmp_path / "torch", **flags)
    assert result("fabric", 1, tmp_path / "fabric", **flags) == whole
    for script, size in (("torch", 1), ("decoupled", 2)):
        result(script, size, tmp_path / f"{script} parts", **flags | {"total_timesteps": 32})
        assert result(script, size, tmp_path / f"{script} parts", **flags, resume=True) == whole
    summary = json.loads((tmp_path / "decoupled parts" / "summary.json").read_text())
    assert summary["exact_resume"] is True
    assert evaluate(load_agent(tmp_path / "torch"), 2, seed=3).returns == summary["test"]["returns"]


@pytest.mark.parametrize("backend", ["sync", "async"])
@pytest.mark.parametrize("env_id", [NESTED, MASKED])
def test_a_resumed_run_ends_with_the_same_bits(tmp_path, env_id, backend):
    flags = {"env_id": env_id, "env_backend": backend, "anneal_lr": False}
    whole = result("torch", 1, tmp_path / "whole", **flags)
    result("torch", 1, tmp_path / "parts", **flags | {"total_timesteps": 64})
    assert result("torch", 1, tmp_path / "parts", **flags, resume=True) == whole
    assert '"exact_resume": true' in (tmp_path / "parts" / "summary.json").read_text()

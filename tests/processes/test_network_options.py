"""Ways to build the networks, in the three architectures and through an interruption."""

from __future__ import annotations

import shutil

import pytest

from fabric_ppo.config import SCRIPT_CONFIGS
from tests.fixtures.configs import NETWORKS, TINY
from tests.fixtures.launching import run_ranks


@pytest.mark.parametrize("env_id", ["Pendulum-v1", "tests.fixtures.nested_envs:Masked-v0"])
@pytest.mark.parametrize("options", NETWORKS.values(), ids=NETWORKS)
def test_the_architectures_learn_the_same_and_go_on_exactly(tmp_path, env_id, options):
    def result(script, world_size, name, **flags):
        config = SCRIPT_CONFIGS[script](env_id=env_id, **TINY | options | flags, run_dir=str(tmp_path / name))
        assert run_ranks(script, [config] * world_size) == [""] * world_size
        return (tmp_path / name / "policy.safetensors").read_bytes()

    whole = result("torch", 1, "torch", anneal_lr=False)
    assert result("fabric", 1, "fabric", anneal_lr=False) == whole
    assert result("decoupled", 2, "decoupled", anneal_lr=False) == whole
    result("torch", 1, "parts", anneal_lr=False, total_timesteps=64)
    assert result("torch", 1, "parts", anneal_lr=False, resume=True) == whole


@pytest.mark.parametrize("env_id", ["Pendulum-v1", "tests.fixtures.nested_envs:Masked-v0"])
def test_two_ranks_learn_the_same_in_torch_and_fabric(tmp_path, env_id):
    """Trunk and layer norm under DDP, from a trained policy on, which every rank reads."""
    start = config_of(tmp_path, "torch", "start", env_id=env_id, **NETWORKS["all"])
    assert run_ranks("torch", [start]) == [""]
    policies = []
    for script, init_from in (("torch", "start"), ("fabric", "start"), ("fabric", None)):
        flags = NETWORKS["all"] | {"init_from": init_from and str(tmp_path / init_from)}
        config = config_of(tmp_path, script, f"{script} {init_from}", env_id=env_id, **flags)
        assert run_ranks(script, [config] * 2) == ["", ""]
        policies.append((tmp_path / f"{script} {init_from}" / "policy.safetensors").read_bytes())
    assert policies[0] == policies[1] != policies[2]


@pytest.mark.parametrize(("script", "size"), [("torch", 1), ("decoupled", 2)])
def test_a_run_resumes_without_the_policy_it_started_with(tmp_path, script, size):
    """The policy that a run started with may be gone. Trainers have got it from their player."""
    flags = {"env_id": "Pendulum-v1", "anneal_lr": False, "init_from": str(tmp_path / "start")}
    assert run_ranks("torch", [config_of(tmp_path, "torch", "start", **flags | {"init_from": None})]) == [""]

    def result(name, script=script, size=size, **more):
        assert run_ranks(script, [config_of(tmp_path, script, name, **flags | more)] * size) == [""] * size
        return (tmp_path / name / "policy.safetensors").read_bytes()

    whole = result("whole")
    assert result("fabric", "fabric", 1) == whole != result("new", init_from=None)
    result("parts", total_timesteps=64)
    shutil.rmtree(tmp_path / "start")
    assert result("parts", resume=True) == whole


def config_of(tmp_path, script, name, **flags):
    return SCRIPT_CONFIGS[script](**TINY | flags, run_dir=str(tmp_path / name))

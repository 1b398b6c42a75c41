"""All three scripts start from a policy that imitates demonstrations, and begin with its returns."""

from __future__ import annotations

import json

import numpy as np
import pytest

from fabric_ppo.agents.policy import Policy
from fabric_ppo.api import evaluate
from fabric_ppo.config import SCRIPT_CONFIGS
from fabric_ppo.tools import cli
from tests.fixtures.agents import agent_for
from tests.fixtures.launching import run_ranks


class Expert(Policy):
    """Balances CartPole's pole by a rule that always reaches 500."""

    def act(self, obs, noise=None, memory=None):
        return (obs @ [0.1, 0.5, 1.0, 1.0] > 0).astype(np.int64)


@pytest.mark.parametrize("recurrent", ["none", "lstm"])
def test_every_script_starts_with_what_was_learned(tmp_path, recurrent):
    # a recurrent agent makes a gradient step of an episode: many short ones teach it sooner
    episodes, limit = (8, 500) if recurrent == "none" else (60, 50)
    evaluate(Expert(agent_for("CartPole-v1")), episodes, step_limit=limit, record=tmp_path / "demos.npz")
    words = ["imitate", "--data", str(tmp_path / "demos.npz"), "--out", str(tmp_path / "clone"), "--quiet"]
    network = ["--recurrent", recurrent, "--normalize-observations", "--learning-rate", "3e-3"]
    assert cli.main([*words, *network, "--epochs", "20"]) == 0
    flags = {"num_envs": 4, "num_steps": 512, "total_timesteps": 2048, "update_epochs": 1, "test_episodes": 1}
    flags |= {"recurrent": recurrent, "normalize_observations": True, "num_threads": 1}
    policies, returns = {}, {}
    for script, ranks in (("torch", 1), ("fabric", 1), ("decoupled", 2)):
        config = SCRIPT_CONFIGS[script](**flags, init_from=str(tmp_path / "clone"), run_dir=str(tmp_path / script))
        assert run_ranks(script, [config] * ranks) == [""] * ranks
        policies[script] = (tmp_path / script / "policy.safetensors").read_bytes()
        returns[script] = json.loads((tmp_path / script / "summary.json").read_bytes())["train_return_mean"]
    assert policies["torch"] == policies["fabric"]
    assert min(returns.values()) > 100, "new agents have about 20"
    assert len(set(returns.values())) == 1, "the first rollout is that of the policy, whatever the script"

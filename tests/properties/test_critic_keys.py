"""What the value network alone takes: it changes no action, is valued, and any run with it is a run like others."""

from __future__ import annotations

import dataclasses
import re

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from fabric_ppo.agents.make import make_agent
from fabric_ppo.agents.policy import load_agent
from fabric_ppo.api import evaluate
from fabric_ppo.config import Config
from fabric_ppo.envs.make import make_envs
from fabric_ppo.fast.compiled_convolutions import compile_convolutions
from fabric_ppo.ppo.batch import make_batch
from fabric_ppo.process.errors import EnvironmentFault
from fabric_ppo.process.group import ALONE
from fabric_ppo.tools import cli
from tests.fixtures.hidden_envs import KEYS, Hidden, HiddenTensors
from tests.fixtures.launching import ROOT, command, run
from tests.fixtures.learning import learned_agent
from tests.fixtures.resuming import assert_a_killed_run_goes_on, finish
from tests.fixtures.rollouts import rollouts

MODULE = "tests.fixtures.hidden_envs"
KEYED = {"critic_keys": KEYS}
RECURRENT = {"recurrent": "lstm", "recurrent_size": 6, "sequence_length": 8, "per_rank_batch_size": 16}
AGENTS = {
    "plain": {},
    "normalised": {"normalize_observations": True},
    "masked": {"env_id": f"{MODULE}:HiddenMasked-v0"},
    "lstm": {**RECURRENT, "normalize_observations": True},
    "lstm, masked": {**RECURRENT, "env_id": f"{MODULE}:HiddenMasked-v0"},
    "image": {"env_id": f"{MODULE}:HiddenImage-v0", "encoder": "nature"},
    "policy's image": {
        **{"env_id": f"{MODULE}:HiddenImage-v0", "encoder": "nature"},
        **{"obs_keys": "state", "critic_keys": "goal"},
    },
    "tensors": {
        **{"env_id": f"{MODULE}:HiddenTensors", "env_backend": "vector"},
        "normalize_observations": True,
    },
}


def config_of(name):
    flags = {"env_id": f"{MODULE}:Hidden-v0"} | KEYED | AGENTS[name]
    return Config(**flags, num_envs=3, num_steps=16, hidden_sizes=(7,))


def collected(name):
    """An agent with statistics of one rollout and biases that are not zero, and its next rollout."""
    config = config_of(name)
    envs = make_envs(config, 0, 1)
    agent = make_agent(envs.spec, config)
    with torch.no_grad():
        for parameter in agent.parameters():
            if parameter.ndim == 1:
                parameter.normal_(std=0.1)
    following = rollouts(envs, agent, config.num_steps, 2)
    agent.update_statistics(next(following).moments)
    second = next(following)
    envs.close()
    return agent, second


def with_other_sides(agent, obs):
    """Observations whose parts for the value network alone are those of other rows."""
    begin = agent.spec.observation.for_policy.size
    return torch.cat([obs[:, :begin], obs.roll(1, 0)[:, begin:]], dim=1)


@pytest.mark.parametrize("name", AGENTS)
def test_actions_do_not_depend_on_what_only_the_value_network_takes(name):
    agent, rollout = collected(name)
    obs, actions, memory = (each.flatten(0, 1) for each in (rollout.obs, rollout.actions, rollout.memory))
    other = with_other_sides(agent, obs)
    assert (obs != other).any()
    with torch.no_grad():
        (log_probs, values), (other_log_probs, other_values) = (
            agent.log_probs_and_values(each, actions, memory) for each in (obs, other)
        )
        assert torch.equal(log_probs, other_log_probs)
        assert torch.equal(agent.act(obs, None, memory)[0], agent.act(other, None, memory)[0])
        begin = agent.spec.observation.for_policy.size
        assert torch.equal(agent.act(obs, None, memory)[0], agent.act(obs[:, :begin], None, memory)[0])
    assert (values != other_values).any()
    # a rollout has these values, also where a network has encoded the policy's parts before
    torch.testing.assert_close(log_probs, rollout.log_probs.flatten(), rtol=0, atol=1e-5)
    torch.testing.assert_close(values, rollout.values.flatten(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", AGENTS)
def test_no_gradient_flows_from_the_policy_into_what_the_value_network_has_alone(name):
    """It is exactly zero, by input and by weight; that of the values is not."""
    agent, rollout = collected(name)
    seen = []

    def watch(_, inputs, outputs):
        seen.append(outputs.requires_grad_())
        outputs.retain_grad()

    agent.critic_encoder.register_forward_hook(watch)
    rows = make_batch(rollout, config_of(name), ALONE, 0, agent.device).rows
    evaluation = agent(rows.obs, rows.actions, rows.sequences)
    (features,) = seen
    own = [features, *agent.critic_encoder.parameters(), *agent.value.parameters()]
    (evaluation.log_probs.sum() + evaluation.entropy.sum()).backward(retain_graph=True)
    assert all(each.grad is None or not each.grad.any() for each in own)
    assert any(each.grad is not None and each.grad.any() for each in agent.policy.parameters())
    evaluation.values.sum().backward()
    assert all(each.grad is not None and each.grad.any() for each in own)


@pytest.mark.parametrize("name", AGENTS)
def test_a_policy_acts_as_one_that_was_never_given_more(name):
    """The same weights, in an agent for the policy's parts alone: the same parameters of actions, bit for bit."""
    agent, rollout = collected(name)
    obs, memory = rollout.obs.flatten(0, 1), rollout.memory.flatten(0, 1)
    observation = agent.spec.observation.for_policy
    architecture = agent.architecture
    if name == "image":  # there is none left
        architecture = dataclasses.replace(architecture, encoder="flatten")
    alone = type(agent)(dataclasses.replace(agent.spec, observation=observation), architecture)
    own, theirs = alone.state_dict(), agent.state_dict()
    kept = {key: each for key, each in theirs.items() if key in own and not key.startswith("value.")}
    assert {key for key in own if not key.startswith("value.")} == kept.keys()
    alone.load_state_dict(kept, strict=False)
    compile_convolutions(alone)  # as the other one's are
    with torch.no_grad():
        features, _ = agent.remember(agent.features(obs), memory)
        expected, _ = alone.remember(alone.features(obs[:, : observation.size]), memory)
        assert torch.equal(agent.policy_params(features), alone.policy_params(expected))


def test_statistics_are_those_of_the_parts_of_each_network():
    """Means and deviations by NumPy, from what the environments returned."""
    agent, _ = collected("normalised")
    config = config_of("normalised")
    envs = make_envs(config, 0, 1)
    first, _ = rollouts(envs, make_agent(envs.spec, config), 16, 2)
    rows = first.obs.flatten(0, 1).numpy()
    seen = np.ascontiguousarray(rows[:, :8]).view(np.float32)
    state = np.ascontiguousarray(rows[:, 16:]).view(np.float32)
    for moments, numbers in ((agent.obs_moments, seen), (agent.critic_moments, state)):
        np.testing.assert_allclose(moments.mean, numbers.mean(0), rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(moments.std, numbers.std(0), rtol=1e-4)
    envs.close()


@pytest.mark.parametrize("keys", ["state", "goal.inner"])
def test_the_value_of_what_the_policy_cannot_see_is_learned(open_envs, keys):
    """One side earns nothing, the other 1 for ever, which is worth 1 / (1 - 0.9) = 10."""
    envs = open_envs(f"{MODULE}:HiddenSide-v0", 4, critic_keys=keys, obs_keys="goal.seen")
    agent = learned_agent(envs, normalize_observations=keys == "state")
    for side, worth in ((0, 0), (1, 10)):
        rows = next(row for row in seen_rows(envs) if is_of(row, keys, side))
        assert agent.values(rows[None]).item() == pytest.approx(worth, abs=0.6)


def test_without_it_both_sides_are_worth_the_same(open_envs):
    """The control of the test above: the mean of 0 and 10 is all that can be learned."""
    envs = open_envs(f"{MODULE}:HiddenSide-v0", 4, obs_keys="goal.seen")
    agent = learned_agent(envs)
    assert agent.values(torch.zeros(1, 8, dtype=torch.uint8)).item() == pytest.approx(5, abs=1.5)


def seen_rows(envs):
    """First observations of eight times four episodes."""
    obs = np.zeros((4, envs.spec.observation.size), np.uint8)
    while True:
        envs.reset(obs)
        yield from torch.from_numpy(obs.copy())


def is_of(row, keys, side):
    own = row[8:].numpy()
    return own.view(np.float32)[0] == 10 * side if keys == "state" else own.view(np.int64)[0] == 4 + side


@pytest.mark.processes
@pytest.mark.parametrize(
    ("size", "name", "flags"),
    [
        (1, "normalised", {}),
        (2, "masked", {"share_data": True}),
        (2, "lstm", {"env_backend": "async"}),
        (1, "image", {"num_steps": 8, "per_rank_batch_size": 8}),
        (2, "tensors", {}),
    ],
)
def test_torch_and_fabric_end_with_the_same_bits(tmp_path, size, name, flags):
    """H1."""
    ends = [finish(script, size, tmp_path / script, 2, **run_flags(name) | flags) for script in ("torch", "fabric")]
    assert len({(each / "policy.safetensors").read_bytes() for each in ends}) == 1


@pytest.mark.processes
@pytest.mark.parametrize("name", ["normalised", "lstm, masked"])
def test_ranks_are_a_place_and_trainers_end_where_coupled_ranks_do(tmp_path, name):
    """H2 and H3, in float64, after an update."""
    flags = run_flags(name) | {"share_data": True, "precision": "64-true"}
    rows = 32 if "sequence_length" in flags else 12
    alone = finish("fabric", 1, tmp_path / "1", 1, num_envs=4, **flags | {"per_rank_batch_size": rows})
    spread = finish("fabric", 2, tmp_path / "2", 1, num_envs=2, **flags | {"per_rank_batch_size": rows // 2})
    trained = finish("decoupled", 3, tmp_path / "3", 1, num_envs=4, **flags | {"per_rank_batch_size": rows // 2})
    expected = load_file(alone / "policy.safetensors")
    for other in (spread, trained):
        for key, tensor in load_file(other / "policy.safetensors").items():
            assert (tensor - expected[key]).abs().max() < 1e-9, key


@pytest.mark.processes
@pytest.mark.parametrize(
    ("script", "size", "name", "flags"),
    [
        ("torch", 1, "normalised", {}),
        ("fabric", 2, "masked", {"env_backend": "async"}),
        ("torch", 1, "lstm, masked", {}),
        ("torch", 1, "tensors", {}),
        ("decoupled", 2, "lstm", {"overlap": True}),
        ("decoupled", 3, "normalised", {"overlap": True}),
    ],
)
def test_a_killed_run_goes_on_to_the_same_bits(tmp_path, monkeypatch, script, size, name, flags):
    """H4."""
    assert_a_killed_run_goes_on(tmp_path, monkeypatch, script, size, run_flags(name) | flags)


def run_flags(name):
    return {"env_id": f"{MODULE}:Hidden-v0", "hidden_sizes": (7,)} | KEYED | AGENTS[name]


@pytest.mark.processes
@pytest.mark.parametrize("name", ["normalised", "lstm, masked"])
def test_a_trained_agent_is_tested_with_and_without_these_parts(tmp_path, monkeypatch, capfd, name):
    """By `evaluate` and the command: the same episodes in an environment that lacks them."""
    run_dir = finish("torch", 1, tmp_path / "run", 3, **run_flags(name) | {"eval_every": 1, "eval_episodes": 2})
    agent = load_agent(run_dir)
    assert [path for path, _ in agent.spec.observation.parts if path != ("action_mask",)] == [("goal", "seen")]
    given, words = evaluate(run_dir, 5, own_code=True), ["evaluate", str(run_dir), "--own-code", "--episodes", "5"]
    capfd.readouterr()
    assert cli.main(words) == 0
    printed = capfd.readouterr().out
    monkeypatch.setattr(Hidden, "gives_all", False)
    lacking = evaluate(run_dir, 5, own_code=True)
    assert (given.returns, given.lengths) == (lacking.returns, lacking.lengths)
    assert cli.main(words) == 0
    assert capfd.readouterr().out == printed
    obs, _ = Hidden(masked="masked" in name).reset(seed=3)
    monkeypatch.setattr(Hidden, "gives_all", True)
    whole, _ = Hidden(masked="masked" in name).reset(seed=3)
    assert "state" in whole
    assert "state" not in obs
    assert agent.act(whole) == agent.act(obs)
    batch = {"goal": {"seen": np.zeros((3, 2), np.float32)}, "action_mask": np.ones((3, 3), np.int8)}
    assert agent.act(batch).shape == (3,)
    assert np.isfinite(agent.value(whole))
    with pytest.raises(ValueError, match=r"^obs has no goal.inner: a dict with goal.seen, .*goal.inner, state is e"):
        agent.value(obs)


def test_a_number_that_is_not_finite_is_found_in_these_parts(monkeypatch):
    """Where observations are looked at once a rollout."""
    observed = HiddenTensors.observed

    def broken(self, seeds, seen):
        return observed(self, seeds, seen) | {"state": torch.full((len(seeds), 1), torch.inf)}

    monkeypatch.setattr(HiddenTensors, "observed", broken)
    with pytest.raises(EnvironmentFault, match=r"reset gave observation inf in entry \[0\], which is not finite$"):
        collected("tensors")


REFUSED = {
    "stat": "--critic-keys stat: .*Hidden.* has no observation stat; it has goal.inner, goal.seen, state",
    "goal,state": "--critic-keys goal,state: the policy has no observation left; some of .* are expected",
}


@pytest.mark.processes
@pytest.mark.parametrize("keys", REFUSED)
def test_wrong_keys_are_one_line_before_anything_is_written(tmp_path, keys):
    flags = ["--env-id", f"{MODULE}:Hidden-v0", "--critic-keys", keys, "--run-dir", str(tmp_path / "run")]
    done = run(command("torch", 0, *flags), ROOT)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert re.fullmatch(f"error: {REFUSED[keys]}", line)
    assert not (tmp_path / "run").exists()

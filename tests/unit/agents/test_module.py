"""The agent as a module, exported by `torch.export`: on random observations of each kind it acts as `act` does."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch.utils import _pytree as pytree

from fabric_ppo.agents.agent import Agent, Architecture
from fabric_ppo.agents.policy import Policy, load_agent
from fabric_ppo.agents.policy_file import save_policy
from fabric_ppo.envs.gymnasium_spaces import env_spec
from tests.fixtures.drawn_spaces import leaves, part_of
from tests.fixtures.mixed_envs import ACTION
from tests.fixtures.spaces import ACTION_SPACES, samples_of

MASK = spaces.Dict(action_mask=spaces.MultiBinary(5), observation=spaces.Box(-1, 1, (3,)))
OBSERVATIONS = {
    "float32": spaces.Box(-1, 1, (3,)),
    "float64 matrix": spaces.Box(-1, 1, (2, 3), np.float64),
    "float16": spaces.Box(-1, 1, (3,), np.float16),
    "scalar": spaces.Box(-1, 1, ()),
    "bytes": spaces.Box(0, 255, (4,), np.uint8),
    "bounded bytes": spaces.Box(2, 9, (4,), np.uint8),
    "integers": spaces.Box(-5, 9, (4,), np.int64),
    "bool": spaces.Box(0, 1, (3,), bool),
    "image": spaces.Box(0, 255, (40, 36, 3), np.uint8),
    "image, channels first": spaces.Box(0, 255, (3, 36, 40), np.uint8),
    "image, bounded": spaces.Box(0, 9, (36, 36, 1), np.uint8),
    "discrete": spaces.Discrete(4, start=3),
    "multi discrete": spaces.MultiDiscrete([2, 3, 4]),
    "multi discrete matrix": spaces.MultiDiscrete(np.array([[2, 3], [4, 5]]), start=np.array([[1, 0], [-2, 0]])),
    "multi binary": spaces.MultiBinary([2, 3]),
    "mask": MASK,
    "dict": spaces.Dict(
        image=spaces.Box(0, 255, (36, 36, 3), np.uint8),
        inner=spaces.Dict(a=spaces.Discrete(3), b=spaces.Tuple([spaces.Box(-1, 1, (2,)), spaces.MultiBinary(2)])),
        wide=spaces.Box(0, 60000, (2,), np.uint16),
    ),
    "tuple": spaces.Tuple([spaces.Box(-1, 1, (2,)), spaces.Discrete(3)]),
}
NETWORKS = {
    "normalised": {"normalize_observations": True},
    "trunk": {"shared_trunk": True, "layer_norm": True, "activation_function": "tanh"},
    "impala": {"encoder": "impala"},
    "lstm": {"recurrent": "lstm", "recurrent_size": 4},
    "gru": {"recurrent": "gru", "recurrent_size": 4, "shared_trunk": True},
}


def policy_for(observation, actions=None, fit="rescale", **architecture):
    torch.manual_seed(1)
    spec = env_spec("Test-v0", observation, actions or spaces.Discrete(5, start=2), fit=fit)
    options = {"activation_function": "relu", "hidden_sizes": (8,), "encoder": "auto"} | architecture
    policy = Policy(Agent(spec, Architecture(**options)))
    with torch.no_grad():
        for parameter in policy._agent.policy.parameters():
            parameter *= 3
    return policy


def tensors_of(samples):
    """A batch as tensors, of a Dict a dict of them, of a Tuple a tuple."""
    return pytree.tree_map(lambda *each: torch.from_numpy(np.stack([np.asarray(one) for one in each])), *samples)


def exported(policy, space, count=4):
    """The exported program, for batches of any size."""
    args = (tensors_of(samples_of(space, count)),)
    if policy.memory_size:
        args += (torch.zeros(count, policy.memory_size),)
    dynamic = pytree.tree_map(lambda _: {0: torch.export.Dim("batch", max=4096)}, args)
    return torch.export.export(policy.module, args, dynamic_shapes=dynamic).module()


def assert_the_same(policy, space, program, count=9):
    """Actions, values and memory are those of `act` and `value`, to rounding; one observation too."""
    samples = samples_of(space, count)
    memory = np.random.default_rng(0).normal(size=(count, policy.memory_size)).astype(np.float32)
    for each in (program, policy.module):
        for rows in (slice(None), slice(0, 1)):
            args = (tensors_of(samples[rows]),)
            if policy.memory_size:
                args += (torch.from_numpy(memory[rows]),)
            with torch.no_grad():
                out = each(*args)
            after = memory[rows].copy()
            actions = policy.act(
                samples[rows] if policy.spec.observation.parts else np.stack(samples[rows]), memory=after
            )
            values = policy.value(
                samples[rows] if policy.spec.observation.parts else np.stack(samples[rows]), memory[rows]
            )
            assert out["action"].numpy().dtype == actions.dtype
            np.testing.assert_allclose(out["action"], actions, rtol=1e-4, atol=1e-5)
            np.testing.assert_allclose(out["value"], values, rtol=1e-4, atol=1e-5)
            assert out["params"].shape == (len(actions), policy._agent.distribution.num_params)
            assert ("memory" in out) == (policy.memory_size > 0)
            if policy.memory_size:
                np.testing.assert_allclose(out["memory"], after, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", OBSERVATIONS)
def test_every_kind_of_observation(name):
    space = OBSERVATIONS[name]
    policy = policy_for(space)
    assert_the_same(policy, space, exported(policy, space))


@pytest.mark.parametrize("fit", ["clip", "rescale", "squash"])
@pytest.mark.parametrize("name", ACTION_SPACES)
def test_every_kind_of_action(name, fit):
    if fit != "clip" and not name.startswith("box"):
        pytest.skip("has no bounds")
    space, actions = spaces.Box(-1, 1, (3,)), ACTION_SPACES[name]
    policy = policy_for(space, actions, fit)
    assert_the_same(policy, space, exported(policy, space))
    out = policy.module(tensors_of(samples_of(space, 20)))
    assert all(actions.contains(each) for each in out["action"].detach().numpy())


@pytest.mark.parametrize("fit", ["clip", "squash"])
def test_nested_actions_come_in_their_parts(fit):
    policy, space = policy_for(OBSERVATIONS["float32"], ACTION, fit), OBSERVATIONS["float32"]
    obs = np.stack(samples_of(space, 9))
    expected = policy.act(obs)
    for module in (policy.module, exported(policy, space)):
        found = module(torch.from_numpy(obs))["action"]
        assert list(found) == list(expected)
        for path, _ in leaves(ACTION):
            ours, theirs = part_of(found, path).detach().numpy(), part_of(expected, path)
            assert (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape)
            np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("kind", ["float32", "image", "dict", "mask"])
def test_every_kind_of_network(name, kind):
    if name == "impala" and kind not in ("image", "dict"):
        pytest.skip("no image")
    space = OBSERVATIONS[kind]
    policy = policy_for(space, **NETWORKS[name])
    agent = policy._agent
    if agent.obs_moments is not None:
        agent.obs_moments.update(agent.obs_moments.sums(torch.rand(50, len(agent.obs_moments.mean)) * 4))
    assert_the_same(policy, space, exported(policy, space))


def test_a_masked_action_is_never_chosen():
    policy = policy_for(MASK)
    obs = tensors_of(samples_of(MASK, 200))
    out = exported(policy, MASK)(obs)
    chosen = out["action"] - 2
    assert (obs["action_mask"].gather(1, chosen[:, None]) == 1).all()
    assert (torch.softmax(out["params"], -1)[obs["action_mask"] == 0] == 0).all()


def test_the_program_is_saved_and_loaded(tmp_path):
    space = OBSERVATIONS["tuple"]
    policy = policy_for(space)
    args = (tensors_of(samples_of(space, 4)),)
    torch.export.save(torch.export.export(policy.module, args), tmp_path / "policy.pt2")
    got = torch.export.load(tmp_path / "policy.pt2").module()(*args)
    np.testing.assert_array_equal(got["action"], policy.act(samples_of(space, 4)))


def test_the_module_is_a_copy(tmp_path):
    """Whoever trains it further changes neither the policy nor, from a callback, the run; nor the generator."""
    policy = policy_for(OBSERVATIONS["float32"])
    before, state = copy.deepcopy(policy._agent.state_dict()), torch.get_rng_state()
    with torch.no_grad():
        for parameter in policy.module.parameters():
            assert parameter.requires_grad
            parameter.zero_()
    save_policy(policy._agent, tmp_path)
    load_agent(tmp_path)
    assert all(torch.equal(each, before[name]) for name, each in policy._agent.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)


def test_without_a_memory_an_episode_begins():
    space = OBSERVATIONS["float32"]
    policy = policy_for(space, **NETWORKS["lstm"])
    obs = tensors_of(samples_of(space, 4))
    out, zeros = policy.module(obs), policy.module(obs, torch.zeros(4, policy.memory_size))
    assert all(torch.equal(out[name], zeros[name]) for name in zeros)


@pytest.mark.parametrize(
    ("obs", "text"),
    [
        (torch.zeros(3), r"obs has shape \(3,\): a tensor of shape \(B, 3\) is expected"),
        (torch.zeros(2, 4), r"obs has shape \(2, 4\): a tensor of shape \(B, 3\) is expected"),
        (torch.zeros(2, 2, 3), r"obs has shape \(2, 2, 3\): "),
        (torch.zeros(()), r"obs has shape \(\): "),
        (np.zeros((2, 3)), r"obs is of type ndarray: a tensor "),
        (None, "obs is of type NoneType: a tensor "),
    ],
)
def test_what_is_no_batch_of_observations_is_named_with_what_would_be(obs, text):
    with pytest.raises(ValueError, match=text):
        policy_for(OBSERVATIONS["float32"]).module(obs)


@pytest.mark.parametrize(
    ("obs", "text"),
    [
        ({"observation": torch.zeros(2, 3)}, "obs action_mask is not there: "),
        (torch.zeros(2, 3), "obs action_mask is not there: "),
        ({"observation": torch.zeros(3), "action_mask": torch.ones(2, 5)}, r"obs observation has shape \(3,\): "),
        ({"observation": torch.zeros(4, 3), "action_mask": torch.ones(2, 5)}, "obs observation has 4 rows"),
    ],
)
def test_parts_of_observations_are_named(obs, text):
    with pytest.raises(ValueError, match=text):
        policy_for(MASK).module(obs)


@pytest.mark.parametrize("name", ["memory", "noise"])
def test_memory_and_noise_of_another_shape_are_named(name):
    module = policy_for(OBSERVATIONS["float32"], recurrent="gru", recurrent_size=4).module
    with pytest.raises(ValueError, match=rf"{name} has shape \(2, 9\): a tensor of shape \(B, "):
        module(torch.zeros(2, 3), **{name: torch.zeros(2, 9)})
    size = {"memory": 4, "noise": module.agent.distribution.noise_size}[name]
    with pytest.raises(ValueError, match=f"{name} has 1 rows, obs has 2"):
        module(torch.zeros(2, 3), **{name: torch.zeros(1, size)})

"""Acting from a program: batches as `gymnasium.make_vec` gives them, sampling, and Stable-Baselines3's `predict`."""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector.utils import batch_space, create_empty_array, iterate
from gymnasium.vector.utils import concatenate as concatenate_observations

from fabric_ppo.agents.agent import Agent, Architecture
from fabric_ppo.agents.policy import Policy
from fabric_ppo.envs.gymnasium_spaces import env_spec
from tests.fixtures.agents import agent_for
from tests.fixtures.drawn_spaces import leaves, part_of
from tests.fixtures.mixed_envs import ACTION
from tests.fixtures.spaces import samples_of

DICT = spaces.Dict(
    image=spaces.Box(0, 255, (3, 4, 1), np.uint8),
    choice=spaces.Discrete(4, start=2),
    inner=spaces.Dict(bits=spaces.MultiBinary(3), pair=spaces.Tuple([spaces.Box(-1, 1, ()), spaces.Box(-1, 1, (2,))])),
)
TUPLE = spaces.Tuple([spaces.Discrete(3), spaces.Box(-1, 1, (2,)), spaces.MultiDiscrete([2, 3])])
MASKED = spaces.Dict(action_mask=spaces.MultiBinary(5), observation=spaces.Box(-1, 1, (3,), np.float64))
NESTED = {"dict": DICT, "tuple": TUPLE, "masked": MASKED}


def policy_for(space, actions=None, **architecture):
    torch.manual_seed(3)
    options = {"activation_function": "tanh", "hidden_sizes": (8,)} | architecture
    agent = Agent(env_spec("Test-v0", space, actions or spaces.Discrete(5)), Architecture(**options))
    with torch.no_grad():
        for parameter in agent.policy.parameters():
            parameter *= 3
    return Policy(agent)


def batch_of(space, samples):
    """As Gymnasium's vector environments put observations together."""
    return concatenate_observations(space, samples, create_empty_array(space, len(samples)))


@pytest.mark.parametrize("name", NESTED)
@pytest.mark.parametrize("count", [1, 2, 5, 17])
def test_a_batch_of_arrays_is_its_observations(name, count):
    space = NESTED[name]
    policy, samples = policy_for(space), samples_of(space, count)
    batch = batch_of(space, samples)
    assert all(
        np.array_equal(policy.pack(a), policy.pack(b))
        for a, b in zip(iterate(gymnasium.vector.utils.batch_space(space, count), batch), samples, strict=True)
    )
    for method in (policy.act, policy.value):
        got = method(batch)
        assert got.shape == (count,)
        np.testing.assert_array_equal(got, method(samples))
        np.testing.assert_array_equal(got, [method(each) for each in samples])
        assert method(samples[0]).shape == ()


@pytest.mark.parametrize(
    ("space", "obs", "message"),
    [
        (MASKED, {"action_mask": np.ones((3, 5), np.int8), "observation": np.ones((2, 3))}, "3 of action_mask, 2 of"),
        (MASKED, {"action_mask": np.ones((3, 5), np.int8), "observation": np.ones(3)}, r"observation of shape \(3,\)"),
        (MASKED, {"action_mask": np.ones((3, 4), np.int8), "observation": np.ones((3, 3))}, r"\(3, 4\): \(B, 5\)"),
        (
            MASKED,
            {"action_mask": np.ones((3, 5), np.int8)},
            "^obs has no observation: a dict with action_mask, observation is expected$",
        ),
        (MASKED, {"action_mask": np.full((3, 5), 7), "observation": np.ones((3, 3))}, "action_mask is 7"),
        (MASKED, {"action_mask": np.ones((3, 5), np.int8), "observation": [[1.0, 2.0, np.nan]] * 3}, "not finite"),
        (MASKED, {"action_mask": np.ones((3, 5), np.int8), "observation": "text"}, "observation is text|is 'text'"),
        (MASKED, {}, "^obs has no action_mask: a dict with action_mask, observation is expected$"),
        (MASKED, None, "^obs is a NoneType: a dict with action_mask, observation is expected$"),
        (TUPLE, (np.array([0, 1]), np.ones((2, 2)), np.zeros((3, 2), np.int64)), "2 of 0, 2 of 1, 3 of 2"),
        (TUPLE, (np.array([0, 1]), np.ones((2, 2))), "^obs has no 2: a tuple with 0, 1, 2 is expected$"),
        (MASKED, np.ones(3), r"^obs is an array of shape \(3,\): a dict with action_mask, observation is expected$"),
        (MASKED, np.ones((2, 3)), r"^obs is an array of shape \(2, 3\): a dict with"),
        (MASKED, 3, "^obs is a int: a dict with"),
        (MASKED, (np.ones(5), np.ones(3)), "^obs is a tuple: a dict with"),
        (MASKED, [np.ones(5), np.ones(3)], "^obs is a list, whose entry 0 is a ndarray: a dict with"),
        (MASKED, [{"action_mask": np.ones(5)}], "^obs is a list, whose entry 0 has no observation: a dict with"),
        (TUPLE, {"a": 1}, "^obs has no 0: a tuple with 0, 1, 2 is expected$"),
        (TUPLE, np.ones(5), "^obs is an array of shape"),
        (TUPLE, (np.array([0, 9]), np.ones((2, 2)), np.zeros((2, 2), np.int64)), "0 is 9"),
    ],
)
def test_what_is_no_batch_is_refused_in_a_line(space, obs, message):
    policy = policy_for(space)
    for method in (policy.act, policy.value, policy.predict):
        with pytest.raises(ValueError, match=message) as caught:
            method(obs)
        assert "\n" not in str(caught.value)


def test_an_empty_batch():
    for space in (DICT, spaces.Box(-1, 1, (3,))):
        policy = policy_for(space)
        empty = np.zeros((0, 3)) if space is not DICT else []
        assert policy.act(empty).shape == policy.value(empty).shape == (0,)
        assert policy.act(empty, deterministic=False).shape == (0,)


def logits_of(policy, obs):
    with torch.no_grad():
        return torch.softmax(policy._agent.policy_params(policy._agent.features(torch.from_numpy(obs))), -1).numpy()


def test_actions_are_drawn_from_the_distribution():
    """Frequencies over 20,000 rows, within five standard deviations, by whatever source of draws."""
    policy = policy_for(spaces.Box(-1, 1, (3,)))
    row = np.array([[0.5, -0.5, 0.1]], np.float32)
    (expected,) = logits_of(policy, row)
    obs = np.repeat(row, 20_000, axis=0)
    for options in ({"seed": 1}, {"seed": np.random.default_rng(2)}, {}):
        actions = policy.act(obs, deterministic=False, **options)
        frequency = np.bincount(actions, minlength=5) / len(obs)
        assert (abs(frequency - expected) < 5 * np.sqrt(expected * (1 - expected) / len(obs)) + 1e-9).all()
    assert (policy.act(obs) == expected.argmax()).all()


def test_draws_have_no_state_but_that_of_the_caller():
    """The same seed, the same actions; a single observation has the draws of a batch's first."""
    policy = policy_for(spaces.Box(-1, 1, (3,)), spaces.Box(-1, 1, (2,)))
    obs = np.random.default_rng(0).uniform(-1, 1, (16, 3)).astype(np.float32)

    def sample(**options):
        return policy.act(obs, deterministic=False, **options)

    np.testing.assert_array_equal(sample(seed=4), sample(seed=4))
    assert (sample(seed=4) != sample(seed=5)).any()
    np.testing.assert_array_equal(policy.act(obs[0], deterministic=False, seed=4), sample(seed=4)[0])
    np.testing.assert_array_equal(sample(seed=np.random.default_rng(1)), sample(seed=np.random.default_rng(1)))
    rng = np.random.default_rng(1)
    assert (sample(seed=rng) != sample(seed=rng)).any()
    again = Policy(policy._agent)
    first, second = sample(), sample()
    assert (first != second).any()
    for expected in (first, second):
        np.testing.assert_array_equal(again.predict(obs)[0], expected)
    noise = np.full((16, 2), 0.5)
    np.testing.assert_array_equal(policy.act(obs, noise), policy.act(obs))  # the median is the mean


@pytest.mark.parametrize("seed", [-1, 2**64, 1.5, True, "a"])
def test_what_is_no_seed_is_refused(seed):
    policy = policy_for(spaces.Box(-1, 1, (3,)))
    with pytest.raises(ValueError, match=r"^seed .*: a whole number from 0 to .* is expected$"):
        policy.act(np.zeros(3), deterministic=False, seed=seed)


@pytest.mark.parametrize("noise", [False, np.full((2, 5), 0.5), np.full(5, 0.5)])
def test_noise_of_another_shape_is_refused(noise):
    with pytest.raises(ValueError, match=r"^noise has shape .*: \(1, 5\); .*deterministic=False"):
        policy_for(spaces.Box(-1, 1, (3,))).act(np.zeros(3), noise)


def test_predict_of_an_agent_without_memory():
    policy = policy_for(spaces.Box(-1, 1, (3,)))
    obs = np.random.default_rng(0).uniform(-1, 1, (4, 3)).astype(np.float32)
    actions, state = policy.predict(obs, deterministic=True)
    np.testing.assert_array_equal(actions, policy.act(obs))
    assert state is None
    actions, state = policy.predict(obs[0], None, np.ones(1, bool), True)
    assert (actions.shape, state) == ((), None)


@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_predict_carries_the_memory_as_stable_baselines_does(kind):
    """Two episodes side by side, one of which ends after two steps: as `act` with a memory for each episode."""
    policy = policy_for(spaces.Box(-1, 1, (3,)), recurrent=kind, recurrent_size=4)
    obs = np.random.default_rng(0).uniform(-1, 1, (5, 2, 3)).astype(np.float32)
    state, starts = None, np.ones(2, bool)
    memories = [policy.new_memory(), policy.new_memory()]
    for t in range(5):
        before = None if state is None else state.copy()
        actions, after = policy.predict(obs[t], state=state, episode_start=starts, deterministic=True)
        assert state is None or (state == before).all(), "the caller's state is left alone"
        if t == 2:
            memories[1] = policy.new_memory()
        for env in range(2):
            assert policy.act(obs[t, env], memory=memories[env]) == actions[env]
        np.testing.assert_allclose(after, memories, rtol=1e-6)
        state, starts = after, np.array([False, t == 1])
    single, memory = policy.predict(obs[0, 0], episode_start=True, deterministic=True)
    assert single.shape == ()
    assert memory.shape == (policy.memory_size,)
    for start in (True, [True], np.ones(1, bool)):
        again = policy.predict(obs[0, 0], memory, start, True)[1]
        np.testing.assert_array_equal(again, memory)
    assert (policy.predict(obs[0, 0], memory, [False], True)[1] != memory).any()


@pytest.mark.parametrize(
    ("state", "start", "message"),
    [
        (np.zeros(8), None, r"memory has shape \(8,\): \(2, 8\)"),
        ((np.zeros((2, 4)), np.zeros((2, 4))), None, r"memory has shape \(2, 2, 4\)"),
        (np.zeros((2, 8)), np.ones(3, bool), r"episode_start has shape \(3,\): true or false, \(2,\), is expected"),
        (np.zeros((2, 8)), True, "episode_start has shape"),
        (np.zeros((2, 8)), ["a", "b"], "episode_start"),
    ],
)
def test_what_is_no_state_is_refused(state, start, message):
    policy = policy_for(spaces.Box(-1, 1, (3,)), recurrent="lstm", recurrent_size=4)
    with pytest.raises(ValueError, match=message):
        policy.predict(np.zeros((2, 3), np.float32), state, start)


def test_a_vector_environment_is_played():
    envs = gymnasium.make_vec("tests.fixtures.nested_envs:Nested-v0", num_envs=3, vectorization_mode="sync")
    policy = Policy(agent_for("tests.fixtures.nested_envs:Nested-v0"))
    obs, _ = envs.reset(seed=0)
    for _ in range(5):
        obs, *_ = envs.step(policy.act(obs, deterministic=False))
    assert policy.value(obs).shape == (3,)
    envs.close()


def test_nested_actions_come_for_one_observation_and_for_a_batch():
    policy = policy_for(spaces.Box(-1, 1, (3,), np.float64), ACTION)
    obs, uniform = np.random.default_rng(0).random((6, 3)), np.random.default_rng(1).random((6, policy.noise_size))
    whole = policy.act(obs, uniform)
    assert batch_space(ACTION, 6).contains(whole)
    for index, same in enumerate(iterate(batch_space(ACTION, 6), whole)):
        one = policy.act(obs[index], uniform[index : index + 1])
        assert ACTION.contains(one)
        assert type(one["move"]) is np.int64
        for path, _ in leaves(ACTION):
            np.testing.assert_array_equal(part_of(one, path), part_of(same, path))
    greedy, _ = policy.predict(obs[0], deterministic=True)
    assert repr(greedy) == repr(policy.act(obs[0]))
    drawn = [policy.act(obs, deterministic=False, seed=seed)["move"].tolist() for seed in range(5)]
    assert len({tuple(each) for each in drawn}) > 1


def test_a_vector_environment_of_nested_actions_is_played():
    """It raises at an action that its space does not contain."""
    env_id = "tests.fixtures.mixed_envs:Parts-v0"
    envs = gymnasium.make_vec(env_id, num_envs=3, vectorization_mode="sync")
    policy = Policy(agent_for(env_id))
    obs, _ = envs.reset(seed=0)
    for _ in range(5):
        obs, *_ = envs.step(policy.act(obs, deterministic=False))
    envs.close()


@pytest.mark.parametrize("space", [spaces.Box(-1, 1, (3,)), spaces.Discrete(3), MASKED, TUPLE], ids=str)
@pytest.mark.parametrize("count", [None, 3])
def test_the_answer_of_reset_or_step_is_no_observation(space, count):
    """The slip of `act(env.reset())`, also of several environments; it says what reset returns."""
    policy = policy_for(space)
    obs = space.sample() if count is None else [space.sample() for _ in range(count)]
    for method in (policy.act, policy.value, policy.predict):
        with pytest.raises(ValueError, match=r"as in obs, info = env.reset\(\)$"):
            method((obs, {}))
        with pytest.raises(ValueError, match=r"as in obs, reward, terminated, truncated, info = env.step\(action\)$"):
            method((obs, 0.0, False, False, {"a": 1}))


@pytest.mark.parametrize("count", [2, 5])
def test_a_tuple_that_ends_with_a_dict_is_an_observation_where_its_space_says_so(count):
    parts = [spaces.Discrete(3)] * (count - 1) + [spaces.Dict({"a": spaces.Box(-1, 1, (2,))})]
    space = spaces.Tuple(parts)
    assert policy_for(space).act(space.sample()).shape == ()


def test_a_mask_that_allows_nothing_is_refused_as_in_training():
    """But for a batch, in which an episode may have ended."""
    policy = policy_for(MASKED)
    obs = {"action_mask": np.zeros(5, np.int8), "observation": np.zeros(3, np.float32)}
    with pytest.raises(ValueError, match="an action_mask that allows no action; at least one is expected"):
        policy.act(obs)
    with pytest.raises(ValueError, match="allows no action"):
        policy.predict(obs)
    assert policy.act([obs, obs]).shape == (2,)
    assert policy.value(obs).shape == ()


@pytest.mark.parametrize(
    ("space", "text"),
    [
        (spaces.Box(-1, 1, (3,)), "observations Box(3) float32, actions Discrete(5), not recurrent)"),
        (MASKED, "observations (action_mask MultiBinary(5), observation Box(3) float64), actions Discrete(5), not"),
    ],
)
def test_the_repr_has_environment_and_spaces(space, text):
    policy = policy_for(space)
    assert repr(policy).startswith(f"Policy({policy.spec.env_id}: {text}")

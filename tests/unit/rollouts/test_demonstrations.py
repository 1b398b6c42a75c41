"""Recorded episodes: what the environments gave and got, step by step, and the file that keeps them."""

from __future__ import annotations

import copy
import io
import itertools
import random

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st

from fabric_ppo.agents.make import make_agent
from fabric_ppo.agents.policy import Policy
from fabric_ppo.config import Config
from fabric_ppo.envs.batched import make_tensor_envs
from fabric_ppo.envs.contract import EnvSettings
from fabric_ppo.envs.gymnasium_spaces import env_spec
from fabric_ppo.envs.make import make_envs
from fabric_ppo.envs.nested_actions import Unpacker
from fabric_ppo.envs.spaces import EnvSpec, Packer, SpaceSpec
from fabric_ppo.envs.tensor.cartpole import CartPole
from fabric_ppo.process.errors import ConfigError
from fabric_ppo.rollouts import demonstrations as module
from fabric_ppo.rollouts.demonstrations import EpisodeLog, packed, read_demonstrations, to_bytes, unpacked
from fabric_ppo.rollouts.evaluate import evaluate
from fabric_ppo.seeding import evaluation_seed
from tests.fixtures import (
    mixed_envs,
    nested_envs,  # noqa: F401, registers them
)
from tests.fixtures.agents import agent_for, random_agent
from tests.fixtures.drawn_spaces import draw_action, part_of
from tests.fixtures.toy_envs import ACTIONS, toy_env

SEED = 5


def record(policy, episodes, **options):
    log = EpisodeLog(policy.spec)
    return evaluate(policy, episodes, SEED, log=log, **options), log.demonstrations()


def policy_for(env_id, **flags):
    """An agent whose actions differ from step to step."""
    config = Config(env_id=env_id, num_envs=1, **flags)
    envs = make_envs(config, 0, 1)
    envs.close()
    agent = make_agent(envs.spec, config)
    with torch.no_grad():
        for parameter in agent.parameters():
            parameter.normal_(0, 0.5)
    return Policy(agent)


def require_played(found, env_id, wrap=lambda env: env):
    """Play the recorded actions in Gymnasium's environment: it gives what was recorded."""
    env, pack = wrap(gymnasium.make(env_id)), Packer(found.spec.observation)
    nested = found.spec.action.parts
    starts = np.append(np.flatnonzero(found.episode_starts), len(found.rewards))
    for episode, (start, stop) in enumerate(itertools.pairwise(starts)):
        obs, _ = env.reset(seed=evaluation_seed(SEED, episode))
        for row in range(start, stop):
            assert np.array_equal(found.obs[row], pack(obs))
            action = Unpacker(found.spec.action).one(found.actions[row]) if nested else found.actions[row]
            obs, *given, _ = env.step(action if nested else action.item() if action.ndim == 0 else action.copy())
            assert [found.rewards[row], found.terminated[row], found.truncated[row]] == given
        assert np.array_equal(found.final_obs[episode], pack(obs))
    env.close()


@pytest.mark.parametrize("env_id", ["CartPole-v1", "Pendulum-v1", "tests.fixtures.nested_envs:Nested-v0"])
@pytest.mark.parametrize("stochastic", [False, True])
def test_what_is_recorded_is_what_the_environment_gave_and_got(env_id, stochastic):
    policy = policy_for(env_id)
    plain = evaluate(policy, 11, SEED, stochastic=stochastic)
    result, found = record(policy, 11, stochastic=stochastic)
    assert (result.returns, result.lengths) == (plain.returns, plain.lengths), "recording changes nothing"
    assert found.num_episodes == 11
    assert np.diff(np.append(np.flatnonzero(found.episode_starts), len(found.rewards))).tolist() == result.lengths
    found.require_whole_episodes()
    require_played(found, env_id)


MIXED = [f"tests.fixtures.mixed_envs:{name}-v0" for name in ("Parts", "PartsFlatMask", "PartsMasks")]


@pytest.mark.parametrize("fit", ["clip", "rescale", "squash"])
@pytest.mark.parametrize("env_id", MIXED)
def test_nested_actions_are_recorded_as_the_environment_got_them(env_id, fit, monkeypatch):
    """It raises at one that its space does not contain; each leaf is held against what it was given."""
    taken = []

    class Watched(mixed_envs.Parts):
        def step(self, action):
            taken.append(copy.deepcopy(action))
            result = super().step(action)
            action["tools"][0][:] = action["lamps"][:] = 7  # the record is of before
            return result

    kwargs = gymnasium.spec(env_id.partition(":")[2]).kwargs
    spec = gymnasium.envs.registration.EnvSpec("Watched-v0", Watched, kwargs=kwargs)
    monkeypatch.setitem(gymnasium.registry, "Watched-v0", spec)
    policy = policy_for("Watched-v0", action_bounds=fit)
    taken.clear()
    result, found = record(policy, 1, stochastic=True)
    columns = unpacked(found.spec.action, found.actions)
    assert len(taken) == result.lengths[0] == 10
    for path, column in columns.items():
        given = np.array([part_of(action, path) for action in taken])
        assert np.array_equal(column, given), path
    for row in found.actions:
        assert mixed_envs.ACTION.contains(Unpacker(found.spec.action).one(row))
    require_played(record(policy_for(env_id, action_bounds=fit), 11)[1], env_id)


def test_nested_actions_of_a_batch_are_recorded():
    """An action's reward follows from it and the goal that was seen."""
    _, found = record(batch_policy("tests.fixtures.mixed_envs:parts_in_batch", ""), 3, stochastic=True)
    assert len(np.unique(found.actions, axis=0)) > 20
    env, unpack = mixed_envs.Parts(), Unpacker(found.spec.action)
    for obs, action, reward in zip(found.obs, found.actions, found.rewards, strict=True):
        env.reset()
        env.goal = obs.argmax()
        assert env.step(unpack.one(action))[1] == pytest.approx(reward, rel=1e-6)


@pytest.mark.parametrize("action", ACTIONS)
@pytest.mark.parametrize("ends", ["terminated", "truncated", "both"])
def test_every_kind_of_action_is_recorded_as_it_was_taken(action, ends):
    """Also where the environment writes over it afterwards, and into the observation that it returned."""
    env_id = toy_env(length=3, ends=ends, action=action, scribbles=bool(ACTIONS[action].shape), reuses_memory=True)
    _, found = record(policy_for(env_id), 10, stochastic=True)
    require_played(found, env_id)


def test_stacked_frames_are_recorded_as_the_agent_sees_them():
    policy = policy_for("CartPole-v1", frame_stack=3)
    _, found = record(policy, 3)
    assert found.obs.shape[1:] == (3, 4)
    require_played(found, "CartPole-v1", lambda env: gymnasium.wrappers.FrameStackObservation(env, 3))


def test_the_actions_of_a_recurrent_agent_follow_from_its_memory():
    policy = policy_for("CartPole-v1", recurrent="lstm", recurrent_size=5)
    _, found = record(policy, 4)
    for row, begins in enumerate(found.episode_starts):
        memory = policy.new_memory() if begins else memory  # noqa: F821
        assert policy.act(found.obs[row], memory=memory) == found.actions[row]


def test_an_episode_that_is_cut_off_is_truncated():
    result, found = record(Policy(agent_for("CartPole-v1", seed=4)), 3, step_limit=5)
    assert result.cut_off == 3
    assert found.truncated.tolist() == [False, False, False, False, True] * 3
    assert not found.terminated.any()
    require_cut = gymnasium.make("CartPole-v1", max_episode_steps=5)
    require_played(found, "CartPole-v1", lambda env: require_cut)


@pytest.mark.parametrize("limit", [1000, 7])
def test_batches_are_recorded_by_their_episodes(limit, monkeypatch):
    """Held against the environment's own functions, episode by episode, in two batches."""
    monkeypatch.setattr("fabric_ppo.rollouts.evaluate_batch._MOST_AT_ONCE", 3)
    envs = make_tensor_envs(EnvSettings("tensor/CartPole-v1", SEED, 3, 0, 3))
    policy = Policy(random_agent(envs.spec))
    result, found = record(policy, 5, step_limit=limit)
    assert result.returns == evaluate(policy, 5, SEED, step_limit=limit).returns
    env, row = CartPole(), 0
    for episode in range(5):
        seed = torch.tensor([evaluation_seed(SEED, episode)])
        state, obs = env.initial(seed)
        for step in range(result.lengths[episode]):
            assert found.episode_starts[row] == (step == 0)
            assert np.array_equal(found.obs[row], obs[0].numpy())
            action = torch.from_numpy(found.actions[row : row + 1])
            state, obs, reward, ended = env.transition(state, action, seed, torch.tensor([step]))
            assert found.rewards[row] == float(reward)
            assert found.terminated[row] == bool(ended)
            row += 1
        assert found.truncated[row - 1] == (not ended)
        assert np.array_equal(found.final_obs[episode], obs[0].numpy())
    assert row == len(found.rewards)


def batch_policy(env_id, env_kwargs):
    envs = make_tensor_envs(EnvSettings(env_id, SEED, 3, 0, 3, env_kwargs=env_kwargs))
    return Policy(random_agent(envs.spec))


@pytest.mark.parametrize("final", ["NEXT_STEP final_obs", "SAME_STEP final_obs", "SAME_STEP ", "DISABLED final_obs"])
def test_every_mode_of_a_vector_env_is_recorded_alike(final):
    """An observation is (episode, step). Where the final one is hidden, the one before stands for it."""
    mode, key = final.split(" ")
    policy = batch_policy("tests.fixtures.batches:Counting", f'{{"mode": "{mode}", "final": "{key}"}}')
    _, found = record(policy, 2)
    assert found.obs.tolist() == [[0, step] for length in (3, 4) for step in range(length)]
    assert found.truncated.tolist() == [False, False, True, False, False, False, True]
    assert found.final_obs.tolist() == ([[0, 3], [0, 4]] if key else [[0, 2], [0, 3]])


def test_each_agent_of_a_game_has_episodes_of_its_own():
    """Of a Relay: a plays 4 steps and is terminated, b 2, c joins after the first and is cut off."""
    _, found = record(batch_policy("tests.fixtures.games:Relay", ""), 2)
    game = [[0, 0], [0, 1], [0, 2], [0, 3], [1, 0], [1, 1], [2, 1], [2, 2], [2, 3]]
    assert found.obs.tolist() == game * 2
    assert np.flatnonzero(found.terminated).tolist() == [3, 5, 12, 14]
    assert np.flatnonzero(found.truncated).tolist() == [8, 17]
    assert found.final_obs.tolist() == [[0, 4], [1, 2], [2, 4]] * 2
    assert found.rewards.tolist() == [action + row[0] for action, row in zip(found.actions, game * 2, strict=True)]


NESTED = spaces.Dict(
    {
        "image": spaces.Box(0, 255, (3, 4, 1), np.uint8),
        "arm": spaces.Tuple([spaces.Box(-1, 1, (2,), np.float64), spaces.Discrete(3, start=2)]),
        "action_mask": spaces.MultiBinary(3),
    }
)


def demonstrations(observation=NESTED, action=None, lengths=(2, 3)):
    """Made-up episodes: the first terminates, the others are truncated."""
    spec = env_spec("Made-v0", observation, action or spaces.Discrete(3))
    rows, pack = sum(lengths), Packer(spec.observation)
    observation.seed(0)
    obs = np.array([pack(observation.sample()) for _ in range(rows + len(lengths))], spec.observation.dtype)
    ends = np.cumsum(lengths) - 1
    starts, terminated, truncated = (np.zeros(rows, np.bool_) for _ in range(3))
    starts[[0, *(ends[:-1] + 1)]], terminated[ends[0]], truncated[ends[1:]] = True, True, True
    samples = [(action or spaces.Discrete(3)).sample() for _ in range(rows)]
    leaves = [path for path, _ in spec.action.leaves]
    actions = module.checked_actions(
        spec.action, {path: np.stack([np.asarray(part_of(each, path)) for each in samples]) for path in leaves}
    )
    columns = {"rewards": np.arange(rows) / 3, "terminated": terminated, "truncated": truncated}
    return module.Demonstrations(spec, obs[:rows], actions, **columns, episode_starts=starts, final_obs=obs[rows:])


def require_equal(found, expected):
    assert found.spec == expected.spec
    for name in module.Demonstrations.__dataclass_fields__:
        if name != "spec":
            mine, theirs = getattr(found, name), getattr(expected, name)
            assert mine.dtype == theirs.dtype, name
            assert np.array_equal(mine, theirs), name


@pytest.mark.parametrize("action", [*ACTIONS.values(), mixed_envs.ACTION], ids=[*ACTIONS, "nested"])
def test_a_file_is_read_as_it_was_written(tmp_path, action):
    # a mask of three choices would be another space's
    observation = NESTED if not isinstance(action, spaces.Dict) else spaces.Box(-1, 1, (2,))
    expected = demonstrations(observation, action)
    (tmp_path / "a.npz").write_bytes(to_bytes(expected))
    require_equal(read_demonstrations(tmp_path / "a.npz"), expected)
    assert to_bytes(expected) == to_bytes(expected)


def test_a_file_has_an_array_for_each_part(tmp_path):
    expected = demonstrations()
    (tmp_path / "a.npz").write_bytes(to_bytes(expected))
    with np.load(tmp_path / "a.npz", allow_pickle=False) as file:
        parts = ["action_mask", "arm.0", "arm.1", "image"]
        names = [f"{each}.{part}" for each in ("observations", "final_observations") for part in parts]
        flat = ["actions", "rewards", "terminated", "truncated", "episode_starts", "env_spec"]
        assert sorted(file.files) == sorted(names + flat)
        assert file["observations.image"].shape == (5, 3, 4, 1)
        assert file["observations.arm.1"].tolist() == [
            unpacked(expected.spec.observation, expected.obs)["arm", 1][row] for row in range(5)
        ]
        assert EnvSpec.from_json(str(file["env_spec"])) == expected.spec


@given(st.integers(0, 2**32))
@settings(max_examples=40, deadline=None)
def test_any_nested_action_comes_back_from_a_file(seed):
    space = spaces.Tuple([draw_action(random.Random(seed), 1), spaces.Dict(last=spaces.Discrete(2, start=5))])
    space.seed(seed)
    expected = demonstrations(spaces.Box(-1, 1, (2,)), action=space)
    with np.load(io.BytesIO(to_bytes(expected)), allow_pickle=False) as file:
        read = module._from_arrays({name: file[name] for name in file.files})
        assert all(action in space for action in map(Unpacker(read.spec.action).one, read.actions))
        assert file["actions.1.last"].shape == (5,)
    require_equal(read, expected)


def test_parts_are_packed_as_a_packer_does():
    found = demonstrations()
    columns = unpacked(found.spec.observation, found.obs)
    NESTED.seed(0)
    samples = [NESTED.sample() for _ in range(5)]
    assert np.array_equal(columns["image",], np.stack([each["image"] for each in samples]))
    assert np.array_equal(columns["arm", 0], np.stack([each["arm"][0] for each in samples]))
    assert np.array_equal(packed(found.spec.observation, columns), found.obs)


def changed(action=None, **arrays):
    """The content of a file in which arrays are others; None for one that is missing."""
    with np.load(io.BytesIO(to_bytes(demonstrations(spaces.Box(-1, 1, (2,)), action)))) as file:
        values = {name: file[name] for name in file.files} | arrays
    content = io.BytesIO()
    np.savez(content, **{name: value for name, value in values.items() if value is not None})
    return content.getvalue()


NAN = np.array([[0, 0], [0, np.nan], [0, 0], [0, 0], [0, 0]], np.float32)
FLAGS = np.zeros(5, np.bool_)
WRONG = {
    "no file": (None, "there is no such file"),
    "text": (b"hello", "cannot be read"),
    "half a file": (changed()[:400], "cannot be read"),
    "pickled": (changed(actions=np.array([{}] * 5)), "cannot be read"),
    "no actions": (changed(actions=None), "it has no array actions"),
    "no spec": (changed(env_spec=None), "it has no array env_spec"),
    "another spec": (changed(env_spec=np.array('{"a": 1}')), "env_spec is no description of an environment"),
    "no observations": (changed(observations=None), "it has no array observations"),
    "shape of observations": (changed(observations=NAN[:, :1]), r"observations of shape (5, 1); (B, 2) is expected"),
    "not finite": (changed(observations=NAN), "not finite: nan in entry [1, 1]"),
    "shape of actions": (changed(actions=np.zeros((5, 1))), "actions of shape (5, 1); (B,) is expected"),
    "no such action": (changed(actions=np.array([0, 1, 3, 0, 0])), "actions 3 in row 2"),
    "half an action": (changed(actions=np.array([0, 1, 0.5, 0, 0])), "actions 0.5 in row 2"),
    "text for actions": (changed(actions=np.array(["a"] * 5)), "actions of dtype <U1"),
    "fewer actions": (changed(actions=np.zeros(4, np.int64)), "actions of 4 rows, and observations of 5"),
    "rewards": (changed(rewards=np.array([0, np.inf, 0, 0, 0])), "rewards inf in row 1; a finite number"),
    "shape of rewards": (changed(rewards=np.zeros((5, 1))), "rewards of shape (5, 1) and dtype float64"),
    "flags": (changed(terminated=np.zeros(5)), "terminated of shape (5,) and dtype float64; (B,) of bool"),
    "no start": (changed(episode_starts=FLAGS), "episode_starts False in row 0"),
    "no end": (changed(truncated=FLAGS), "row 4, which is the last of its episode"),
    "early end": (changed(terminated=~FLAGS), "row 0, which is not the last of its episode"),
    "finals": (changed(final_observations=NAN[:1]), "final_observations of 1 episodes, and episode_starts of 2"),
}
FEWER = {"actions.tools.1": np.array([[0, 5]] * 4)}
NESTED_WRONG = {
    "no part of the actions": ({"actions.move": None}, "it has no array actions.move"),
    "shape of a part": ({"actions.lamps": np.ones((5, 3))}, "actions.lamps of shape (5, 3); (B, 2) is expected"),
    "no such choice": ({"actions.move": np.array([1, 2, 3, 1, 0])}, "actions.move 0 in row 4"),
    "beyond a bound": ({"actions.throttle": np.array([0, 1, 0.5, 1.01, 0])}, "actions.throttle 1.01 in row 3"),
    "text for a part": ({"actions.move": np.array(["a"] * 5)}, "actions.move of dtype <U1; numbers of dtype int64"),
    "fewer rows": (FEWER, "actions.tools.1 of 4 rows, and actions.tools.0 of 5; as many are expected"),
}
WRONG |= {name: (changed(mixed_envs.ACTION, **each), text) for name, (each, text) in NESTED_WRONG.items()}
EMPTY = {name: np.zeros(0, np.bool_) for name in ("terminated", "truncated", "episode_starts")}
EMPTY |= {"observations": NAN[:0], "final_observations": NAN[:0], "actions": np.zeros(0), "rewards": np.zeros(0)}
WRONG["nothing in it"] = (changed(**EMPTY), "no transition")


@pytest.mark.parametrize(("content", "expected"), WRONG.values(), ids=WRONG)
def test_a_wrong_file_is_refused_in_one_line(tmp_path, content, expected):
    path = tmp_path / "a.npz"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError) as error:
        read_demonstrations(path)
    assert str(error.value).startswith(f"{path}: ")
    assert expected in str(error.value)
    assert "\n" not in str(error.value)


def test_bounds_of_actions_are_kept():
    found = demonstrations(action=spaces.Box(-1, 0.5, (2,)))
    with pytest.raises(ValueError, match=r"actions \[0\.5 0\.51\] in row 3"):
        module.checked_actions(found.spec.action, {(): np.where(np.arange(10).reshape(5, 2) > 6, 0.51, 0.5)})


def test_parts_of_one_name_are_refused():
    spec = SpaceSpec("box", (1,), "float32")
    nested = SpaceSpec("nested", (8,), "uint8", parts=((("a.b",), spec), (("a", "b"), spec)))
    with pytest.raises(ConfigError, match="parts of its observations share a name"):
        EpisodeLog(EnvSpec("Made-v0", nested, SpaceSpec("discrete", (), "int64", (2,), (0,))))
    with pytest.raises(ConfigError, match="parts of its actions share a name"):
        EpisodeLog(EnvSpec("Made-v0", spec, nested))


@pytest.mark.parametrize(("name", "expected"), [("a.zip", "ends in .npz"), ("none/a.npz", "an existing folder")])
def test_a_place_that_cannot_be_written_is_refused(tmp_path, name, expected):
    with pytest.raises(ConfigError, match=expected):
        module.require_record_path("--record", tmp_path / name)


def test_what_could_not_be_written_is_noted(tmp_path, capsys):
    log = EpisodeLog(agent_for().spec)
    evaluate(Policy(agent_for()), 1, SEED, log=log)
    path = tmp_path / "gone" / "a.npz"
    assert log.write(path) == f"{path} (No such file or directory)"
    assert capsys.readouterr().err == f"warning: {path} (No such file or directory) could not be written\n"

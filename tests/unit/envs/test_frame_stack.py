"""Stacks of observations, held against Gymnasium's FrameStackObservation and against what was seen."""

from __future__ import annotations

import json
from pathlib import Path

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.wrappers import FrameStackObservation

import tests.fixtures.stacked_envs  # noqa: F401 - registers environments
from fabric_ppo.agents.policy import load_agent
from fabric_ppo.api import train
from fabric_ppo.config import Config
from fabric_ppo.envs.contract import EnvSettings, PastEpisode
from fabric_ppo.envs.episodes import Episodes
from fabric_ppo.envs.frame_stack import frame_of, with_frames
from fabric_ppo.envs.gymnasium_spaces import env_spec
from fabric_ppo.envs.spaces import EnvSpec, Packer
from fabric_ppo.process.errors import ConfigError, EnvironmentFault
from fabric_ppo.rollouts.evaluate import evaluate
from fabric_ppo.seeding import episode_seed, evaluation_seed
from tests.fixtures.configs import TINY
from tests.fixtures.envs import env_opener, reset, step
from tests.fixtures.stacked_envs import MODULE, SPACES

COUNT, SEED = 3, 11


def stacked_by_gymnasium(env_id, seed, actions, **options):
    """Observations of an episode, with Gymnasium alone."""
    env = FrameStackObservation(gymnasium.make(env_id, **options), COUNT)
    seen = [env.reset(seed=seed)[0]]
    for action in actions:
        seen.append(env.step(action)[0])
    return seen


@pytest.mark.parametrize("backend", ["sync", "async"])
@pytest.mark.parametrize("space", SPACES)
def test_stacks_are_those_of_gymnasium(space, backend):
    """Over the end of an episode, whose last stack is not mixed with the next one's."""
    with env_opener(backend, SEED) as open_envs:
        flags = {"frame_stack": COUNT, "env_kwargs": {"space": space}}
        envs = open_envs("Drawn-v0", 1, **flags)
        pack = Packer(envs.spec.observation)
        seen, finals = [reset(envs)[0].copy()], []
        for _ in range(9):
            out = step(envs, [1])
            seen.append(out.obs[0].copy())
            finals += [final.obs for final in out.finals]
    episodes = [stacked_by_gymnasium("Drawn-v0", episode_seed(SEED, 0, k, 1), [1] * 7, space=space) for k in (0, 1)]
    expected = [*episodes[0][:7], *episodes[1][:3]]
    for ours, theirs in zip([*seen, *finals], [*expected, episodes[0][7]], strict=True):
        np.testing.assert_array_equal(ours, pack(theirs))
    assert ours.dtype == np.dtype(envs.spec.observation.dtype)


def spec_of(space, action=None):
    return env_spec("Test-v0", space, action or spaces.Discrete(3))


@pytest.mark.parametrize("space", SPACES)
def test_the_space_of_a_stack_holds_its_frames(space):
    """There and back, as JSON too; each choice stays one, of as many."""
    spec = spec_of(SPACES[space])
    stacked = with_frames(spec, COUNT)
    assert frame_of(stacked.observation) == spec.observation
    assert EnvSpec.from_json(stacked.to_json()) == stacked
    assert hash(EnvSpec.from_json(stacked.to_json())) == hash(stacked)
    assert with_frames(spec, 1) == spec
    assert "frames" not in spec.to_json()
    leaves = dict(spec.observation.parts) or {(): spec.observation}
    for path, leaf in dict(stacked.observation.parts).items() or [((), stacked.observation)]:
        assert leaf.shape == (COUNT, *leaves[path].shape)
        assert sum(leaf.sizes) == COUNT * sum(leaves[path].sizes)
    if not spec.observation.parts:
        batched = gymnasium.vector.utils.batch_space(SPACES[space], COUNT)
        assert stacked.observation.shape == batched.shape
        assert stacked.observation.dtype == batched.dtype


def test_a_mask_is_the_newest_alone():
    with env_opener("sync", SEED) as open_envs:
        envs = open_envs("MaskedStack-v0", 1, frame_stack=COUNT)
        parts = dict(envs.spec.observation.parts)
        assert parts["vector",].shape == (COUNT, 3)
        assert parts["action_mask",].shape == (3,)
        env = gymnasium.make("MaskedStack-v0")
        expected, _ = env.reset(seed=episode_seed(SEED, 0, 0, 1))
        row, frames = reset(envs)[0], [expected["vector"]] * COUNT
        for _ in range(6):
            mask = expected["action_mask"]
            pack = Packer(envs.spec.observation)
            np.testing.assert_array_equal(row, pack({"vector": np.stack(frames), "action_mask": mask}))
            action = int(mask.argmax())
            expected = env.step(action)[0]
            frames = [*frames[1:], expected["vector"]]
            row = step(envs, [action]).obs[0]


def test_a_part_by_the_name_of_the_mask_is_stacked_where_nothing_is_masked():
    space = spaces.Dict(action_mask=spaces.MultiBinary(3), vector=SPACES["vector"])
    parts = dict(with_frames(spec_of(space, spaces.Box(-1, 1, (2,))), COUNT).observation.parts)
    assert parts["action_mask",].shape == (COUNT, 3)


def test_an_environment_may_reuse_its_memory():
    """Each frame is what it was when it was seen."""
    with env_opener("sync", SEED) as open_envs:
        envs = open_envs("Drawn-v0", 1, frame_stack=COUNT, env_kwargs={"reuses_memory": True})
        seen = [reset(envs)[0].copy(), *(step(envs, [1]).obs[0].copy() for _ in range(5))]
    for ours, theirs in zip(seen, stacked_by_gymnasium("Drawn-v0", episode_seed(SEED, 0, 0, 1), [1] * 5), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_a_wrong_observation_is_named_as_without_a_stack():
    messages = []
    for count in (1, COUNT):
        settings = EnvSettings("Drawn-v0", SEED, 1, 0, 1, env_kwargs='{"bad_at": 4}', frame_stack=count)
        env = Episodes(settings, 0)
        env.begin()
        for _ in range(3):
            env.step(1)
        with pytest.raises(EnvironmentFault) as caught:
            env.step(1)
        messages.append(str(caught.value))
    assert messages[0] == messages[1]
    assert messages[0].endswith("step 4: step returned an observation that is not finite: nan in entry [0]")


@pytest.mark.parametrize("space", ["vector", "dict"])
@pytest.mark.parametrize("env_id", ["Drawn-v0", "Keeps-v0"])
def test_an_episode_is_brought_back_with_its_frames(env_id, space):
    """By its actions, or by its state: then the frames are those of the last stack."""
    env_kwargs = f'{{"space": "{space}"}}'
    settings = EnvSettings(env_id, SEED, 1, 0, 1, env_kwargs=env_kwargs, frame_stack=COUNT)
    env, again = Episodes(settings, 0), Episodes(settings, 0)
    env.begin()
    actions = np.array([1, 2, 0, 1])
    for action in actions:
        obs, *_ = env.step(int(action))
    past = PastEpisode(0, actions, obs, float(actions.sum()), 4, state=env.state())
    assert bool(past.state) == (env_id == "Keeps-v0")
    assert again.rebuild(past)[1] == ""
    np.testing.assert_array_equal(again.step(1)[0], env.step(1)[0])


def test_too_many_choices_are_refused():
    with pytest.raises(ConfigError, match=r"^--frame-stack 3: observations of Test-v0 have 1,500,000 choices then; .*"):
        with_frames(spec_of(spaces.Discrete(500_000)), 3)


@pytest.mark.parametrize("space", ["vector", "image", "gray", "choice", "dict"])
def test_a_run_and_what_it_leaves(space, tmp_path):
    """Trains, evaluates, is tested; the policy takes what Gymnasium stacks, and plays the same as `evaluate`."""
    flags = TINY | {"env_id": f"{MODULE}:Drawn-v0", "env_kwargs": {"space": space, "length": 5}, "eval_every": 2}
    run_dir = train(Config(**flags, frame_stack=COUNT, normalize_observations=space == "vector", run_dir=str(tmp_path)))
    agent = load_agent(run_dir)
    played = evaluate(agent, 2, seed=5)
    assert agent.spec.env_kwargs == {"space": space, "length": 5}
    for episode in range(2):
        env = FrameStackObservation(gymnasium.make(agent.spec.env_id, **agent.spec.env_kwargs), COUNT)
        obs, _ = env.reset(seed=evaluation_seed(5, episode))
        score = 0.0
        for _ in range(5):
            obs, reward, *_ = env.step(int(agent.act(obs)))
            score += reward
        assert played.returns[episode] == score


@pytest.mark.parametrize("backend", ["sync", "async"])
def test_a_run_goes_on_as_if_nothing_had_happened(backend, tmp_path):
    """In the middle of episodes that follow from a seed, to the same bits."""
    flags = TINY | {"env_id": f"{MODULE}:Drawn-v0", "env_kwargs": {"length": 50}, "frame_stack": COUNT}
    flags |= {"anneal_lr": False, "checkpoint_every": 1, "env_backend": backend}
    whole = train(Config(**flags, run_dir=str(tmp_path / "whole")))
    begun = flags | {"total_timesteps": 64, "run_dir": str(tmp_path / "parts")}
    train(Config(**begun))
    for wrong in ({"env_kwargs": {"length": 49}}, {"env_kwargs": {"length": 51}}, {"frame_stack": 2}):
        with pytest.raises(ConfigError, match=r"^--resume: .*: the run's own values are expected"):
            train(Config(**begun | wrong, resume=True))
    resumed = train(Config(**flags, run_dir=begun["run_dir"], resume=True))
    policies = [Path(run, "policy.safetensors").read_bytes() for run in (whole, resumed)]
    assert policies[0] == policies[1]
    assert json.loads(Path(resumed, "summary.json").read_text())["exact_resume"] is True


def test_a_stack_comes_after_a_wrapper(tmp_path):
    """Of what `--env-wrapper` makes of an observation."""
    with env_opener("sync", SEED) as open_envs:
        wrapper = "gymnasium.wrappers:FlattenObservation"
        envs = open_envs("Drawn-v0", 1, frame_stack=2, env_kwargs={"space": "image"}, env_wrapper=wrapper)
        assert envs.spec.observation.shape == (2, 240)

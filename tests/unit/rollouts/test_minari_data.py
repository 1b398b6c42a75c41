"""Datasets of Minari, made here by its own collector, held against the episodes that it collected."""

from __future__ import annotations

import sys

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from fabric_ppo.envs.gymnasium_spaces import env_spec
from fabric_ppo.process.errors import ConfigError
from fabric_ppo.rollouts.demonstrations import unpacked
from fabric_ppo.rollouts.minari_data import MinariDataset
from tests.fixtures.drawn_spaces import part_of

# by their names: Minari keeps no classes
gymnasium.register("NestedByName-v0", "tests.fixtures.nested_envs:Nested")
gymnasium.register("PartsByName-v0", "tests.fixtures.mixed_envs:Parts")


def test_without_minari_the_line_has_its_installation(monkeypatch):
    monkeypatch.setitem(sys.modules, "minari", None)
    with pytest.raises(ConfigError, match=r'minari:a/b-v0: pip install "minari\[hdf5\]" is needed'):
        MinariDataset("minari:a/b-v0")


@pytest.fixture
def minari(tmp_path, monkeypatch):
    pytest.importorskip("h5py")  # of the extra
    module = pytest.importorskip("minari")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "datasets"))
    return module


def collected(minari, env_id, name, episodes=3, **options):
    """Collect a dataset; return what the environment gave: per episode its T + 1 observations, and its T steps."""
    env = minari.DataCollector(gymnasium.make(env_id, **options))
    env.action_space.seed(0)
    played = []
    for seed in range(episodes):
        obs, steps, ended = [env.reset(seed=seed)[0]], [], False
        while not ended:
            action = env.action_space.sample()
            after, reward, terminated, truncated, _ = env.step(action)
            obs.append(after)
            steps.append((action, reward, terminated, truncated))
            ended = terminated or truncated
        played.append((obs, steps))
    env.create_dataset(dataset_id=name)
    env.close()
    return played


def spec_of(env_id):
    with gymnasium.make(env_id) as env:
        return env_spec(env_id, env.observation_space, env.action_space)


@pytest.mark.parametrize("env_id", ["CartPole-v1", "Pendulum-v1", "NestedByName-v0", "PartsByName-v0"])
def test_a_dataset_has_what_was_collected(minari, env_id):
    played = collected(minari, env_id, "made/random-v0")
    spec, dataset = spec_of(env_id), MinariDataset("minari:made/random-v0")
    assert dataset.env_id == gymnasium.make(env_id).spec.id
    dataset.require_spaces(spec, "")
    found = dataset.read(spec)
    steps = [step for _, each in played for step in each]
    taken, *columns = zip(*steps, strict=True)
    for name, column in zip(("rewards", "terminated", "truncated"), columns, strict=True):
        assert np.array_equal(getattr(found, name), np.array(column)), name
    for path, column in unpacked(spec.action, found.actions).items():
        assert np.array_equal(column, [part_of(action, path) for action in taken]), path
    starts = np.cumsum([0, *(len(each) for _, each in played)])[:-1]
    assert np.flatnonzero(found.episode_starts).tolist() == starts.tolist()
    for path, column in unpacked(spec.observation, found.obs).items():
        assert np.array_equal(column, [part_of(obs, path) for all_obs, _ in played for obs in all_obs[:-1]])
    for path, column in unpacked(spec.observation, found.final_obs).items():
        assert np.array_equal(column, [part_of(all_obs[-1], path) for all_obs, _ in played])


def test_an_episode_without_an_end_counts_as_truncated(minari):
    from minari.data_collector import EpisodeBuffer

    buffer = EpisodeBuffer(
        observations=np.zeros((4, 2), np.float32),
        actions=np.zeros(3, np.int64),
        rewards=np.ones(3),
        terminations=np.zeros(3, bool),
        truncations=np.zeros(3, bool),
    )
    given = {"observation_space": spaces.Box(-1, 1, (2,)), "action_space": spaces.Discrete(2)}
    minari.create_dataset_from_buffers("made/buffer-v0", buffer=[buffer], **given)
    dataset = MinariDataset("minari:made/buffer-v0")
    assert dataset.env_id == ""
    found = dataset.read(env_spec("Test-v0", *given.values()))
    assert found.truncated.tolist() == [False, False, True]
    with pytest.raises(
        ConfigError, match=r"observations are Box\(2\) float32, and those of CartPole-v1 Box\(4\) float32"
    ):
        dataset.require_spaces(spec_of("CartPole-v1"), "")


def test_a_part_of_another_length_is_refused(minari, monkeypatch):
    collected(minari, "PartsByName-v0", "made/parts-v0", episodes=1)
    dataset = MinariDataset("minari:made/parts-v0")
    (episode,) = dataset._data.iterate_episodes()
    episode.actions["move"] = episode.actions["move"][:9]
    monkeypatch.setattr(dataset._data, "iterate_episodes", lambda: [episode])
    with pytest.raises(
        ConfigError, match=r"^minari:made/parts-v0: 9 actions in an episode of 10 steps; 10 are expected"
    ):
        dataset.read(spec_of("PartsByName-v0"))
    del episode.actions["move"]
    with pytest.raises(ConfigError, match=r"^minari:made/parts-v0: [^\n]*move"):
        dataset.read(spec_of("PartsByName-v0"))


def test_a_dataset_that_is_not_there(minari):
    with pytest.raises(
        ConfigError, match=r"minari:made/none-v0: there is no such dataset on this machine; minari down"
    ):
        MinariDataset("minari:made/none-v0")


def test_a_damaged_dataset_is_refused_in_one_line(minari, tmp_path):
    collected(minari, "CartPole-v1", "made/random-v0")
    (tmp_path / "datasets/made/random-v0/data/main_data.hdf5").write_bytes(b"nothing")
    with pytest.raises(ConfigError, match=r"^minari:made/random-v0: [^\n]+$"):
        MinariDataset("minari:made/random-v0").read(spec_of("CartPole-v1"))

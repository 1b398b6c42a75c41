"""Videos of training: which episodes are recorded, from first to last frame, and none that was not asked for."""

from __future__ import annotations

import dataclasses
import errno
import json
import multiprocessing
import os

import gymnasium
import numpy as np
import pytest

import train_torch
from fabric_ppo.agents.policy import Policy
from fabric_ppo.config import TorchConfig
from fabric_ppo.envs.contract import UnwrittenVideoError
from fabric_ppo.envs.recorder import record
from fabric_ppo.process.errors import NotAllWrittenError
from fabric_ppo.rollouts.evaluate import evaluate
from fabric_ppo.seeding import episode_seed
from tests.fixtures.configs import tiny
from tests.fixtures.toy_envs import toy_env
from tests.fixtures.videos import SEED, assert_shows, log_rendering, play, toy_policy, videos

LENGTH = 6


@pytest.fixture(params=["sync", "async"])
def backend(request):
    return request.param


@pytest.fixture
def rendered(monkeypatch, tmp_path):
    return log_rendering(monkeypatch, tmp_path)


@pytest.mark.parametrize("ends", ["terminated", "truncated"])
def test_environment_0_is_recorded_from_reset_to_end(backend, tmp_path, rendered, ends):
    """Two episodes and the beginning of a third, of which Gymnasium's schedule (0, 1, 8, ...) wants two."""
    folder = tmp_path / "videos"
    play(toy_env(length=LENGTH, ends=ends), backend, str(folder), 2 * LENGTH + 2)
    assert videos(folder) == ["rl-video-episode-0.mp4", "rl-video-episode-1.mp4"]
    for name in videos(folder):
        assert_shows(folder / name, range(LENGTH + 1))
    seeds = [episode_seed(SEED, 0, episode, 6) for episode in range(2)]
    assert rendered() == [(seed, step) for seed in seeds for step in range(LENGTH + 1)]


def test_an_episode_in_progress_is_written_when_the_run_ends(backend, tmp_path):
    play(toy_env(length=0), backend, str(tmp_path / "videos"), 4)
    assert_shows(tmp_path / "videos" / "rl-video-episode-0.mp4", range(5))


def test_other_ranks_do_not_record(backend, tmp_path, rendered):
    play(toy_env(length=LENGTH), backend, str(tmp_path / "videos"), LENGTH, rank=1)
    assert not (tmp_path / "videos").exists()
    assert rendered() == []


class Canvas(gymnasium.Env):
    """Remembers in which steps it knew that it renders."""

    observation_space = gymnasium.spaces.Box(0, 1, (1,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)

    def __init__(self):
        self.render_mode, self.modes = "rgb_array", []

    def reset(self, *, seed=None, options=None):
        self.modes.append([])
        return np.zeros(1, np.float32), {}

    def step(self, action):
        self.modes[-1].append(self.render_mode)
        return np.zeros(1, np.float32), 0.0, False, False, {}

    def render(self):
        assert self.render_mode == "rgb_array"
        return np.zeros((16, 16, 3), np.uint8)


def test_only_an_episode_that_is_recorded_renders(tmp_path):
    """Some environments do more in each step where they render."""
    canvas = Canvas()
    env = record(canvas, str(tmp_path), lambda number: number in (1, 2))
    for _ in range(4):
        env.reset()
        for _ in range(3):
            env.step(0)
    env.close()
    assert canvas.modes == [[None] * 3, ["rgb_array"] * 3, ["rgb_array"] * 3, [None] * 3]
    assert videos(tmp_path) == ["rl-video-episode-1.mp4", "rl-video-episode-2.mp4"]


def test_a_video_that_cannot_be_written_is_told_in_the_end(backend, tmp_path, monkeypatch):
    """By closing, also where a worker would have written it; the next environments know nothing of it."""

    def stop_recording(self):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    folder = str(tmp_path / "videos")
    with monkeypatch.context() as patch:
        patch.setattr(gymnasium.wrappers.RecordVideo, "stop_recording", stop_recording)
        with pytest.raises(UnwrittenVideoError, match=rf"^a video in {folder} \(No space left.*\)$"):
            play(toy_env(length=LENGTH), backend, folder, LENGTH)
    assert not multiprocessing.active_children(), "all is closed nevertheless"
    play(toy_env(length=LENGTH), backend, folder, LENGTH)


def test_a_run_whose_video_cannot_be_written_names_it_in_the_end(backend, tmp_path, monkeypatch):
    """It trains and is tested all the same."""

    def stop_recording(self):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(gymnasium.wrappers.RecordVideo, "stop_recording", stop_recording)
    config = TorchConfig(**tiny(env_id=toy_env(length=LENGTH), env_backend=backend), capture_video=True)
    run_dir = tmp_path / "run"
    with pytest.raises(NotAllWrittenError, match=rf"a video in {run_dir}/train_videos \(No space left.*\)") as caught:
        train_torch.main(dataclasses.replace(config, run_dir=str(run_dir)))
    assert f"a video in {run_dir}/test_videos (No space left" in str(caught.value)
    assert json.loads((run_dir / "summary.json").read_text())["test"]["episodes"] == config.test_episodes


def test_without_a_folder_nothing_is_rendered(backend, rendered):
    play(toy_env(length=LENGTH), backend, "", 2 * LENGTH)
    evaluate(Policy(toy_policy(toy_env(length=LENGTH))), 3, SEED)
    assert rendered() == []

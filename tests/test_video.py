"""Videos of episodes: which are recorded, from the first frame to the last, and nothing where none was asked for."""

from __future__ import annotations

import errno
import json
import os
import shutil

import gymnasium
import imageio_ffmpeg
import numpy as np
import pytest
import torch
from PIL import Image

from fabric_ppo.agents.agent import Agent, Architecture
from fabric_ppo.agents.policy import Policy
from fabric_ppo.agents.policy_file import save_policy
from fabric_ppo.config import Config
from fabric_ppo.envs.make import make_envs
from fabric_ppo.envs.recorder import record
from fabric_ppo.envs.spaces import env_spec
from fabric_ppo.process.errors import NOT_ALL_WRITTEN, NotAllWrittenError
from fabric_ppo.rollouts.evaluate import evaluate
from fabric_ppo.run.writes import Writes
from fabric_ppo.seeding import episode_seed, evaluation_seed
from fabric_ppo.tools import cli
from tests.toy_envs import ACTIONS, OBSERVATIONS, Toy, toy_env

SEED = 9
LENGTH = 6


@pytest.fixture(params=["sync", "async"])
def backend(request):
    return request.param


@pytest.fixture
def rendered(monkeypatch, tmp_path):
    """A list of (episode seed, step) of all that was rendered since, by any process, in order."""
    log, render = tmp_path / "rendered.txt", Toy.render

    def logging_render(self):
        with open(log, "a") as file:
            file.write(f"{self._seed} {self._step}\n")
        return render(self)

    monkeypatch.setattr(Toy, "render", logging_render)
    return lambda: [tuple(map(int, line.split())) for line in log.read_text().splitlines()] if log.exists() else []


def brightness(path):
    """Mean brightness of each frame of a video."""
    frames = imageio_ffmpeg.read_frames(str(path))
    width, height = next(frames)["size"]
    return [np.frombuffer(frame, np.uint8).reshape(height, width, 3).mean() for frame in frames]


def assert_shows(path, steps):
    """Each frame is the picture of the step, which `Toy` draws in a brightness of 10 per step."""
    assert brightness(path) == pytest.approx([10 * step for step in steps], abs=4)


def videos(folder):
    return sorted(path.name for path in folder.glob("*.mp4"))


def play(env_id, backend, video_dir, steps, rank=0):
    """Three environments of rank `rank` for `steps` steps, closed afterwards; all that they observed."""
    config = Config(env_id=env_id, env_backend=backend, num_envs=3, seed=SEED)
    envs = make_envs(config, rank, 2, video_dir)
    obs = np.zeros((3, *envs.spec.observation.shape), envs.spec.observation.dtype)
    envs.reset(obs)
    seen = [obs.copy()]
    rows = [np.zeros(3, np.float32)] + [np.zeros(3, bool) for _ in range(3)]
    for _ in range(steps):
        envs.step(np.zeros(3, np.int64), obs, *rows)
        seen.append(obs.copy())
    envs.close()
    return np.stack(seen)


def toy_policy(env_id):
    torch.manual_seed(0)
    return Agent(env_spec(env_id, OBSERVATIONS["float32"], ACTIONS["discrete"]), Architecture("tanh", (4,)))


@pytest.fixture
def run_dir(tmp_path):
    """A folder with a policy for an environment whose episodes take `LENGTH` steps."""
    folder = tmp_path / "run"
    folder.mkdir()
    save_policy(toy_policy(toy_env(length=LENGTH)), folder)
    return folder


# training


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


def test_recording_changes_nothing_else(backend, tmp_path):
    """CartPole, which draws and steps as usual."""
    seen = [play("CartPole-v1", backend, video_dir, 40) for video_dir in ("", str(tmp_path / "videos"))]
    np.testing.assert_array_equal(*seen)
    assert videos(tmp_path / "videos")


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
    """Also where a worker would have written it; the next run knows nothing of it."""

    def stop_recording(self):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    writes = Writes()
    monkeypatch.setattr(gymnasium.wrappers.RecordVideo, "stop_recording", stop_recording)
    play(toy_env(length=LENGTH), backend, str(tmp_path / "videos"), LENGTH)
    with pytest.raises(NotAllWrittenError, match=r"a video in .* \(No space left"):
        writes.raise_if_incomplete()
    Writes().raise_if_incomplete()


def test_without_a_folder_nothing_is_rendered(backend, rendered):
    play(toy_env(length=LENGTH), backend, "", 2 * LENGTH)
    evaluate(Policy(toy_policy(toy_env(length=LENGTH))), 3, SEED)
    assert rendered() == []


# tests


@pytest.mark.parametrize("episodes", [1, 3, 12])
def test_one_test_episode_is_recorded(tmp_path, rendered, episodes):
    """The first, whole; and the results are those without a video."""
    policy = Policy(toy_policy(toy_env(length=LENGTH)))
    expected = evaluate(policy, episodes, SEED)
    assert evaluate(policy, episodes, SEED, video_dir=str(tmp_path / "videos")) == expected
    (name,) = videos(tmp_path / "videos")
    assert_shows(tmp_path / "videos" / name, range(LENGTH + 1))
    assert rendered() == [(evaluation_seed(SEED, 0), step) for step in range(LENGTH + 1)]


def test_gif_of_the_first_test_episode(tmp_path, run_dir, capfd):
    """It plays as long as the episode: 7 frames at 10 a second, from dark to bright."""
    gif = tmp_path / "episode.gif"
    assert cli.main(["evaluate", str(run_dir), "--episodes", "2", "--gif", str(gif), "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["episodes"] == 2
    with Image.open(gif) as picture:
        assert picture.format == "GIF"
        levels, milliseconds = [], 0
        for number in range(picture.n_frames):
            picture.seek(number)
            levels.append(np.asarray(picture.convert("L")).mean())
            milliseconds += picture.info["duration"]
    assert milliseconds / 1000 == pytest.approx((LENGTH + 1) / 10, abs=0.11)
    assert levels == sorted(levels)
    assert levels[0] == pytest.approx(0, abs=4)
    assert levels[-1] == pytest.approx(10 * LENGTH, abs=4)
    assert not (run_dir / "test_videos").exists()


def test_video_and_gif_may_both_be_asked_for(tmp_path, run_dir):
    gif = tmp_path / "episode.gif"
    assert cli.main(["evaluate", str(run_dir), "--episodes", "1", "--video", "--gif", str(gif)]) == 0
    (name,) = videos(run_dir / "test_videos")
    assert_shows(run_dir / "test_videos" / name, range(LENGTH + 1))
    assert Image.open(gif).format == "GIF"


def test_a_gif_that_cannot_be_written_is_one_line(tmp_path, run_dir, capfd):
    """Said before any episode is played."""
    gif = tmp_path / "missing" / "episode.gif"
    assert cli.main(["evaluate", str(run_dir), "--episodes", "1", "--gif", str(gif)]) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert err.startswith(f"error: --gif {gif}: ")
    assert err.count("\n") == 1


def test_a_folder_for_videos_that_cannot_be_made_is_told(tmp_path, run_dir, capfd):
    """The episodes are played all the same."""
    folder = run_dir / "test_videos"
    shutil.rmtree(folder, ignore_errors=True)
    folder.touch()
    words = ["evaluate", str(run_dir), "--episodes", "1", "--video", "--gif", str(tmp_path / "episode.gif")]
    assert cli.main(words) == NOT_ALL_WRITTEN
    out, err = capfd.readouterr()
    assert out.count("\n") == 1
    assert ": return " in out
    assert err == f"warning: a video in {folder} (File exists) could not be written; it goes on without\n"
    folder.unlink()


def test_what_does_not_render_cannot_be_recorded(tmp_path, capfd):
    """One line, status 2."""
    folder = tmp_path / "run"
    folder.mkdir()
    torch.manual_seed(0)
    import gymnasium

    with gymnasium.make("Endless-v0") as env:
        spec = env_spec("Endless-v0", env.observation_space, env.action_space)
    save_policy(Agent(spec, Architecture("tanh", (4,))), folder)
    assert cli.main(["evaluate", str(folder), "--episodes", "1", "--video"]) == 2
    err = capfd.readouterr().err
    assert err.startswith("error: --env-id Endless-v0: ")
    assert err.count("\n") == 1
    assert not (folder / "test_videos").exists()

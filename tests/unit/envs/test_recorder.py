"""Videos of training: which episodes are recorded, from first to last frame, and none that was not asked for."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import functools
import json
import multiprocessing
import os

import gymnasium
import numpy as np
import pytest
from gymnasium.envs.box2d import LunarLander
from moviepy.video.io.ImageSequenceClip import ImageSequenceClip

import train_torch
from fabric_ppo.agents.policy import Policy
from fabric_ppo.config import TorchConfig
from fabric_ppo.envs.contract import UnwrittenVideoError
from fabric_ppo.envs.gymnasium_env import make_gymnasium_env
from fabric_ppo.envs.recorder import record
from fabric_ppo.process.errors import NotAllWrittenError
from fabric_ppo.rollouts.evaluate import evaluate
from fabric_ppo.seeding import episode_seed
from tests.fixtures import rendering_envs
from tests.fixtures.configs import tiny
from tests.fixtures.envs import BACKENDS
from tests.fixtures.toy_envs import toy_env
from tests.fixtures.videos import SEED, assert_shows, brightness, log_rendering, play, toy_policy, videos

LENGTH = 6


@pytest.fixture(params=BACKENDS)
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


def modes(env, episodes):
    """The innermost environment's render mode after each of three steps, episode by episode."""
    seen = []
    for _ in range(episodes):
        env.reset(seed=0)
        seen.append([])
        for _ in range(3):
            env.step(0)
            seen[-1].append(env.unwrapped.render_mode)
    env.close()
    return seen


@pytest.mark.parametrize("env_id", ["CartPole-v1", "LunarLander-v3"])
def test_gymnasiums_own_render_in_an_episode_that_is_recorded_only(tmp_path, env_id):
    """LunarLander does more in each step where it renders, and returns the same."""
    make = functools.partial(make_gymnasium_env, env_id, "")
    env = record(make(), str(tmp_path), lambda number: number in (1, 2), make)
    assert modes(env, 4) == [[None] * 3, ["rgb_array"] * 3, ["rgb_array"] * 3, [None] * 3]
    assert videos(tmp_path) == ["rl-video-episode-1.mp4", "rl-video-episode-2.mp4"]


class Derived(LunarLander):
    """Another class: nobody knows what it does."""


@pytest.mark.parametrize("mode", [None, "rgb_array", "human"])
@pytest.mark.parametrize("kind", [rendering_envs.Bar, Derived])
def test_an_unknown_class_has_one_mode_all_the_time(tmp_path, kind, mode):
    """But while it draws a picture."""
    if kind is Derived and mode == "human":
        mode = "rgb_array"  # no window
    env = record(kind(render_mode=mode), str(tmp_path), lambda number: number == 1, kind)
    assert modes(env, 3) == [[mode] * 3] * 3
    assert videos(tmp_path) == ["rl-video-episode-1.mp4"]


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


@pytest.mark.parametrize(
    ("env_id", "shown"),
    [
        (toy_env(length=LENGTH), ["train_videos", "test_videos"]),
        (f"{rendering_envs.MODULE}:PictureNothing-v0", []),
        (f"{rendering_envs.MODULE}:PictureRaises-v0", []),
    ],
)
def test_a_run_names_in_the_end_the_folders_that_hold_videos(tmp_path, capfd, env_id, shown):
    """And those that were to hold one, with the reason."""
    config = TorchConfig(**tiny(env_id=env_id, run_dir=str(tmp_path / "run")), capture_video=True, quiet=False)
    missing = [] if shown else [f"a video in {tmp_path}/run/{name} (" for name in ("train_videos", "test_videos")]
    with pytest.raises(NotAllWrittenError) if missing else contextlib.nullcontext() as caught:
        train_torch.main(config)
    lines = capfd.readouterr().out.splitlines()
    named = ", ".join(f"{tmp_path}/run/{name}" for name in shown)
    assert [line for line in lines if line.startswith("videos")] == ([f"videos  {named}"] if shown else [])
    assert all(each in str(caught.value) for each in missing)


def test_without_a_folder_nothing_is_rendered(backend, rendered):
    play(toy_env(length=LENGTH), backend, "", 2 * LENGTH)
    evaluate(Policy(toy_policy(toy_env(length=LENGTH))), 3, SEED)
    assert rendered() == []


@pytest.mark.parametrize("records", [{0}, {1}, {0, 1}])
def test_an_environment_that_must_be_made_to_draw_is_made_again(tmp_path, records):
    """Before anything is played, and once."""
    made = []

    def make(mode):
        made.append(mode)
        return rendering_envs.NeedsMode(mode)

    env = record(make(None), str(tmp_path), lambda number: number in records, make)
    assert modes(env, 3) == [["rgb_array"] * 3] * 3
    assert made == [None, "rgb_array"]
    assert env.is_remade
    assert videos(tmp_path) == [f"rl-video-episode-{number}.mp4" for number in sorted(records)]
    for name in videos(tmp_path):
        assert brightness(tmp_path / name) == pytest.approx([0, 42.5, 85, 127.5], abs=4)


UNMOVED = [
    *("Bar", "BarRenders", "OwnPicture", "OwnPictureRenders", "ByMode", "ByFirstMode", "Draws", "DrawsGlobally"),
    *("NoSuchMode", "DrawsIntoObservation"),
]
"""Environments that could tell whether they are recorded."""


@pytest.mark.parametrize(
    ("name", "backend"), [*((name, "sync") for name in UNMOVED), ("OwnPicture", "async"), ("BarRenders", "async")]
)
def test_an_environment_does_not_notice_that_it_is_recorded(name, backend, tmp_path):
    """Neither by its mode, nor by random numbers that its pictures take: the same observations."""
    folder = tmp_path / "videos"
    alone, watched = (play(f"{rendering_envs.MODULE}:{name}-v0", backend, where, 9) for where in ("", str(folder)))
    np.testing.assert_array_equal(alone, watched)
    shown = brightness(folder / "rl-video-episode-0.mp4")
    assert len(shown) == rendering_envs.LENGTH + 1
    assert shown == sorted(shown)
    assert shown[-1] > 200


@pytest.mark.parametrize("name", list(rendering_envs.GOOD_PICTURES))
def test_pictures_that_a_video_can_be_made_of(tmp_path, name):
    """Any size and any whole numbers below 256; also where the environment keeps one array for all."""
    play(f"{rendering_envs.MODULE}:Picture{name}-v0", "sync", str(tmp_path / "videos"), 7)
    assert_shows(tmp_path / "videos/rl-video-episode-0.mp4", range(rendering_envs.LENGTH + 1))


@pytest.mark.parametrize("name", list(rendering_envs.PICTURES))
def test_pictures_that_no_video_can_be_made_of_cost_the_video(tmp_path, capfd, name):
    """A warning, the same observations, and the error in the end; no file."""
    folder, env_id = tmp_path / "videos", f"{rendering_envs.MODULE}:Picture{name}-v0"
    expected = play(env_id, "sync", "", 20)
    make = functools.partial(make_gymnasium_env, env_id, "")
    env = record(make(), str(folder), lambda number: True, make)
    for _ in range(2):
        seen = [env.reset(seed=3)[0], *(env.step(0)[0] for _ in range(rendering_envs.LENGTH))]
        assert [obs[0] for obs in seen] == pytest.approx([step / 6 for step in range(7)])
    with pytest.raises(UnwrittenVideoError, match=rf"^a video in {folder} \([^\n]+\)$"):
        env.close()
    warnings = capfd.readouterr().err
    assert warnings.startswith(f"warning: a video in {folder} (")
    assert warnings.count("\n") == 1
    assert videos(folder) == []
    with pytest.raises(UnwrittenVideoError):
        np.testing.assert_array_equal(play(env_id, "sync", str(folder), 20), expected)


@pytest.mark.parametrize("name", ["Nothing", "Raises", "LateGrows"])
def test_the_reason_is_named(tmp_path, name):
    reasons = {
        "Nothing": "render returned NoneType; an array [height, width, 3] of uint8 is expected",
        "Raises": "render raised RuntimeError: no display",
        "LateGrows": "render returned pictures of shape (24, 24, 3) and of shape (26, 24, 3)",
    }
    with pytest.raises(UnwrittenVideoError) as caught:
        play(f"{rendering_envs.MODULE}:Picture{name}-v0", "async", str(tmp_path), 20)
    assert str(caught.value) == f"a video in {tmp_path} ({reasons[name]})"


@pytest.mark.parametrize("error", [ImportError("moviepy"), RuntimeError("no ffmpeg"), SystemExit("no codec")])
@pytest.mark.parametrize("where", ["__init__", "stop_recording"])
def test_whatever_moviepy_raises_costs_the_video(tmp_path, monkeypatch, error, where):
    def fail(self, *args, **kwargs):
        raise error

    folder = tmp_path / "videos"
    monkeypatch.setattr(gymnasium.wrappers.RecordVideo, where, fail)
    with pytest.raises(UnwrittenVideoError, match=rf"^a video in {folder} \({error}\)$"):
        play("CartPole-v1", "sync", str(folder), 50)


def test_a_video_of_which_nothing_was_written_is_told(tmp_path, monkeypatch):
    """MoviePy does not look at FFmpeg's exit status."""
    monkeypatch.setattr(ImageSequenceClip, "write_videofile", lambda self, path, logger: open(path, "w").close())
    with pytest.raises(UnwrittenVideoError, match=r"\(FFmpeg wrote nothing\)$"):
        play(toy_env(length=LENGTH), "sync", str(tmp_path), LENGTH)
    assert videos(tmp_path) == []


def test_an_environment_that_fails_to_close_keeps_its_video(tmp_path, monkeypatch):
    def fail(self):
        raise ValueError("told to")

    monkeypatch.setattr(rendering_envs.Bar, "close", fail)
    env = record(rendering_envs.Bar(), str(tmp_path), lambda number: True, rendering_envs.Bar)
    env.reset()
    with pytest.raises(ValueError, match="told to"):
        env.close()
    assert videos(tmp_path) == ["rl-video-episode-0.mp4"]

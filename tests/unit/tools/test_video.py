"""Videos and GIFs of test episodes."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shutil

import gymnasium
import moviepy
import numpy as np
import pytest
import torch
from PIL import Image

from fabric_ppo.agents.agent import Agent, Architecture
from fabric_ppo.agents.policy import Policy
from fabric_ppo.agents.policy_file import save_policy
from fabric_ppo.envs.gymnasium_env import make_gymnasium_env
from fabric_ppo.envs.gymnasium_spaces import env_spec
from fabric_ppo.process.errors import NOT_ALL_WRITTEN
from fabric_ppo.rollouts.evaluate import evaluate
from fabric_ppo.seeding import evaluation_seed
from fabric_ppo.tools import cli
from tests.fixtures import rendering_envs
from tests.fixtures.toy_envs import toy_env
from tests.fixtures.videos import SEED, assert_shows, log_rendering, toy_policy, videos

LENGTH = 6


@pytest.fixture
def rendered(monkeypatch, tmp_path):
    return log_rendering(monkeypatch, tmp_path)


@pytest.fixture
def run_dir(tmp_path):
    """A folder with a policy for an environment whose episodes take `LENGTH` steps."""
    folder = tmp_path / "run"
    folder.mkdir()
    save_policy(toy_policy(toy_env(length=LENGTH)), folder)
    return folder


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


@pytest.mark.parametrize("env_id", ["Endless-v0", "NoArguments-v0"])
def test_what_does_not_render_cannot_be_recorded(tmp_path, capfd, env_id):
    """One line, status 2."""
    folder = tmp_path / "run"
    folder.mkdir()
    torch.manual_seed(0)
    with gymnasium.make(env_id) as env:
        spec = env_spec(env_id, env.observation_space, env.action_space)
    save_policy(Agent(spec, Architecture("tanh", (4,))), folder)
    assert cli.main(["evaluate", str(folder), "--episodes", "1", "--video"]) == 2
    err = capfd.readouterr().err
    assert err == f"error: --video: {env_id} does not render rgb_array\n"
    assert not (folder / "test_videos").exists()


@pytest.mark.parametrize("env_id", ["Endless-v0", "NoArguments-v0"])
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--gif", "a.gif"], "--gif a.gif: {} does not render rgb_array"),
        (["--render", "human"], "--render human: {} does not render human"),
    ],
)
def test_the_flag_that_cannot_be_met_is_named(env_id, words, message, tmp_path, capfd, monkeypatch):
    """In one line, without Gymnasium's warning; and nothing is written."""
    with gymnasium.make(env_id) as env:
        spec = env_spec(env_id, env.observation_space, env.action_space)
    (tmp_path / "run").mkdir()
    save_policy(Agent(spec, Architecture("tanh", (4,))), tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    assert cli.main(["evaluate", "run", "--episodes", "1", *words]) == 2
    assert capfd.readouterr() == ("", f"error: {message.format(env_id)}\n")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


@pytest.mark.parametrize("name", ["c2.mp4", "picture", "a.gif.png", "gif"])
def test_a_gif_under_another_name_is_refused(name, capfd, tmp_path):
    path = tmp_path / name
    assert cli.main(["evaluate", "nowhere", "--gif", str(path)]) == 2
    assert capfd.readouterr() == ("", f"error: --gif {path}: a name that ends in .gif is expected\n")


def test_what_was_recorded_is_printed(tmp_path, run_dir, capfd):
    gif = tmp_path / "episode.GIF"
    assert cli.main(["evaluate", str(run_dir), "--episodes", "1", "--video", "--gif", str(gif)]) == 0
    assert capfd.readouterr().out.splitlines()[1:] == [f"video: {run_dir / 'test_videos'}", f"gif: {gif}"]


DIFFERENT = [
    *("Bar", "BarRenders", "OwnPicture", "OwnPictureRenders", "ByMode", "ByFirstMode", "Draws", "DrawsGlobally"),
    "NoSuchMode",
]
"""Environments that could tell whether they are recorded."""


def agent_for(name):
    """An agent for `rendering_envs:NAME-v0` whose actions depend on what it sees."""
    torch.manual_seed(0)
    env_id = f"{rendering_envs.MODULE}:{name}-v0"
    with contextlib.closing(make_gymnasium_env(env_id)) as env:
        spec = env_spec(env_id, env.observation_space, env.action_space)
    return Agent(spec, Architecture("tanh", (4,), encoder="small" if "OwnPicture" in name else "flatten"))


@pytest.mark.parametrize("name", DIFFERENT)
def test_scores_are_the_same_with_and_without_a_video(tmp_path, name):
    """In all episodes, whoever plays them."""
    policy = Policy(agent_for(name))
    expected = evaluate(policy, 12, SEED)
    assert evaluate(policy, 12, SEED, video_dir=str(tmp_path / "videos")) == expected
    assert videos(tmp_path / "videos") == ["rl-video-episode-0.mp4"]


def test_one_plays_all_where_a_video_makes_a_difference(tmp_path):
    """This environment earns 100 more in each step where it was made to draw, and cannot draw otherwise."""
    policy = Policy(agent_for("NeedsMode"))
    expected = [score + 600 for score in evaluate(policy, 12, SEED).returns]
    assert evaluate(policy, 12, SEED, video_dir=str(tmp_path / "videos")).returns == pytest.approx(expected)
    assert videos(tmp_path / "videos") == ["rl-video-episode-0.mp4"]


@pytest.mark.parametrize("name", list(rendering_envs.PICTURES))
def test_pictures_that_no_video_can_be_made_of_change_no_score(tmp_path, capfd, name):
    """A warning, and why in the result."""
    folder, policy = tmp_path / "videos", Policy(agent_for(f"Picture{name}"))
    expected = evaluate(policy, 3, SEED)
    result = evaluate(policy, 3, SEED, video_dir=str(folder))
    assert dataclasses.replace(result, unwritten="") == expected
    assert result.unwritten.startswith(f"a video in {folder} (")
    assert capfd.readouterr().err == f"warning: {result.unwritten} could not be written; it goes on without\n"
    assert videos(folder) == []


def test_a_video_that_cannot_be_had_is_told_by_the_exit_status(tmp_path, capfd):
    """Nor is an older video of the same folder taken for its GIF."""
    save_policy(agent_for("PictureNothing"), tmp_path)
    (tmp_path / "test_videos").mkdir()
    (tmp_path / "test_videos/old.mp4").write_bytes(b"an older one")
    words = ["--own-code", "--episodes", "2", "--video", "--gif", str(tmp_path / "episode.gif")]
    assert cli.main(["evaluate", str(tmp_path), *words]) == NOT_ALL_WRITTEN
    out, err = capfd.readouterr()
    assert ": return " in out
    assert "video:" not in out
    assert err.startswith(f"warning: a video in {tmp_path}/test_videos (render returned NoneType; ")
    assert err.count("\n") == 1
    assert not (tmp_path / "episode.gif").exists()


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), ImportError("no moviepy"), SystemExit("x")])
def test_a_gif_that_moviepy_cannot_write_costs_the_gif(tmp_path, run_dir, capfd, monkeypatch, error):
    """The scores are printed."""

    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr(moviepy, "VideoFileClip", fail)
    gif = tmp_path / "episode.gif"
    assert cli.main(["evaluate", str(run_dir), "--episodes", "1", "--gif", str(gif)]) == NOT_ALL_WRITTEN
    out, err = capfd.readouterr()
    assert ": return " in out
    assert err == f"warning: {gif} ({getattr(error, 'strerror', None) or error}) could not be written\n"
    assert not gif.exists()

"""Videos of episodes, without which a run goes on where they cannot be written."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable
from typing import Any

import gymnasium

from fabric_ppo.envs.contract import UnwrittenVideoError
from fabric_ppo.process.console import print_line
from fabric_ppo.process.errors import first_line


class Recorder(gymnasium.wrappers.RecordVideo):
    """Gymnasium's RecordVideo, which goes on without a video that cannot be written.

    In an episode that is not recorded the environment does not know that it could render:
    LunarLander, which moves particles about for the picture, takes a fifth of the time then.

    Attributes:
        unwritten: why the last video that could not be written was not; empty if all were.
    """

    def __init__(self, env: gymnasium.Env[Any, Any], folder: str, episodes: Callable[[int], bool] | None) -> None:
        """Make the folder; see `record`.

        Raises:
            OSError: there cannot be such a folder.
        """
        super().__init__(env, folder, episode_trigger=episodes, disable_logger=True)
        self._mode = env.render_mode
        self.unwritten = ""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Start an episode, and its video if one is wanted."""
        assert self.episode_trigger is not None
        with contextlib.suppress(AttributeError):  # one that cannot be set stays as it is
            self.unwrapped.render_mode = self._mode if self.episode_trigger(self.episode_id + 1) else None
        return super().reset(seed=seed, options=options)

    def stop_recording(self) -> None:
        """Write the video, or note why that fails, with a warning the first time."""
        try:
            super().stop_recording()
        except OSError as error:
            reason = _describe_unwritten(self.video_folder, error)
            if not self.unwritten:
                _warn(reason)
            self.unwritten = reason
            # as where the video was written: RecordVideo would keep the frames, and record on
            self.recording, self.recorded_frames = False, []

    def close(self) -> None:
        """Close the environment and write the video of the episode in progress.

        Raises:
            UnwrittenVideoError: a video could not be written; all is closed nevertheless.
        """
        super().close()
        if self.unwritten:
            raise UnwrittenVideoError(self.unwritten)


class _Unrecorded(gymnasium.Wrapper[Any, Any, Any, Any]):
    """An environment whose videos could not even have a folder."""

    def __init__(self, env: gymnasium.Env[Any, Any], unwritten: str) -> None:
        super().__init__(env)
        self._unwritten = unwritten

    def close(self) -> None:
        super().close()
        raise UnwrittenVideoError(self._unwritten)


def record(
    env: gymnasium.Env[Any, Any], folder: str, episodes: Callable[[int], bool] | None
) -> gymnasium.Env[Any, Any]:
    """Wrap an environment to record episodes into `folder`, as `rl-video-episode-<number>.mp4`.

    A video that cannot be written costs a warning, and an UnwrittenVideoError when the environment
    is closed; so do all of them where there cannot be such a folder.

    Args:
        env: renders `rgb_array`.
        folder: made if it is missing.
        episodes: true of the numbers to record; None for Gymnasium's schedule (the cubes up to
            1000, then every 1000th).
    """
    try:
        return Recorder(env, folder, episodes)
    except OSError as error:
        reason = _describe_unwritten(folder, error)
        _warn(reason)
        return _Unrecorded(env, reason)


def _describe_unwritten(folder: str, error: OSError) -> str:
    return f"a video in {folder} ({error.strerror or first_line(error)})"


def _warn(reason: str) -> None:
    print_line(f"warning: {reason} could not be written; it goes on without", sys.stderr)

"""Videos of episodes: recording changes nothing, and a video that cannot be had costs the video."""

from __future__ import annotations

import contextlib
import copy
import random
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

from fabric_ppo.envs.contract import UnwrittenVideoError
from fabric_ppo.envs.gymnasium_env import dispense_with_screen, renders
from fabric_ppo.envs.known import ignores_render_mode
from fabric_ppo.process.console import print_line
from fabric_ppo.process.errors import USER_ERRORS, ConfigError, DoesNotRenderError, describe_error, first_line
from fabric_ppo.process.signals import pass_on_stop

Maker = Callable[[str | None], gymnasium.Env[Any, Any]]
"""Function that makes an environment with a render mode, as `make_gymnasium_env` does."""
_RENDERING = ("rgb_array", "rgb_array_list")
"""Render modes in which `render` returns pictures."""


class Recorder(gymnasium.wrappers.RecordVideo):
    """Gymnasium's RecordVideo, which nobody else notices.

    The environment keeps the render mode that it was made with, and its random numbers: it is able
    to render only while it draws a picture. Where the mode is known to make no difference, it is
    set in an episode that is recorded, and in no other: LunarLander moves particles about for the
    picture then, and takes a fifth of the time without. An environment that cannot draw unless it
    was made to is made again.

    Attributes:
        unwritten: why the last video that could not be written was not; empty if all were.
        is_remade: the environment was made again, and may differ from those that are not recorded.
    """

    def __init__(
        self, env: gymnasium.Env[Any, Any], folder: str, episodes: Callable[[int], bool] | None, make: Maker
    ) -> None:
        """Make the folder; see `record`.

        Raises:
            Exception: there cannot be such a folder, or MoviePy cannot be used.
        """
        self.unwritten, self.is_remade = "", False
        self._make, self._is_indifferent = make, ignores_render_mode(env)
        self._is_tried = self._is_indifferent
        env = env if self._is_indifferent else _Copied(env)
        with _rendering(env):
            super().__init__(env, folder, episode_trigger=episodes, disable_logger=True)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Start an episode, and its video if one is wanted."""
        assert self.episode_trigger is not None
        if self._is_indifferent:
            self.unwrapped.render_mode = "rgb_array" if self.episode_trigger(self.episode_id + 1) else None
        first = super().reset(seed=seed, options=options)
        if self._is_tried:
            return first
        # before anything is played: an environment that is made again has forgotten what came before
        self._is_tried = True
        if not self.recorded_frames and not _draws(self.env):
            self._make_again()
            self.recording, self.episode_id = False, self.episode_id - 1
            first = super().reset(seed=seed, options=options)
        return first

    def go_to(self, episode: int) -> None:
        """Have the next episode be that of this number, which its video is scheduled and named by."""
        self.episode_id = episode - 1
        if self.recording:  # another one, of which nothing is to be seen
            self.recording, self.recorded_frames = False, []

    def _make_again(self) -> None:
        """Put an environment in place that was made to render, if there can be one."""
        with contextlib.suppress(*USER_ERRORS):
            self.env.close()
        try:
            self.env, self.is_remade = _Copied(self._make("rgb_array")), True
        except ConfigError:  # it takes no render mode
            self.env = _Copied(self._make(None))

    def _capture_frame(self) -> None:
        """Append a picture to the video, or give the video up; the first may be had in another way."""
        frames: list[Any] = self.recorded_frames
        try:
            frame = _draw(self.env)
            if frames and frame.shape != frames[0].shape:
                raise _NoPicture(f"render returned pictures of shape {frames[0].shape} and of shape {frame.shape}")
            frames.append(frame)
        except _NoPicture as error:
            if self._is_tried:
                self._give_up(str(error))

    def stop_recording(self) -> None:
        """Write the video, or note why that fails."""
        path = Path(self.video_folder, f"{self._video_name}.mp4")
        try:
            super().stop_recording()
            # MoviePy does not look at FFmpeg's exit status
            if path.exists() and not path.stat().st_size:
                raise OSError("FFmpeg wrote nothing")
        except USER_ERRORS as error:
            with contextlib.suppress(OSError):
                path.unlink()  # a part of a video
            self._give_up(_reason(error))

    def _give_up(self, reason: str) -> None:
        """Drop the video in progress, with a warning the first time."""
        unwritten = f"a video in {self.video_folder} ({reason})"
        if not self.unwritten:
            _warn(unwritten)
        self.unwritten = unwritten
        self.recording, self.recorded_frames = False, []

    def close(self) -> None:
        """Close the environment and write the video of the episode in progress.

        Raises:
            UnwrittenVideoError: a video could not be written; all is closed nevertheless.
        """
        try:
            self.env.close()
        finally:
            if self.recording:
                self.stop_recording()
        if self.unwritten:
            raise UnwrittenVideoError(self.unwritten)


class _Copied(gymnasium.Wrapper[Any, Any, Any, Any]):
    """An environment whose observations do not change afterwards: it may draw into their memory."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        obs, info = self.env.reset(seed=seed, options=options)
        return copy.deepcopy(obs), info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        obs, *rest = self.env.step(action)
        return (copy.deepcopy(obs), *rest)


class _Unrecorded(gymnasium.Wrapper[Any, Any, Any, Any]):
    """An environment whose videos cannot even be begun."""

    def __init__(self, env: gymnasium.Env[Any, Any], unwritten: str) -> None:
        super().__init__(env)
        self._unwritten = unwritten

    def close(self) -> None:
        super().close()
        raise UnwrittenVideoError(self._unwritten)


def record(
    env: gymnasium.Env[Any, Any], folder: str, episodes: Callable[[int], bool] | None, make: Maker
) -> gymnasium.Env[Any, Any]:
    """Wrap an environment to record episodes into `folder`, as `rl-video-episode-<number>.mp4`.

    A video that cannot be had costs a warning, and an UnwrittenVideoError when the environment is
    closed: where it cannot be written, where `render` raises or returns no picture, where there
    cannot be such a folder.

    Args:
        env: made with `make(None)`, as one that is not recorded.
        folder: made if it is missing.
        episodes: true of the numbers to record; None for Gymnasium's schedule (the cubes up to
            1000, then every 1000th).
        make: makes such an environment with a render mode.

    Raises:
        DoesNotRenderError: the environment declares no mode `rgb_array`.
    """
    dispense_with_screen()
    if not renders(env, "rgb_array"):
        name = env.spec.id if env.spec else type(env.unwrapped).__name__
        raise DoesNotRenderError(name, "rgb_array")
    try:
        return Recorder(env, folder, episodes, make)
    except USER_ERRORS as error:
        unwritten = f"a video in {folder} ({_reason(error)})"
        _warn(unwritten)
        return _Unrecorded(env, unwritten)


def unrecorded(env: gymnasium.Env[Any, Any]) -> gymnasium.Env[Any, Any]:
    """Return an environment as it was before `record`."""
    while isinstance(env, (Recorder, _Copied, _Unrecorded)):
        env = env.env
    return env


class _NoPicture(Exception):
    """An environment that does not draw a picture as a video takes it; its text says why."""


def _draws(env: gymnasium.Env[Any, Any]) -> bool:
    """Return True if an environment draws a picture."""
    with contextlib.suppress(_NoPicture):
        _draw(env)
        return True
    return False


def _draw(env: gymnasium.Env[Any, Any]) -> NDArray[Any]:
    """Return a picture of an environment, `[height, width, 3]` or 4, uint8, and of its own memory.

    Raises:
        _NoPicture: it cannot be had.
    """
    try:
        with _rendering(env), _same_randomness(env):
            frame = env.render()
    except BaseException as error:
        pass_on_stop(error)
        raise _NoPicture(f"render raised {describe_error(error)}".splitlines()[0]) from error
    if isinstance(frame, list) and frame:
        frame = frame[-1]  # the latest since it was asked before
    expected = "an array [height, width, 3] of uint8 is expected"
    if not isinstance(frame, np.ndarray):
        raise _NoPicture(f"render returned {type(frame).__name__}; {expected}")
    if frame.ndim != 3 or frame.shape[2] not in (3, 4) or not frame.size:
        raise _NoPicture(f"render returned an array {list(frame.shape)}; {expected}")
    if frame.dtype.kind not in "iu" or frame.min() < 0 or frame.max() > 255:
        raise _NoPicture(f"render returned an array of {frame.dtype}; {expected}")
    return np.array(frame, np.uint8)


@contextlib.contextmanager
def _rendering(env: gymnasium.Env[Any, Any]) -> Iterator[None]:
    """Let an environment know, for the block, that it renders."""
    unwrapped = env.unwrapped
    mode = unwrapped.render_mode
    if mode in _RENDERING:
        yield
        return
    unwrapped.render_mode = "rgb_array"
    try:
        yield
    finally:
        unwrapped.render_mode = mode


@contextlib.contextmanager
def _same_randomness(env: gymnasium.Env[Any, Any]) -> Iterator[None]:
    """Restore, after the block, the random generators from which an environment may draw."""
    own = getattr(env.unwrapped, "_np_random", None)
    own_state: Any = own.bit_generator.state if isinstance(own, np.random.Generator) else None
    numpy_state, python_state = np.random.get_state(), random.getstate()  # noqa: NPY002
    try:
        yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)  # noqa: NPY002
        if isinstance(own, np.random.Generator):
            own.bit_generator.state = own_state


def _reason(error: BaseException) -> str:
    """Return an error's text, in one line."""
    return getattr(error, "strerror", None) or first_line(error)


def _warn(unwritten: str) -> None:
    print_line(f"warning: {unwritten} could not be written; it goes on without", sys.stderr)

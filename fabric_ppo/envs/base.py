"""The contract of environments: N of them step together, and one whose episode ends starts the next in the same step.

A backend subclasses `VectorEnvs`. `Episodes` is the part that backends over Gymnasium share: one environment that
seeds each of its episodes, starts the next one by itself, and says exactly where it failed.
"""

from __future__ import annotations

import contextlib
import math
import os
import sys
import traceback
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import gymnasium
import numpy as np
from numpy.typing import NDArray

from fabric_ppo.env_ids import ATARI, named_function, register_atari
from fabric_ppo.envs import atari
from fabric_ppo.errors import ConfigError, EnvironmentFault, first_line
from fabric_ppo.launch import say
from fabric_ppo.replay import PastEpisode
from fabric_ppo.seeding import episode_seed
from fabric_ppo.spaces import ACTION_MASK, EnvSpec, Fit, Packer, env_spec

Array = NDArray[Any]
_TRIAL_STEPS = 200
_LARGEST_REWARD = float(np.finfo(np.float32).max)


class FinalObs(NamedTuple):
    """The last observation of an episode that ended in this step, of environment `env` (local index)."""

    env: int
    obs: Array


@dataclass(frozen=True)
class EnvSettings:
    """What makes this rank's environments.

    Attributes:
        env_id: what `gymnasium.make` takes.
        seed: the run's seed.
        num_envs: environments on this rank.
        first_env: global id of the first of them.
        total_envs: environments on all ranks.
        video_dir: where environment 0 is recorded, if this rank has it; empty for no video.
        timeout: seconds that a worker process may take for one step or reset.
        restart: replace a worker process that died or hangs.
        num_threads: how many threads a backend that has its own may start.
        action_bounds: how Box actions meet their bounds (`spaces.ActionConverter`).
        env_wrapper: what each environment is wrapped in, `module:function`, several with commas, or `ATARI`; empty for
            nothing.
    """

    env_id: str
    seed: int
    num_envs: int
    first_env: int
    total_envs: int
    video_dir: str = ""
    timeout: float = 60.0
    restart: bool = False
    num_threads: int = 1
    action_bounds: Fit = "clip"
    env_wrapper: str = ""

    def spec_of(self, env: Any) -> EnvSpec:
        """Describe an environment made with these settings.

        Raises:
            ConfigError: a space that no agent here can take.
        """
        spaces = env.observation_space, env.action_space
        return env_spec(self.env_id, *spaces, self.action_bounds, self.env_wrapper)


class VectorEnvs(ABC):
    """N environments that step together.

    Attributes:
        spec: their spaces.
        num_envs: N.
        restarts: worker processes that had to be replaced so far.
        rebuilds_episodes: whether `rebuild` can bring an episode back; otherwise a resumed run starts new ones.
        lost_life: `[N]`, where the last step cost a life, though the game may go on; None if that is not of interest.
    """

    spec: EnvSpec
    num_envs: int
    restarts: int = 0
    rebuilds_episodes: bool = True
    lost_life: Array | None = None

    @abstractmethod
    def reset(self, obs: Array) -> None:
        """Start every environment's first episode; write its first observation into `obs [N, ...]`."""

    @abstractmethod
    def step(
        self, actions: Array, obs: Array, rewards: Array, terminated: Array, truncated: Array, valid: Array
    ) -> list[FinalObs]:
        """Take one step in each environment and write what follows into the arrays, `[N, ...]`.

        Where an episode ended, `obs` is already the next one's first observation, and its final one is returned.
        A backend that resets on the following call instead leaves the final observation in `obs` and returns nothing
        for it; the following call ignores the action, brings the next episode's first observation, and is marked as
        no transition: `valid` is false. `valid` and the end of an episode never come with the same row.

        Args:
            actions: as the environments take them (`spaces.ActionConverter`), `[N, *shape]`.
            obs, rewards, terminated, truncated, valid: outputs.

        Raises:
            EnvironmentFault: an environment failed.
        """

    @abstractmethod
    def rebuild(self, past: Sequence[PastEpisode], obs: Array) -> list[str]:
        """Instead of `reset`: bring every environment's episode back to where it was.

        Where that fails, the environment starts its next episode.

        Args:
            past: one for each environment.
            obs: `[N, ...]`, output: where the environments are.

        Returns:
            Why it failed, for each environment; empty where it did not.
        """

    def states(self) -> list[bytes]:
        """What each environment's own `get_state` gives; empty if they have none."""
        return []

    @abstractmethod
    def close(self) -> None:
        """Release everything; a second call does nothing."""


def make_gymnasium_env(env_id: str, wrapper: str = "", render_mode: str | None = None) -> gymnasium.Env[Any, Any]:
    """`gymnasium.make`, also without a display and for modules that lie in the working directory.

    Raises:
        ConfigError: the environment cannot be made, for instance since a package is missing, or not wrapped.
    """
    if render_mode == "rgb_array" and not os.environ.get("DISPLAY"):
        os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
    options: dict[str, Any] = {} if render_mode is None else {"render_mode": render_mode}
    if wrapper == ATARI or env_id.startswith("ALE/"):
        register_atari(env_id)
    if wrapper == ATARI:
        options |= atari.MAKE_OPTIONS
    try:
        env = gymnasium.make(env_id, disable_env_checker=True, **options)
    except Exception as error:
        reason = first_line(error)
        raise ConfigError(f"--env-id {env_id}: cannot be made ({reason})") from error
    for each in filter(None, wrapper.split(",")):
        env = atari.preprocessed(env) if each == ATARI else _wrapped(env, each)
    if render_mode is not None and render_mode not in env.metadata.get("render_modes", ()):
        raise ConfigError(f"--env-id {env_id}: does not render {render_mode}, which video needs")
    return env


def _wrapped(env: gymnasium.Env[Any, Any], wrapper: str) -> gymnasium.Env[Any, Any]:
    try:
        wrapped = named_function(wrapper, "env_wrapper")(env)
    except ConfigError:
        raise
    except Exception as error:
        raise ConfigError(f"--env-wrapper {wrapper}: it raised {_summary(error)}".splitlines()[0]) from error
    if not isinstance(wrapped, gymnasium.Env):
        raise ConfigError(f"--env-wrapper {wrapper}: it returned {type(wrapped).__name__}; an environment is expected")
    return wrapped


class Recorder(gymnasium.wrappers.RecordVideo):
    """Gymnasium's RecordVideo, which goes on without a video that cannot be written.

    In an episode that is not recorded the environment does not know that it could render: LunarLander, which moves
    particles about for the picture, takes a fifth of the time then.
    """

    unwritten = ""
    """Why the last such video could not be written."""

    def __init__(self, env: gymnasium.Env[Any, Any], folder: str, episodes: Callable[[int], bool] | None) -> None:
        """See `record`."""
        super().__init__(env, folder, episode_trigger=episodes, disable_logger=True)
        self._mode = env.render_mode

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Start an episode, and its video if one is wanted."""
        assert self.episode_trigger is not None
        with contextlib.suppress(AttributeError):  # one that cannot be set stays as it is
            self.unwrapped.render_mode = self._mode if self.episode_trigger(self.episode_id + 1) else None
        return super().reset(seed=seed, options=options)

    def stop_recording(self) -> None:
        """Write the video."""
        try:
            super().stop_recording()
        except OSError as error:
            Recorder.note_unwritten(self.video_folder, error)
            self.recording, self.recorded_frames = False, []

    @classmethod
    def note_unwritten(cls, folder: str, error: OSError) -> None:
        """Remember that a video could not be written, and say so the first time."""
        why = f"a video in {folder} ({error.strerror or first_line(error)})"
        if not cls.unwritten:
            say(f"warning: {why} could not be written; it goes on without", sys.stderr)
        cls.unwritten = why


def record(
    env: gymnasium.Env[Any, Any], folder: str, episodes: Callable[[int], bool] | None
) -> gymnasium.Env[Any, Any]:
    """Record the episodes for which `episodes(number)` is true, by default by Gymnasium's schedule, into `folder`.

    Where there cannot be such a folder, nothing is recorded.
    """
    try:
        return Recorder(env, folder, episodes)
    except OSError as error:
        Recorder.note_unwritten(folder, error)
        return env


def is_repeatable(env_id: str, wrapper: str = "") -> bool:
    """Whether an episode of this environment follows from its seed and actions, as far as a trial of it shows.

    An episode is played twice, with another one between: what an environment or a wrapper remembers across `reset`
    (running statistics, for instance) makes a difference.
    """
    env = make_gymnasium_env(env_id, wrapper)
    try:
        first, _, again = (_trial(env, seed) for seed in (1, 2, 1))
        return first == again
    finally:
        env.close()


def _trial(env: gymnasium.Env[Any, Any], seed: int) -> list[tuple[bytes, float]]:
    """An episode with random actions: what was seen and earned."""
    renew_world(env)
    env.action_space.seed(seed)
    pack = Packer(env_spec("", env.observation_space, env.action_space).observation)
    obs, _ = env.reset(seed=seed)
    seen = [(np.asarray(pack(obs)).tobytes(), 0.0)]
    for _ in range(_TRIAL_STEPS):
        obs, reward, terminated, truncated, _ = env.step(_random_action(env, obs))
        seen.append((np.asarray(pack(obs)).tobytes(), float(reward)))
        if terminated or truncated:
            break
    return seen


def _random_action(env: gymnasium.Env[Any, Any], obs: Any) -> Any:
    """A random one of those that the observation's mask allows, if it has one."""
    space: Any = env.action_space
    action = space.sample()
    if not isinstance(obs, dict) or ACTION_MASK[0] not in obs or isinstance(space, gymnasium.spaces.Box):
        return action
    mask = np.ravel(obs[ACTION_MASK[0]]) != 0
    if isinstance(space, gymnasium.spaces.MultiBinary):
        return action * mask.reshape(space.shape)
    sizes = np.ravel(space.nvec if isinstance(space, gymnasium.spaces.MultiDiscrete) else space.n)
    possible = [np.flatnonzero(part) for part in np.split(mask, np.cumsum(sizes)[:-1])]
    chosen = [space.np_random.choice(each) if len(each) else 0 for each in possible]
    drawn = np.reshape(chosen, np.shape(space.start)) + space.start
    return drawn.astype(space.dtype) if drawn.ndim else int(drawn)


def renew_world(env: gymnasium.Env[Any, Any]) -> None:
    """Give a Box2D environment a new world: its own outlives `reset` and remembers earlier episodes."""
    unwrapped: Any = env.unwrapped
    world: Any = getattr(unwrapped, "world", None)
    if type(world).__name__ == "b2World":
        unwrapped._destroy()
        unwrapped.world = type(world)(gravity=world.gravity)


class Episodes:
    """One environment, episode after episode: the k-th starts with `reset(seed=episode_seed(...))`.

    Attributes:
        spec: its spaces.
        lost_life: whether the last step cost a life in an Atari game.
    """

    def __init__(self, settings: EnvSettings, index: int) -> None:
        """Make local environment `index`."""
        self._id = settings.first_env + index
        self._settings = settings
        records = settings.video_dir != "" and self._id == 0
        env = make_gymnasium_env(settings.env_id, settings.env_wrapper, "rgb_array" if records else None)
        self.spec = settings.spec_of(env)
        self._env = record(env, settings.video_dir, None) if records else env
        self._offers_state = all(callable(getattr(env.unwrapped, name, None)) for name in ("get_state", "set_state"))
        self._pack = Packer(self.spec.observation) if self.spec.observation.parts else None
        self._shape = self.spec.observation.shape
        self._checks_obs = np.dtype(self.spec.observation.dtype).kind == "f"
        self._counts_lives = self.spec.is_atari
        self._lives = 0
        self.lost_life = False
        self._episode = -1
        self._steps = 0
        self._episode_seed = 0

    def reset(self) -> Array:
        """Start the next episode; its first observation."""
        self._episode += 1
        self._steps = 0
        settings = self._settings
        self._episode_seed = episode_seed(settings.seed, self._id, self._episode, settings.total_envs)
        try:
            renew_world(self._env)
            obs, info = self._env.reset(seed=self._episode_seed)
        except (Exception, SystemExit) as error:
            raise self._fault(f"reset raised {_summary(error)}", error) from error
        if self._counts_lives:
            self._lives = info["lives"]
        return self._checked(obs, "reset")

    def state(self) -> bytes:
        """What the environment's own `get_state` gives; empty if it has none, or one that gives something else."""
        if not self._offers_state:
            return b""
        try:
            state = self._env.unwrapped.get_state()  # type: ignore[attr-defined]
        except Exception:  # a method of that name that is something else
            state = None
        self._offers_state = isinstance(state, bytes) and state != b""
        return state if isinstance(state, bytes) else b""

    def rebuild(self, past: PastEpisode) -> tuple[Array, str]:
        """See `VectorEnvs.rebuild`."""
        try:
            why = self._replay(past)
        except EnvironmentFault as fault:
            why = first_line(fault)
        if not why:
            return past.obs, ""
        self._episode = past.number
        return self.reset(), why

    def _replay(self, past: PastEpisode) -> str:
        """Reset with the episode's seed and repeat its actions, or hand it its state; why that did not do."""
        self._episode = past.number - 1
        if isinstance(self._env, Recorder):
            self._env.episode_id = past.number - 1
        obs, ret = self.reset(), 0.0
        if past.state:
            return self._set_state(past)
        if past.actions is None:
            return "its episode was too long to keep its actions"
        for action in past.actions:
            obs, reward, terminated, truncated = self.step(action.item() if action.ndim == 0 else action.copy())
            ret += float(np.float32(reward))
            if terminated or truncated:
                return f"its episode ended {len(past.actions) - self._steps} steps early"
        if np.asarray(obs).astype(past.obs.dtype, copy=False).tobytes() != past.obs.tobytes():
            return "its observation differs after the same actions"
        if not (math.isnan(past.ret) or math.isclose(ret, past.ret, rel_tol=1e-9, abs_tol=1e-9)):
            return "its rewards differ after the same actions"
        return ""

    def _set_state(self, past: PastEpisode) -> str:
        try:
            self._env.unwrapped.set_state(past.state)  # type: ignore[attr-defined]
        except Exception as error:
            return f"set_state raised {_summary(error)}".splitlines()[0]
        self._steps = past.length
        env: Any = self._env
        while env is not env.unwrapped:
            if hasattr(env, "_elapsed_steps"):  # TimeLimit's
                env._elapsed_steps = self._steps
            env = env.env
        return ""

    def step(self, action: Any) -> tuple[Array, float, bool, bool]:
        """Observation, reward, terminated, truncated; the caller calls `reset` when the episode ended."""
        self._steps += 1
        try:
            obs, reward, terminated, truncated, info = self._env.step(action)
            reward = float(reward)
        except (Exception, SystemExit) as error:
            raise self._fault(f"step raised {_summary(error)}", error) from error
        if not -_LARGEST_REWARD <= reward <= _LARGEST_REWARD:
            raise self._fault(f"step returned reward {reward}, which is not finite as float32")
        if self._counts_lives:
            self.lost_life, self._lives = info["lives"] < self._lives, info["lives"]
        return self._checked(obs, "step"), reward, terminated, truncated

    def _checked(self, obs: Any, call: str) -> Array:
        """An observation as it is stored."""
        if self._pack is not None:
            try:
                return self._pack(obs)  # type: ignore[no-any-return]
            except ValueError as error:
                raise self._fault(f"{call} returned {error}") from None
        if getattr(obs, "shape", ()) != self._shape and np.shape(obs) != self._shape:
            raise self._fault(f"{call} returned an observation of shape {np.shape(obs)}; {self._shape} is expected")
        if self._checks_obs and not all_finite(obs):
            raise self._fault(f"{call} returned an observation that is not finite: {obs}")
        return obs  # type: ignore[no-any-return]

    def close(self) -> None:
        """Close the environment, which writes a video that is being recorded."""
        self._env.close()

    def _fault(self, what: str, error: BaseException | None = None) -> EnvironmentFault:
        place = f"{self._settings.env_id} environment {self._id}, episode seed {self._episode_seed}, step {self._steps}"
        trace = "\n" + "".join(traceback.format_exception(error)).rstrip() if error else ""
        return EnvironmentFault(f"{place}: {what}{trace}")


def _summary(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"


def all_finite(obs: Any) -> bool:
    """Whether no entry is infinite or not a number."""
    # a sum of squares is five times cheaper than isfinite().all(), and finite only if every entry is
    return math.isfinite(np.vdot(obs, obs)) or bool(np.isfinite(obs).all())

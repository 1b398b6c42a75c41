"""One Gymnasium environment, as flags name it: made, wrapped, able to render."""

from __future__ import annotations

import inspect
import json
import os
from collections.abc import Collection, Mapping
from typing import Any

import gymnasium
from gymnasium.envs import registration

from fabric_ppo.config_arguments import OWN_ARGUMENTS
from fabric_ppo.config_values import ATARI
from fabric_ppo.envs import atari
from fabric_ppo.envs.ids import find_batch, named_function, register_atari
from fabric_ppo.process.errors import USER_ERRORS, ConfigError, DoesNotRenderError, describe_error, first_line
from fabric_ppo.process.signals import pass_on_stop


def make_gymnasium_env(
    env_id: str, wrapper: str = "", render_mode: str | None = None, env_kwargs: str = ""
) -> gymnasium.Env[Any, Any]:
    """Make an environment, also without a display and from modules in the working directory.

    Args:
        env_id: as `gymnasium.make` takes it.
        wrapper: `module:function`, several with commas from the inside out, or `ATARI`; empty for
            none.
        render_mode: as `gymnasium.make` takes it.
        env_kwargs: keyword arguments for its constructor, as JSON; empty for none.

    Raises:
        ConfigError: it cannot be made, for instance since a package is missing or its constructor
            does not take an argument, or not wrapped, or it does not render so.
    """
    if render_mode == "rgb_array":
        dispense_with_screen()
    elif render_mode is not None and not _may_render(env_id, render_mode):
        raise DoesNotRenderError(env_id, render_mode)
    given: dict[str, Any] = json.loads(env_kwargs or "{}")
    options = given if render_mode is None else given | {"render_mode": render_mode}
    if wrapper == ATARI or env_id.startswith("ALE/"):
        register_atari(env_id)
    if wrapper == ATARI:
        options = options | atari.MAKE_OPTIONS
    if find_batch(env_id) is not None:
        raise ConfigError(f"--env-id {env_id}: it exists as a batch only; --env-backend vector is expected")
    try:
        env = gymnasium.make(env_id, disable_env_checker=True, **options)
    except BaseException as error:
        pass_on_stop(error)
        if unknown := _unknown_arguments(env_id, given):
            raise ConfigError(f"--env-kwargs {unknown}") from error
        if render_mode is not None and "render_mode" in first_line(error):
            raise DoesNotRenderError(env_id, render_mode) from error
        with_what = f" --env-kwargs {env_kwargs}" if given else ""
        raise ConfigError(f"--env-id {env_id}{with_what}: cannot be made ({first_line(error)})") from error
    for each in filter(None, wrapper.split(",")):
        env = atari.preprocessed(env) if each == ATARI else _wrapped(env, each)
    if render_mode is not None and not renders(env, render_mode):
        raise DoesNotRenderError(env_id, render_mode)
    _require_spaces(env, env_id)
    return env


def _may_render(env_id: str, mode: str) -> bool:
    """Return False for an environment whose class declares that it does not render so.

    Gymnasium would print a warning, and hand the mode to a constructor that may not take it.
    """
    try:
        entry: Any = gymnasium.spec(env_id).entry_point
        create: Any = registration.load_env_creator(entry) if isinstance(entry, str) else entry
        modes = create.metadata.get("render_modes", [])
    except USER_ERRORS:  # `make` says what is wrong
        return True
    # Gymnasium shows pictures in a window of its own
    return mode in modes or (mode == "human" and not {"rgb_array", "rgb_array_list"}.isdisjoint(modes))


def _unknown_arguments(env_id: str, given: Mapping[str, Any]) -> str:
    """Return the arguments that an environment's constructor does not take, and those that it does.

    The text is empty where it takes all, or where that cannot be known.
    """
    spec = gymnasium.registry.get(env_id.rpartition(":")[2])
    try:
        entry = spec and spec.entry_point
        create = registration.load_env_creator(entry) if isinstance(entry, str) else entry
        parameters = inspect.signature(create).parameters.values()  # type: ignore[arg-type]
    except USER_ERRORS:
        return ""
    if any(each.kind is each.VAR_KEYWORD for each in parameters):
        return ""
    names = [each.name for each in parameters if each.kind in (each.POSITIONAL_OR_KEYWORD, each.KEYWORD_ONLY)]
    takes = ", ".join(name for name in names if name not in OWN_ARGUMENTS)
    unknown = ", ".join(name for name in given if name not in (*names, "max_episode_steps"))
    return f"{unknown}: {env_id} does not take that; it takes {takes or 'none'}" if unknown else ""


def _require_spaces(env: gymnasium.Env[Any, Any], env_id: str) -> None:
    """Raise a ConfigError if an environment does not have its spaces."""
    for name in ("observation_space", "action_space"):
        try:
            getattr(env, name)
        except BaseException as error:
            pass_on_stop(error)
            reason = describe_error(error).splitlines()[0]
            raise ConfigError(f"--env-id {env_id}: its {name} cannot be had ({reason})") from error


def renders(env: gymnasium.Env[Any, Any], mode: str) -> bool:
    """Return True if an environment declares a render mode."""
    metadata: Any = getattr(env, "metadata", None)
    modes = metadata.get("render_modes") if isinstance(metadata, Mapping) else None
    return isinstance(modes, Collection) and mode in modes


def dispense_with_screen() -> None:
    """Let pygame draw where there is no screen."""
    if not os.environ.get("DISPLAY"):
        os.environ.setdefault("SDL_VIDEODRIVER", "dummy")


def _wrapped(env: gymnasium.Env[Any, Any], wrapper: str) -> gymnasium.Env[Any, Any]:
    """Return `env` in the user's wrapper `module:function`."""
    try:
        wrapped = named_function(wrapper, "env_wrapper")(env)
    except ConfigError:
        raise
    except BaseException as error:
        pass_on_stop(error)
        raise ConfigError(f"--env-wrapper {wrapper}: it raised {describe_error(error)}".splitlines()[0]) from error
    if not isinstance(wrapped, gymnasium.Env):
        raise ConfigError(f"--env-wrapper {wrapper}: it returned {type(wrapped).__name__}; an environment is expected")
    return wrapped


def renew_world(env: gymnasium.Env[Any, Any]) -> None:
    """Give one of Gymnasium's Box2D environments a new world.

    Its own outlives `reset`, with traces of episodes. Other classes, derived ones too, may keep
    bodies in theirs and stay as they are.
    """
    unwrapped: Any = env.unwrapped
    if type(unwrapped).__module__.startswith("gymnasium.envs.box2d."):
        unwrapped._destroy()
        unwrapped.world = type(unwrapped.world)(gravity=unwrapped.world.gravity)

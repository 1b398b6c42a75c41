"""Environments that step as batches: their lookup by id, and their making."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import json
from collections.abc import Callable
from typing import Any

import gymnasium

from fabric_ppo.envs.contract import EnvSettings
from fabric_ppo.envs.gymnasium_spaces import env_spec
from fabric_ppo.envs.ids import find_batch
from fabric_ppo.envs.space_text import format_space
from fabric_ppo.envs.spaces import EnvSpec
from fabric_ppo.envs.tensor_contract import TensorEnvs
from fabric_ppo.process.errors import USER_ERRORS, ConfigError, DoesNotRenderError, first_line
from fabric_ppo.process.signals import pass_on_stop

_GAMES = "possible_agents"
_BATCHES = ("num_envs", "single_observation_space", "single_action_space", "reset", "step")


def make_tensor_envs(
    settings: EnvSettings,
    device: str = "cpu",
    spec: EnvSpec | None = None,
    render_mode: str | None = None,
    for_test: bool = False,
) -> TensorEnvs:
    """Make environments that step as a batch.

    Args:
        settings: of this rank's environments. The id is one of `tensor/...`, `module:function` that
            returns a `gymnasium.vector.VectorEnv`, a `FunctionalEnv` or a `pettingzoo.ParallelEnv`,
            or an id for which Gymnasium's registry has a vector entry point.
        device: where functional environments compute; others decide for themselves.
        spec: their spaces, where a trained agent gives them.
        render_mode: as Gymnasium has it.
        for_test: the settings count games, and not the agents that play them; a function that does
            not take `num_envs` may make another number.

    Raises:
        ConfigError: they cannot be made, are of another kind, or have spaces that are not supported.
    """
    env_id, arguments = settings.env_id, json.loads(settings.env_kwargs or "{}")
    create = _creator(env_id, settings.num_envs)
    if render_mode is not None and _takes(create, "render_mode"):
        arguments["render_mode"] = render_mode
    elif render_mode == "human":  # pictures are drawn when they are asked for, a window from the beginning
        raise DoesNotRenderError(env_id, render_mode)
    made = _made(env_id, create, arguments)
    if for_test and not _takes(create, "num_envs") and hasattr(made, "num_envs"):
        settings = dataclasses.replace(settings, num_envs=made.num_envs, total_envs=made.num_envs)
    if for_test and hasattr(made, _GAMES):
        agents = len(made.possible_agents)
        counts = {name: getattr(settings, name) * agents for name in ("num_envs", "first_env", "total_envs")}
        settings = dataclasses.replace(settings, **counts)
    return _as_tensor_envs(made, functools.partial(_made, env_id, create, arguments), settings, device, spec)


def _creator(env_id: str, num_envs: int) -> Callable[..., Any]:
    """Return a function that makes an id's environments, from keyword arguments."""
    found = find_batch(env_id) or env_id
    if isinstance(found, str):
        _require_equal_spaces(found)
        return functools.partial(gymnasium.make_vec, found, num_envs=num_envs, vectorization_mode="vector_entry_point")
    return functools.partial(found, num_envs=num_envs) if _takes(found, "num_envs") else found


def _require_equal_spaces(env_id: str) -> None:
    """Raise a ConfigError where a single environment, in which tests are played, has other spaces than the batch.

    The batch is made with two environments; what fails with that is reported where it is made.
    """
    if gymnasium.spec(env_id).entry_point is None:
        return
    try:
        with gymnasium.make(env_id) as env:
            single = env_spec(env_id, env.observation_space, env.action_space)
        made = gymnasium.make_vec(env_id, num_envs=2, vectorization_mode="vector_entry_point")
        batch = env_spec(env_id, made.single_observation_space, made.single_action_space)
        made.close()
    except USER_ERRORS:
        return
    for what in ("observation", "action"):
        one, of_batch = (format_space(getattr(spec, what)) for spec in (single, batch))
        if one != of_batch:
            raise ConfigError(
                f"--env-backend vector: {what}s of {env_id} are {of_batch} in a batch, and {one} in a single "
                "environment, in which tests are played; --env-backend sync, async or envpool is expected"
            )


def _takes(create: Callable[..., Any], name: str) -> bool:
    """Return True if a function has a keyword argument of that name, or takes any."""
    try:
        parameters = inspect.signature(create).parameters
    except (TypeError, ValueError):
        return False
    takes_any = any(each.kind is each.VAR_KEYWORD for each in parameters.values())
    return name in parameters or (takes_any and name != "num_envs")


def _made(env_id: str, create: Callable[..., Any], arguments: dict[str, Any]) -> Any:
    """Make environments; raise a ConfigError if that fails, a DoesNotRenderError if they do not render."""
    try:
        return create(**arguments)
    except BaseException as error:
        pass_on_stop(error)
        if "render_mode" in arguments and "render_mode" in first_line(error):
            raise DoesNotRenderError(env_id, arguments["render_mode"]) from error
        own = {name: value for name, value in arguments.items() if name != "render_mode"}
        with_what = f" --env-kwargs {json.dumps(own)}" if own else ""
        raise ConfigError(f"--env-id {env_id}{with_what}: cannot be made ({first_line(error)})") from error


def _as_tensor_envs(
    made: Any, again: Callable[[], Any], settings: EnvSettings, device: str, spec: EnvSpec | None
) -> TensorEnvs:
    """Return what was made as TensorEnvs; each kind imports what it needs."""
    from fabric_ppo.envs.functional import FunctionalEnv, FunctionalEnvs

    if isinstance(made, FunctionalEnv):
        return FunctionalEnvs(made, settings, device, spec)
    if hasattr(made, _GAMES) and hasattr(made, "agent_iter"):
        raise ConfigError(
            f"--env-id {settings.env_id}: its agents act one after the other; all at once is expected, "
            f"as in {settings.env_id.rpartition(':')[0]}:parallel_env"
        )
    if hasattr(made, _GAMES):
        from fabric_ppo.envs.parallel_games import ParallelGames

        return ParallelGames(made, again, settings, spec)
    if all(hasattr(made, name) for name in _BATCHES):
        from fabric_ppo.envs.gym_vector_envs import GymVectorEnvs

        return GymVectorEnvs(made, settings, spec)
    raise ConfigError(
        f"--env-id {settings.env_id}: it made a {type(made).__name__}; a gymnasium.vector.VectorEnv, "
        "a FunctionalEnv or a pettingzoo.ParallelEnv is expected"
    )

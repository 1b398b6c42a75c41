"""Lookup of what flags name: environments by their ids, and functions by `module:name`."""

from __future__ import annotations

import difflib
import importlib.util
import os
import re
import shlex
import sys
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path, PurePath
from typing import Any

from fabric_ppo.config_values import ATARI
from fabric_ppo.process.command import running
from fabric_ppo.process.console import print_from_rank_zero
from fabric_ppo.process.errors import USER_ERRORS, ConfigError, first_line, flag
from fabric_ppo.process.extras import install

TAKE_CODE_DIR = ("evaluate", "export")
"""Commands with `--code-dir`."""
_REGISTERING = ("ale_py", "minigrid")
"""Packages with environments that Gymnasium knows only once they are imported."""
_CLOSE = 0.7
"""Likeness of names, from 0 to 1, from which one may be meant by the other."""


def named_function(name: str, of_flag: str) -> Callable[..., Any]:
    """Import a flag's `module:name`; modules are looked for in the working directory too.

    Args:
        name: the flag's value.
        of_flag: the Config's field, for the error's text.

    Raises:
        ConfigError: it cannot be imported, or not be called.
    """
    _look_in_working_directory()
    module, colon, attribute = name.partition(":")
    if not (module and colon and attribute):
        raise ConfigError(f"{flag(of_flag)} {name}: module:name is expected")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except USER_ERRORS as error:
        raise ConfigError(f"{flag(of_flag)} {name}: cannot be imported ({first_line(error)})") from None
    if not callable(found):
        raise ConfigError(f"{flag(of_flag)} {name}: is a {type(found).__name__}; a function or class is expected")
    return found  # type: ignore[no-any-return]


def look_in(folder: str) -> None:
    """Have `import` look in a folder, before the working directory and all others."""
    _look_in_working_directory()
    sys.path.insert(0, folder)


def where_missing(modules: Sequence[str], near: Path) -> str:
    """Return where modules of the user's own are, and how they are had; empty if all are found.

    Nothing is imported.

    Args:
        modules: their names.
        near: a run's folder, or a file in it; a folder above it may hold them.
    """
    _look_in_working_directory()
    missing = [each for each in modules if not _is_found(each)]
    if not missing:
        return ""
    near = near.absolute()
    folder = next((each for each in (near, *near.parents) if all(_is_in(each, name) for name in missing)), None)
    place, where = f"not to be found in {os.getcwd()} or where PYTHONPATH says", "another folder"
    if folder is not None:
        place, where = f"to be found in {folder}", "there"
    quoted = "FOLDER" if folder is None else shlex.quote(str(folder))
    command = running.get()
    code_dir = f"{command} --code-dir {quoted}, or " if command in TAKE_CODE_DIR else ""
    return f"{place}: {code_dir}PYTHONPATH={quoted}{',' * bool(code_dir)} imports from {where}"


def as_module(text: str) -> str:
    """Return the name of a module whose file is given in its place: `envs/mine.py` -> `envs.mine`.

    It is the text itself where that is no path.
    """
    if "/" not in text and not text.endswith(".py"):
        return text
    path = PurePath(text.removesuffix(".py"))
    is_below = not path.is_absolute() and ".." not in path.parts
    return ".".join(path.parts if is_below else path.parts[-1:])


def _is_found(module: str) -> bool:
    """Return True if `import` finds the package that a module lies in, or the module itself."""
    package = module.partition(".")[0]
    try:
        return package in sys.modules or importlib.util.find_spec(package) is not None
    except USER_ERRORS:  # the import says why
        return True


def _is_in(folder: Path, module: str) -> bool:
    """Return True if a folder holds the source of a module."""
    path = folder.joinpath(*module.split("."))
    return path.with_name(f"{path.name}.py").is_file() or (path / "__init__.py").is_file()


def register_atari(env_id: str, preset: str = "") -> None:
    """Have ale-py register its games with Gymnasium.

    Args:
        env_id: the game that is wanted, for the error's text.
        preset: `ATARI` if the preset's packages are needed too.

    Raises:
        ConfigError: ale-py cannot be imported, or OpenCV, which the preset needs.
    """
    try:
        ale = importlib.import_module("ale_py")
        ale.ALEInterface.setLoggerMode(ale.LoggerMode.Error)  # no greeting
        if preset == ATARI:
            importlib.import_module("cv2")
    except ImportError as error:
        reason = f"needs ale-py and OpenCV, {install('atari')} ({first_line(error)})"
        raise ConfigError(f"--env-id {env_id}: {reason}") from None


def _resolve_atari_id(env_id: str) -> str:
    """Return the id of the Atari game that runs, also for EnvPool's ids, which lack `ALE/`.

    Raises:
        ConfigError: it is no Atari game, or ale-py is missing.
    """
    import gymnasium

    register_atari(env_id, ATARI)
    full_id = f"ALE/{env_id}" if f"ALE/{env_id}" in gymnasium.registry else env_id
    resolved = resolve_env_id(full_id)
    if gymnasium.registry[resolved.rpartition(":")[2]].entry_point != "ale_py.env:AtariEnv":
        raise ConfigError(f"--env-id {resolved}: not an Atari game; with --env-preset atari one is expected")
    return resolved


TENSOR_ENVS = {
    "tensor/Acrobot-v1": "fabric_ppo.envs.tensor.acrobot:Acrobot",
    "tensor/CartPole-v1": "fabric_ppo.envs.tensor.cartpole:CartPole",
    "tensor/Pendulum-v1": "fabric_ppo.envs.tensor.pendulum:Pendulum",
}
"""Environments of ours that are written as tensor code: id -> module and class."""


def single_id(env_id: str) -> str:
    """Return the id of the single environment that a batch consists of; empty where a function makes the batch.

    Ours as tensor code equal those of Gymnasium with the same name; all others are what they are.
    """
    name = env_id.removeprefix("tensor/") if env_id in TENSOR_ENVS else env_id
    is_function = ":" in name and re.search(r"-v\d+$", name) is None
    return "" if is_function else name


def find_batch(env_id: str) -> Callable[..., Any] | str | None:
    """Return what makes environments that exist as a batch only; None for all others.

    That is a function or class, or an id for `gymnasium.make_vec`.
    """
    import gymnasium

    if env_id in TENSOR_ENVS:
        return named_function(TENSOR_ENVS[env_id], "env_id")
    module, _, name = env_id.rpartition(":")
    _look_in_working_directory()
    try:
        imported = importlib.import_module(module) if module else None
    except USER_ERRORS:  # `resolve_env_id` says what is wrong
        return None
    spec = gymnasium.registry.get(name)
    if spec is not None:
        return env_id if spec.entry_point is None and spec.vector_entry_point is not None else None
    found = getattr(imported, name, None)
    return found if callable(found) else None


@lru_cache
def resolve_env_id(env_id: str, preset: str = "") -> str:
    """Return the id that runs: `env_id`, or its successor where Gymnasium has retired it.

    A line on the console names the successor, once in a process.

    Raises:
        ConfigError: no such environment (names the nearest known ids), or none for the preset.
    """
    import gymnasium
    from gymnasium.envs import registration

    is_batch = find_batch(env_id) is not None
    if preset and is_batch:
        raise ConfigError(f"--env-preset {preset}: {env_id} steps as a batch; an Atari game is expected")
    if preset == ATARI:
        return _resolve_atari_id(env_id)
    if is_batch:
        return env_id
    if env_id.startswith("ALE/"):
        register_atari(env_id)
    _look_in_working_directory()
    module, colon, plain_id = env_id.rpartition(":")
    try:
        if module:
            importlib.import_module(module)  # registers its environments
        if plain_id in gymnasium.registry:
            _require_environment(env_id)
            return env_id
        namespace, name, version = registration.parse_env_id(plain_id)
    except USER_ERRORS as error:
        if isinstance(error, ConfigError):
            raise
        kind = "" if isinstance(error, (gymnasium.error.Error, ImportError)) else f"{type(error).__name__}: "
        raise ConfigError(f"--env-id {env_id}: {kind}{first_line(error)}") from None
    # only Gymnasium's registry knows what is retired: the id is unknown, a higher version is not
    newest = registration.find_highest_version(namespace, name)
    if version is not None and newest is not None and version < newest:
        successor = module + colon + registration.get_env_id(namespace, name, newest)
        print_from_rank_zero(
            f"{env_id} is retired in Gymnasium {gymnasium.__version__}: running its successor {successor}"
        )
        return successor
    if version is None and newest is not None:
        return module + colon + registration.get_env_id(namespace, name, newest)
    nearest = _nearest_ids(module + colon, plain_id)  # before more are registered
    hint = (not module and _id_elsewhere(plain_id)) or nearest
    raise ConfigError(f"--env-id {env_id}: unknown environment; {hint}")


def _id_elsewhere(plain_id: str) -> str:
    """Return how an environment is had that another package registers; empty if none does."""
    import gymnasium

    for package in _REGISTERING:
        known = set(gymnasium.registry)
        try:
            importlib.import_module(package)
        except USER_ERRORS:  # it is not installed, for one
            continue
        for each in (plain_id, f"ALE/{plain_id}"):
            if each in gymnasium.registry and (each not in known or each != plain_id):
                module = "" if each.startswith("ALE/") else f"{package}:"
                preset = ", mostly with --env-preset atari" if package == "ale_py" else ""
                return f"{module}{each} is expected{preset}"
    if _has_games(plain_id):
        return f"did you mean {plain_id}:parallel_env?"
    if plain_id.startswith(("MiniGrid-", "BabyAI-")):
        return f"minigrid:{plain_id} is expected, after {install('minigrid')}"
    return ""


def _has_games(name: str) -> bool:
    """Return True if a name is that of a module with a game of PettingZoo's."""
    try:
        return "." in name and hasattr(importlib.import_module(name), "parallel_env")
    except USER_ERRORS:  # there is no such module, for one
        return False


def _nearest_ids(prefix: str, plain_id: str) -> str:
    """Return a hint for an id that nobody has registered: those whose names are nearly the same.

    Args:
        prefix: the id's module with a colon; empty for none.
        plain_id: the id without it.
    """
    import gymnasium
    from gymnasium.envs import registration

    newest: dict[str, str] = {}  # a name in small letters, without its version -> the id
    for space, name, _ in map(registration.parse_env_id, gymnasium.registry):
        newest_id = registration.get_env_id(space, name, registration.find_highest_version(space, name))
        newest[newest_id.rpartition("-v")[0].lower() or newest_id.lower()] = newest_id
    if not prefix:
        newest |= {each.rpartition("-v")[0].lower(): each for each in TENSOR_ENVS}
    name = plain_id.rpartition("-v")[0] or plain_id
    near = difflib.get_close_matches(name.lower(), newest, n=3, cutoff=_CLOSE)
    ids = [prefix + newest[each] for each in near]
    if prefix and not ids:
        return "an id that the module registers, or a function of it that makes a batch, is expected"
    if prefix:
        return f"did you mean {', '.join(ids)}?"
    if plain_id.startswith("tensor/") and not ids:
        return f"{', '.join(TENSOR_ENVS)} are there"
    # many packages register their environments when they are imported
    own = "ne of your own, or of a package, is module:" + ("Env-v0" if plain_id.endswith(".py") else plain_id)
    return f"did you mean {', '.join(ids)}? O{own}" if ids else f"an id that gymnasium.make takes is expected; o{own}"


def _require_environment(env_id: str) -> None:
    """Raise a ConfigError for an id that Gymnasium keeps to say where its environment has gone."""
    import gymnasium
    from gymnasium.envs import registration

    module, colon, plain_id = env_id.rpartition(":")
    entry_point: Any = gymnasium.registry[plain_id].entry_point
    # where others have their class, these have a function of Gymnasium's own that raises
    if getattr(entry_point, "__module__", "") != "gymnasium.envs":
        return
    try:
        entry_point()
    except ImportError as error:
        namespace, name, version = registration.parse_env_id(plain_id)
        newest = registration.find_highest_version(namespace, name)
        successor = module + colon + registration.get_env_id(namespace, name, newest)
        hint = f"; its successor {successor} is expected" if newest != version else ""
        raise ConfigError(f"--env-id {env_id}: {first_line(error).rstrip('.')}{hint}") from None


@lru_cache
def resolve_envpool_id(env_id: str, preset: str = "") -> str:
    """Return the id that runs, in EnvPool's environments and in Gymnasium's for the test.

    See `resolve_env_id`; `envpool_id` has EnvPool's own name of it.

    Raises:
        ConfigError: EnvPool cannot be imported, or EnvPool or Gymnasium has no such environment.
    """
    try:
        import envpool
    except ImportError as error:
        reason = first_line(error)
        raise ConfigError(
            f"--env-backend envpool: needs EnvPool, {install('envpool')}, on Python 3.11 or newer ({reason})"
        ) from None
    import gymnasium

    known = envpool.list_all_envs()
    try:
        resolved = resolve_env_id(env_id, preset)
    except ConfigError:
        if env_id in known and env_id not in gymnasium.registry:
            raise ConfigError(
                f"--env-id {env_id}: only EnvPool has it; an id that gymnasium.make takes too is expected, for the test"
            ) from None
        raise
    if envpool_id(resolved, preset) not in known:
        hint = "--env-preset atari, or " if resolved.startswith("ALE/") and not preset else ""
        other = "vector" if find_batch(resolved) is not None else "sync or async"
        hint += f"--env-backend {other} is expected"
        raise ConfigError(f"--env-id {resolved}: EnvPool does not have it; {hint}")
    return resolved


def envpool_id(env_id: str, preset: str) -> str:
    """Return EnvPool's own id of an environment.

    EnvPool has one id for each Atari game; whether actions are sticky is an option (`atari.envpool_options`).
    """
    if preset != ATARI:
        return env_id
    return re.sub(r"NoFrameskip-v4$", "-v5", env_id.removeprefix("ALE/"))


def _look_in_working_directory() -> None:
    """Let `import` find modules of the user's own where they are."""
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())

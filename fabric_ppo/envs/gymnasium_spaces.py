"""Descriptions of Gymnasium's spaces: an environment's EnvSpec, or what is not supported about it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from fabric_ppo.envs.reading import shorten
from fabric_ppo.envs.spaces import (
    ACTION_MASK,
    MOST_CHOICES,
    EnvSpec,
    Fit,
    KeyPath,
    SpaceSpec,
    is_mask,
    nested_space,
    path_name,
)
from fabric_ppo.process.errors import ConfigError

if TYPE_CHECKING:
    import gymnasium

SUPPORTED = (
    "observations: Box (of 8 to 64 bits), Discrete, MultiDiscrete, MultiBinary, and Dict and Tuple of these; "
    f"actions: likewise, Box of floats; choices: {MOST_CHOICES:,} at most"
)

_WIDER = {"uint16": "int32", "uint32": "int64", "bool": "int8", "float16": "float32"}
"""Wider types for parts of observations whose own PyTorch does not compute with."""

_LIMITS = {limit for name in ("int32", "int64") for limit in (np.iinfo(name).min, np.iinfo(name).max)} | {
    np.iinfo(name).max for name in ("uint32", "uint64")
}
"""Bounds that stand for none: an integer Box without bounds of its own has the limits of its type."""


def env_spec(
    env_id: str,
    observation: gymnasium.Space[Any],
    action: gymnasium.Space[Any],
    fit: Fit = "clip",
    wrapper: str = "",
    obs_keys: str = "",
    critic_keys: str = "",
) -> EnvSpec:
    """Describe an environment.

    Args:
        env_id: its id.
        observation, action: its spaces.
        fit: how Box actions meet their bounds.
        wrapper: see `EnvSpec`.
        obs_keys: parts of a nested observation that are taken, as `--obs-keys` names them; empty
            for all. An action mask is taken in any case.
        critic_keys: parts that the value network alone takes, as `--critic-keys` names them.

    Raises:
        ConfigError: a space that no agent here can take, a key that the observations lack, or
            nothing for the policy.
    """
    actions = _action_spec(env_id, action, fit)
    spec = EnvSpec(env_id, _observation_spec(env_id, observation, obs_keys, critic_keys, actions), actions, wrapper)
    if actions.parts:
        _require_mask_of_parts(spec)
    return spec


def _observation_spec(
    env_id: str, space: gymnasium.Space[Any], obs_keys: str, critic_keys: str, action: SpaceSpec
) -> SpaceSpec:
    """Describe an observation space; a nested one by the leaves of its tree that the keys name.

    The policy takes a mask of the `action` whether it is named or not.
    """
    leaves = dict(_leaves(space))
    given = {"--obs-keys": obs_keys, "--critic-keys": critic_keys}
    if () in leaves:
        for flag, keys in given.items():
            if keys:
                raise ConfigError(f"{flag} {keys}: observations of {env_id} are {_short(space)}, which has no parts")
        spec = _leaf_spec(space)
        if spec is None:
            raise ConfigError(f"--env-id {env_id}: observation space {_short(space)} is not supported; {SUPPORTED}")
        return spec
    for flag, keys in given.items():
        _require_names(env_id, leaves, flag, keys)
    critic = [path for path in leaves if _is_below(path, critic_keys)]
    named = [path for path in leaves if (_is_below(path, obs_keys) if obs_keys else path not in critic)]
    masks = [path for path in leaves if is_mask(path, action)]
    policy = [path for path in leaves if path in named or path in masks]
    if critic:
        _require_apart(env_id, leaves, policy, critic, given, masks)
    given_as = f"--obs-keys {obs_keys}" if obs_keys else f"--env-id {env_id}"
    parts = _supported(leaves, policy, given_as, "--obs-keys", (*masks, *critic))
    own = _supported(leaves, critic, f"--critic-keys {critic_keys}", "--critic-keys", policy)
    return nested_space((*parts, *own), len(critic))


def _require_names(env_id: str, leaves: Iterable[KeyPath], flag: str, keys: str) -> None:
    """Raise a ConfigError unless each of `keys` names one part of the observations."""
    for key in filter(None, keys.split(",")):
        named = {path[:length] for path in leaves for length in _lengths(path) if path_name(path[:length]) == key}
        if not named:
            existing = ", ".join(map(path_name, leaves))
            raise ConfigError(f"{flag} {keys}: {env_id} has no observation {key}; it has {existing}")
        if len(named) > 1:  # a key "a.b" beside a part "b" of "a"
            raise ConfigError(f"{flag} {keys}: {env_id} has several observations {key}; unique names are expected")


def _require_apart(
    env_id: str,
    leaves: Iterable[KeyPath],
    policy: Sequence[KeyPath],
    critic: Sequence[KeyPath],
    given: Mapping[str, str],
    masks: Sequence[KeyPath],
) -> None:
    """Raise a ConfigError unless the policy has observations, and the value network others of its own."""
    what = f"--critic-keys {given['--critic-keys']}"
    if own := [path for path in masks if path in critic]:
        raise ConfigError(f"{what}: the policy needs {path_name(own[0])}; other parts are expected")
    if both := [path for path in critic if path in policy]:
        which = f"--obs-keys {given['--obs-keys']} has {path_name(both[0])}"
        raise ConfigError(f"{what}: {which}, which the value network takes, too; other parts are expected")
    if set(policy) <= set(masks):
        existing = ", ".join(path_name(path) for path in leaves if path not in masks)
        raise ConfigError(f"{what}: the policy has no observation left; some of {existing} are expected")


def _supported(
    leaves: Mapping[KeyPath, gymnasium.Space[Any]],
    taken: Sequence[KeyPath],
    given_as: str,
    flag: str,
    others_take: Sequence[KeyPath],
) -> tuple[tuple[KeyPath, SpaceSpec], ...]:
    """Describe the leaves at the paths `taken`, which the user has `given_as` a flag.

    Raises:
        ConfigError: one is not supported; it says how `flag` takes those that are, but for those
            that `others_take`.
    """
    specs = {path: _leaf_spec(leaf) for path, leaf in leaves.items()}
    parts = tuple((path, _widened(spec)) for path in taken if (spec := specs[path]) is not None)
    if len(parts) < len(taken):
        refused = {path: leaves[path] for path in taken if specs[path] is None}
        others = [path for path in specs if specs[path] is not None and path not in others_take]
        advice = _advice(refused, [path for path in others if path in taken] or others, flag)
        raise ConfigError(f"{given_as}: {advice}")
    return parts


def _require_mask_of_parts(spec: EnvSpec) -> None:
    """Raise a ConfigError unless the mask of nested actions, if there is one, has an entry for each choice."""
    action = spec.action
    sizes = {path: leaf.size for path, leaf in spec.observation.parts if is_mask(path, action)}
    own = {(*ACTION_MASK, *path): leaf.num_choices for path, leaf in action.parts if leaf.kind != "box"}
    if sizes and sizes not in (own, {ACTION_MASK: action.num_choices}):
        found, expected = (
            ", ".join(f"{path_name(path)} of {size}" for path, size in each.items()) for each in (sizes, own)
        )
        raise ConfigError(
            f"--env-id {spec.env_id}: its masks are {found} entries; action_mask of {action.num_choices}, "
            f"or {expected} are expected, one a choice"
        )


def _leaves(space: gymnasium.Space[Any], path: KeyPath = ()) -> Iterator[tuple[KeyPath, gymnasium.Space[Any]]]:
    """Yield path and space of each leaf of a tree of Dict and Tuple; an empty one is a leaf."""
    from gymnasium import spaces

    if not isinstance(space, (spaces.Dict, spaces.Tuple)) or not len(space.spaces):
        yield path, space
        return
    for key, each in space.spaces.items() if isinstance(space, spaces.Dict) else enumerate(space.spaces):
        yield from _leaves(each, (*path, key))


def _is_below(path: KeyPath, keys: str) -> bool:
    """Return True if one of `keys` names this path, or a part of the observation that it lies in."""
    return bool(keys) and any(path_name(path[:length]) in keys.split(",") for length in _lengths(path))


def _lengths(path: KeyPath) -> range:
    """Return the lengths of the paths to a part and to what it lies in."""
    return range(1, len(path) + 1)


def _advice(refused: Mapping[KeyPath, gymnasium.Space[Any]], others: Sequence[KeyPath], flag: str) -> str:
    """Return a description of parts that are not supported, and of the `flag` that takes the others."""
    kinds = ", ".join(map(_kind, refused.values()))
    some = "is" if len(refused) == 1 else "are"
    what = f"part{'s' * (len(refused) > 1)} {', '.join(map(path_name, refused))} of its observations ({kinds})"
    takes = f"{flag} {','.join(map(path_name, others))} takes the others" if others else SUPPORTED
    return f"{what} {some} not supported; {takes}"


def _kind(space: gymnasium.Space[Any]) -> str:
    """Return the name of a space's class, of a subclass that of Gymnasium's; a Box in full."""
    from gymnasium import spaces

    if isinstance(space, spaces.Box):
        return _short(space)
    return next(each.__name__ for each in type(space).__mro__ if each.__module__.startswith("gymnasium."))


def _leaf_spec(space: gymnasium.Space[Any]) -> SpaceSpec | None:
    """Describe an observation space without parts; None if no agent here can take it."""
    from gymnasium import spaces

    if isinstance(space, (spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)):
        spec = _choice_spec(space)
        return spec if sum(spec.sizes) <= MOST_CHOICES else None
    if not isinstance(space, spaces.Box) or not math.prod(space.shape):
        return None
    dtype = np.dtype(space.dtype)
    # PyTorch has no type for longdouble, nor for bytes in another order than the machine's
    if dtype.kind not in "biuf" or dtype.itemsize > 8:
        return None
    low, high = _scaling_bounds(space) if dtype.kind in "iu" else ((), ())
    return SpaceSpec("box", space.shape, dtype.name, low=low, high=high)


def _widened(spec: SpaceSpec) -> SpaceSpec:
    return replace(spec, dtype=_WIDER.get(spec.dtype, spec.dtype))


def _scaling_bounds(space: gymnasium.spaces.Box) -> tuple[tuple[int | None, ...], tuple[int | None, ...]]:
    """Return the bounds by which the whole numbers of a Box are scaled; see `SpaceSpec.low`."""
    lows, highs = ([int(x) for x in bound.flatten()] for bound in (space.low, space.high))
    has_both = (space.bounded_below & space.bounded_above).flatten().tolist()
    pairs: list[tuple[int | None, int | None]] = [
        (low, high) if both and low not in _LIMITS and high not in _LIMITS else (None, None)
        for low, high, both in zip(lows, highs, has_both, strict=True)
    ]
    if len(set(pairs)) == 1:
        pairs = pairs[:1]
    # left out where they say nothing, so that an image's description is short
    if pairs == [(None, None)] or (pairs == [(0, 255)] and space.dtype == np.uint8):
        return (), ()
    return tuple(low for low, _ in pairs), tuple(high for _, high in pairs)


def _choice_spec(
    space: gymnasium.spaces.Discrete | gymnasium.spaces.MultiDiscrete | gymnasium.spaces.MultiBinary,
) -> SpaceSpec:
    """Describe a space of choices."""
    from gymnasium import spaces

    if isinstance(space, spaces.Discrete):
        return SpaceSpec("discrete", (), "int64", (int(space.n),), (int(space.start),))
    dtype = np.dtype(space.dtype).name
    if isinstance(space, spaces.MultiBinary):
        return SpaceSpec("multi_binary", space.shape, dtype)
    sizes, start = (tuple(int(n) for n in values.flatten()) for values in (space.nvec, space.start))
    return SpaceSpec("multi_discrete", space.shape, dtype, sizes, start)


def _action_spec(env_id: str, space: gymnasium.Space[Any], fit: Fit) -> SpaceSpec:
    """Describe an action space; a nested one by the leaves of its tree."""
    leaves = dict(_leaves(space))
    specs = {path: _action_leaf(leaf, fit) for path, leaf in leaves.items()}
    parts = [(path, spec) for path, spec in specs.items() if spec is not None]
    if len(parts) < len(leaves):
        path = next(path for path, spec in specs.items() if spec is None)
        which = f"action space {_short(space)}"
        if path:
            which = f"part {path_name(path)} of its actions ({_short(leaves[path])})"
        raise ConfigError(f"--env-id {env_id}: {which} is not supported; {SUPPORTED}")
    if () in specs:
        return parts[0][1]
    # an index stands for a place in a Tuple: an action has to be put together again
    if odd := [key for path in leaves for key in _keys(space, path) if not isinstance(key, str)]:
        raise ConfigError(f"--env-id {env_id}: its actions have a part {odd[0]!r}; keys that are texts are expected")
    nested = nested_space(parts)
    if nested.num_choices > MOST_CHOICES:
        raise ConfigError(f"--env-id {env_id}: its actions have {nested.num_choices:,} choices; {SUPPORTED}")
    return nested


def _action_leaf(space: gymnasium.Space[Any], fit: Fit) -> SpaceSpec | None:
    """Describe an action space without parts; None if no agent here can act in it."""
    from gymnasium import spaces

    if isinstance(space, (spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)):
        spec = _choice_spec(space)
        return spec if sum(spec.sizes) <= MOST_CHOICES else None
    if not isinstance(space, spaces.Box) or not math.prod(space.shape) or np.dtype(space.dtype).kind != "f":
        return None
    low, high = (tuple(float(x) if math.isfinite(x) else None for x in b.flatten()) for b in (space.low, space.high))
    return SpaceSpec("box", space.shape, str(space.dtype), low=low, high=high, fit=fit)


def _keys(space: Any, path: KeyPath) -> Iterator[str | int]:
    """Yield the keys on the way to a part that are a Dict's, not a Tuple's."""
    from gymnasium import spaces

    for key in path:
        if isinstance(space, spaces.Dict):
            yield key
        space = space[key]


def _short(space: gymnasium.Space[Any]) -> str:
    return shorten(str(space))

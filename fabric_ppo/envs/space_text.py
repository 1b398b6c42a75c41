"""Spaces in a few words, for lines and errors."""

from __future__ import annotations

from fabric_ppo.envs.spaces import SpaceSpec, path_name

_MOST_NAMED = 4
"""Parts of a nested space, or numbers of choices, that a line names one by one."""
_MOST_KEYS = 12
"""Parts of a nested space that an error about a missing one names."""


def format_space(space: SpaceSpec) -> str:
    """Return a space in a few words, much as Gymnasium prints it."""
    if space.kind == "box":
        return f"Box({', '.join(map(str, space.shape))}) {space.dtype}"
    if space.kind == "discrete":
        return f"Discrete({space.sizes[0]})"
    if space.kind == "multi_discrete":
        return f"MultiDiscrete({_first(list(map(str, space.sizes)))})"
    if space.kind == "multi_binary":
        return f"MultiBinary({', '.join(map(str, space.shape))})"
    if space.for_critic is not None:
        return f"({_named(space.for_policy)}; the value network also {_named(space.for_critic)})"
    return f"({_named(space)})"


def _named(space: SpaceSpec) -> str:
    """Return the parts of a nested space by name."""
    return _first([f"{path_name(path)} {format_space(part)}" for path, part in space.parts])


def _first(texts: list[str]) -> str:
    """Join the first of some texts, and the number of the others."""
    more = [f"{len(texts) - _MOST_NAMED} more"] if len(texts) > _MOST_NAMED else []
    return ", ".join(texts[:_MOST_NAMED] + more)


def format_parts(space: SpaceSpec) -> str:
    """Return what an observation of a nested space is: "a dict with image, vec"."""
    names = [path_name(path) for path, _ in space.parts]
    more = [f"{len(names) - _MOST_KEYS} more"] if len(names) > _MOST_KEYS else []
    kind = "dict" if isinstance(space.parts[0][0][0], str) else "tuple"
    return f"a {kind} with {', '.join(names[:_MOST_KEYS] + more)}"

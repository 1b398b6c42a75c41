"""Attributes that callbacks set in environments: their values as JSON, and who has which.

An environment gets them before each reset: those of an episode in progress never change, so that it
can be rebuilt from its seed and its actions.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import gymnasium
import numpy as np

from fabric_ppo.config_arguments import json_value
from fabric_ppo.envs.contract import Array
from fabric_ppo.process.errors import describe_error
from fabric_ppo.process.signals import pass_on_stop

Env = gymnasium.Env[Any, Any]


def attributes_text(before: str, values: Mapping[str, Any]) -> str:
    """Return attributes as JSON: those of the text `before`, and `values`; empty for none.

    Numbers and arrays of NumPy and PyTorch become numbers and lists.

    Raises:
        ConfigError: a value is none that JSON has.
    """
    attributes = json.loads(before or "{}")
    for name, value in values.items():
        plain = value.tolist() if callable(getattr(value, "tolist", None)) else value
        attributes[name] = json_value(plain, f"envs.set({name}=...)")
    return json.dumps(attributes) if attributes else ""


def set_attributes(env: Env, text: str) -> None:
    """Set attributes, in order, each in the outermost wrapper that has it.

    Raises:
        AttributeError: there is no such attribute; or whatever the environment raises.
    """
    for name, value in json.loads(text).items():
        if env.set_wrapper_attr(name, value, force=False) is False:
            raise AttributeError(f"there is no attribute {name}")


class Attributed(gymnasium.Wrapper[Any, Any, Any, Any]):
    """An environment whose attributes are set before each reset."""

    def __init__(self, env: Env, text: str) -> None:
        """Set the attributes of `text` in `env`, see `set_attributes`."""
        super().__init__(env)
        self._text = text

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Set the attributes, and start an episode."""
        set_attributes(self.env, self._text)
        return self.env.reset(seed=seed, options=options)


def why_not_set(env: Env, names: Iterable[str]) -> str:
    """Return why attributes cannot be set in an environment; empty if they can, as far as is seen."""
    for name in names:
        try:
            why = _why_not(env, name)
        except BaseException as error:
            pass_on_stop(error)
            why = f"reading it raised {describe_error(error)}".splitlines()[0]
        if why:
            return f"envs.set({name}=...): {why}"
    return ""


def _why_not(env: Env, name: str) -> str:
    env_id = env.spec.id if env.spec else type(env.unwrapped).__name__
    if not env.has_wrapper_attr(name):
        nearest = difflib.get_close_matches(name, _settable(env), n=1)
        return f"{env_id} has no such attribute" + (f"; did you mean {nearest[0]}?" if nearest else "")
    value = env.get_wrapper_attr(name)
    if callable(value) or isinstance(value, (gymnasium.Space, gymnasium.Env)):
        kind = "method" if callable(value) else type(value).__name__
        return f"it is a {kind} of {env_id}; an attribute with a value is expected"
    holder: Any = env
    while holder is not env.unwrapped and not hasattr(holder, name):
        holder = holder.env
    declared = getattr(type(holder), name, None)
    if isinstance(declared, property) and declared.fset is None:
        return f"{env_id} has it as a property that cannot be set"
    return ""


def _settable(env: Env) -> list[str]:
    """Return the names of an environment's own attributes, for a hint."""
    return [name for name in vars(env.unwrapped) if not name.startswith("_")]


class AttributeLog:
    """Attributes that the episodes in progress began with, as JSON, empty for none.

    Attributes:
        current: of the episodes that begin from here on.
        of_episodes: of the episode in progress of each environment.
    """

    def __init__(self, num_envs: int) -> None:
        """Start with environments as they are made."""
        self.current = ""
        self.of_episodes = [""] * num_envs

    def append(self, ended: Array) -> None:
        """Add steps with `ended [T, N]` bool, after each of which an episode with `current` begins."""
        if {self.current}.issuperset(self.of_episodes):  # the usual case: nobody has set anything
            return
        for env in np.flatnonzero(ended.any(0)):
            self.of_episodes[env] = self.current

    def begin(self, envs: Iterable[int] | None = None) -> None:
        """Note that new episodes begin in some environments, by default in all."""
        for env in range(len(self.of_episodes)) if envs is None else envs:
            self.of_episodes[env] = self.current

    def rebuild(self, attributes: Sequence[str], failed: Sequence[object]) -> None:
        """Note that episodes with `attributes` were rebuilt, but where that `failed` new ones began."""
        self.of_episodes = [self.current if why else each for each, why in zip(attributes, failed, strict=True)]

    def to_values(self) -> dict[str, Any]:
        """Return this as JSON values."""
        texts = list(dict.fromkeys([self.current, *self.of_episodes]))  # many environments share few
        return {"texts": texts, "of_episodes": [texts.index(each) for each in self.of_episodes]}

    def load_values(self, values: Mapping[str, Any]) -> None:
        """Restore what `to_values` returned.

        Raises:
            ValueError: the values are of another kind, or of another number of environments.
        """
        texts, places = values["texts"], values["of_episodes"]
        for text in texts:
            require_text(text)
        is_place = all(type(each) is int and 0 <= each < len(texts) for each in places)
        if not texts or not is_place or len(places) != len(self.of_episodes):
            raise ValueError("its attributes of environments do not fit")
        self.current, self.of_episodes = texts[0], [texts[each] for each in places]


def require_text(text: Any) -> None:
    """Raise a ValueError unless `text` is attributes as JSON, or empty."""
    if not isinstance(text, str) or (text and not isinstance(json.loads(text), dict)):
        raise ValueError("its attributes of environments are of another kind")


def names_of(text: str) -> Sequence[str]:
    """Return the names of attributes in a text."""
    return list(json.loads(text or "{}"))

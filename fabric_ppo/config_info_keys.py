"""`--info-keys`: the numbers of `info` that are logged of each episode, and their names."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from fabric_ppo.process.errors import ConfigError

SUCCESS = "is_success"
"""Key that is always looked for, as environments with a goal give it."""
_SUM = "sum:"
_NO_KEYS = "none"
"""Value of `--info-keys` that drops those of a resumed run."""
_RESERVED = ("return_mean",)
"""Names that evaluations log already, `Eval/return_mean`."""


@dataclass(frozen=True)
class InfoKey:
    """A number of `info` that is logged of each episode.

    Attributes:
        key: where it is: a key, or a path with dots into nested mappings.
        is_sum: true for the sum over the episode's steps, false for its last step alone.
        is_asked: false for `is_success`, where no flag names it.
    """

    key: str
    is_sum: bool = False
    is_asked: bool = True

    @property
    def name(self) -> str:
        """Name in logs and results: the key, with `_sum` behind it for a sum."""
        return f"{self.key}_sum" if self.is_sum else self.key

    @property
    def text(self) -> str:
        """The key as `--info-keys` has it."""
        return f"{_SUM}{self.key}" if self.is_sum else self.key


ONLY_SUCCESS = (InfoKey(SUCCESS, is_asked=False),)
"""Keys that are looked for without `--info-keys`."""


def info_keys_of(text: str | None) -> tuple[InfoKey, ...]:
    """Return the keys that `--info-keys` names, after `is_success`.

    >>> [key.name for key in info_keys_of("x_position,sum:reward_ctrl")]
    ['is_success', 'x_position', 'reward_ctrl_sum']

    Raises:
        ConfigError: a key is empty or cannot be printed, or two would have the same name.
    """
    if text in (None, _NO_KEYS):
        return ONLY_SUCCESS
    keys = [_info_key(part.strip(), text) for part in text.split(",")]
    success = [key for key in keys if key.name == SUCCESS] or list(ONLY_SUCCESS)
    ordered = [*success, *(key for key in keys if key.name != SUCCESS)]
    _require_names(ordered)
    return tuple(ordered)


def _info_key(part: str, text: str) -> InfoKey:
    """Return one key; raise a ConfigError if it is none."""
    key = part.removeprefix(_SUM).strip()
    if not key or not key.isprintable():
        expected = "keys with commas between them, such as x_position,sum:reward_ctrl, are expected"
        raise ConfigError(f"--info-keys {text}: {expected}")
    return InfoKey(key, part.startswith(_SUM))


def _require_names(keys: list[InfoKey]) -> None:
    """Raise a ConfigError unless each key, and each number of episodes, has a name of its own."""
    names = Counter([*_RESERVED, *(key.name for key in keys), *(count_name(key) for key in keys)])
    for key in keys:
        if names[key.name] > 1:
            raise ConfigError(
                f"--info-keys {key.text}: {key.name} has two meanings in the logs; a key whose name is there once "
                "is expected"
            )


def count_name(key: InfoKey) -> str:
    """Return the name of the number of episodes that had a key, where others had not."""
    return f"{key.name}_count"

"""Words of the command line, rewritten as tyro reads them: lists, numbers, repeated flags."""

from __future__ import annotations

import contextlib
import re
from collections import deque
from collections.abc import Sequence

from fabric_ppo.config import Config
from fabric_ppo.config_values import field_types, takes_int
from fabric_ppo.process.errors import flag
from fabric_ppo.tools.whole_numbers import whole_number

REPEATABLE = ("callback", "track", "track_tags")
"""Fields whose flag takes several words or is repeated, and which are a list in YAML; they have commas."""


def flag_of(word: str) -> str:
    """Return a flag with hyphens and without a value: `--num_envs=3` -> `--num-envs`."""
    return word.partition("=")[0].replace("_", "-")


def spread(config_type: type[Config], args: Sequence[str]) -> list[str]:
    """Return the command line with whole numbers that have commas between them as words of their own."""
    lists = [flag(name) for name, kind in field_types(config_type).items() if kind == tuple[int, ...]]
    words: list[str] = []
    is_list = False
    for word in args:
        name, equals, value = word.partition("=")
        if word.startswith("--"):
            is_list = flag_of(word) in lists
            words += [name, *numbers_in(value)] if is_list and equals else [word]
        else:
            words += numbers_in(word) if is_list else [word]
    return words


def numbers_in(text: str) -> list[str]:
    """Return the parts of `64,64`, `[64, 64]` or `(64, 64)`; of anything else the text itself."""
    return re.sub(r"[\[\]()\s]", "", text).strip(",").split(",") if re.fullmatch(r"[\w.,\[\]()\s]+", text) else [text]


def joined(args: Sequence[str]) -> list[str]:
    """Return the command line with the values of a flag that takes several as one, with commas.

    They follow it as words, or the flag is repeated.
    """
    words: list[str] = []
    places: dict[str, int] = {}
    rest = deque(args)
    while rest:
        word = rest.popleft()
        name, equals, value = flag_of(word), *word.partition("=")[1:]
        if not word.startswith("--") or name[2:].replace("-", "_") not in REPEATABLE:
            words.append(word)
            continue
        values = [value] if equals else []
        while rest and not rest[0].startswith("--"):
            values.append(rest.popleft())
        if not values:  # which is an error with a line of its own
            words.append(word)
        elif name in places:
            words[places[name]] += "," + ",".join(values)
        else:
            words += [name, ",".join(values)]
            places[name] = len(words) - 1
    return words


def plain_numbers(config_type: type[Config], args: Sequence[str]) -> list[str]:
    """Return the command line with whole numbers as tyro reads them: 1M -> 1000000."""
    kinds = {flag(name): kind for name, kind in field_types(config_type).items()}
    plain, is_whole = [], False
    for word in args:
        name, equals, value = word.partition("=")
        if word.startswith("--"):
            is_whole = takes_int(kinds.get(flag_of(word)))
        else:
            name, equals, value = "", "", word
        with contextlib.suppress(ValueError):
            value = str(whole_number(value)) if is_whole else value
        plain.append(name + equals + value)
    return plain

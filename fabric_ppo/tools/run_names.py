"""Names of runs and values of settings: in numeric order, and as short as tells them apart."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Hashable, Sequence
from typing import Any

_NUMBER = re.compile(r"(\d+(?:\.\d+)?(?:e[+-]?\d+)?)", re.IGNORECASE)
_LONGEST = 32
"""Number of characters of a short name."""
_FEWEST = 7

NameKey = tuple[tuple[tuple[bool, float, str], ...], str]
"""Key by which names are sorted."""


def name_key(name: str) -> NameKey:
    """Return a key that sorts names by the numbers in them: seed_2 before seed_10, lr_0.01 before lr_0.1."""
    parts = enumerate(_NUMBER.split(name))
    # a number comes before text, so that names with different parts have an order, too
    return tuple((i % 2 == 0, float(part) if i % 2 else 0.0, "" if i % 2 else part) for i, part in parts), name


def in_numeric_order(words: Sequence[str]) -> list[str]:
    """Return names by the numbers in them where a shell has sorted them by their characters, else as they are."""
    is_sorted = list(words) == sorted(words)
    return sorted(words, key=name_key) if is_sorted else list(words)


def ranks(values: Sequence[Any]) -> list[Any]:
    """Return a key for each value, all of one type: by size where all are numbers, else by first appearance.

    Lists of numbers count as numbers, off comes before on, and None before all others.
    """
    sizes = [_size(value) for value in values]
    if all(size is not None for size in sizes):
        return sizes
    places: dict[Hashable, int] = {}
    return [places.setdefault(repr(value), len(places)) for value in values]


def _size(value: Any) -> tuple[float, ...] | None:
    """Return a number, or those of a list, as a tuple; None for what is none."""
    if value is None:
        return ()
    try:
        numbers = [float(each) for each in (value if isinstance(value, (list, tuple)) else [value])]
    except (TypeError, ValueError, OverflowError):
        return None
    is_text = isinstance(value, str) or any(map(math.isnan, numbers))
    return None if is_text else tuple(numbers)


def elided(name: str, longest: int = _LONGEST) -> str:
    """Return a name, without its middle where it is too long."""
    if len(name) <= longest:
        return name
    head = (longest - 1) // 2
    return f"{name[:head]}…{name[len(name) - (longest - 1 - head) :]}"


def listed(names: Sequence[str], most: int = 4) -> str:
    """Return names with commas between them, no more than `most`."""
    return f"{', '.join(names[:most])}{', ...' if len(names) > most else ''}"


def short_names(names: Sequence[str], longest: int = _LONGEST) -> list[str]:
    """Return names that are not too long, and still different.

    Long names lose the words that all of their kind share, as `CartPole-v1` of several seeds, then
    their middle.

    Args:
        names: all different.
        longest: largest number of characters of a name; from 7 up.
    """
    longest = max(longest, _FEWEST)
    telling = _telling_words(names, longest)
    for found in (list(names), telling, [elided(name, longest) for name in telling]):
        if len(set(found)) == len(names) and all(len(name) <= longest for name in found):
            return found
    return [elided(name, longest - len(end)) + end for i, name in enumerate(telling) for end in [f"#{i + 1}"]]


def _telling_words(names: Sequence[str], longest: int) -> list[str]:
    """Return names; long ones have only the words, between `_` and `/`, in which those of as many words differ."""
    split = [re.split(r"[_/]", name) for name in names]
    kinds: dict[int, list[list[str]]] = {}
    for words in split:
        kinds.setdefault(len(words), []).append(words)
    found = []
    for name, words in zip(names, split, strict=True):
        tells = [len(set(column)) > 1 for column in zip(*kinds[len(words)], strict=True)]
        is_kept = len(name) <= longest or not any(tells)
        found.append(name if is_kept else "_".join(itertools.compress(words, tells)))
    return found

"""Whole numbers as people write large ones: 500000, 500_000, 500k, 5e5, 0.5M."""

from __future__ import annotations

import contextlib
import re
from decimal import Decimal

_SPELLING = re.compile(r"([+-]?\d+(?:_\d+)*(?:\.\d*)?)(?:e([+-]?\d{1,2})|([kmb]))?", re.ASCII)
_POWERS = {"k": 3, "m": 6, "b": 9}
"""Powers of ten of the letters that may follow a number: thousands, millions, billions."""


def whole_number(text: str) -> int:
    """Return the whole number that a text stands for.

    >>> [whole_number(text) for text in ("1e6", "1_000_000", "1M", "1.5k", "-3")]
    [1000000, 1000000, 1000000, 1500, -3]

    Raises:
        ValueError: it is no number, or no whole one, such as 1.5 and 1e-3.
    """
    with contextlib.suppress(ValueError):
        return int(text)
    found = _SPELLING.fullmatch(text.strip().lower())
    # Decimal is exact up to 28 digits, where a float would round
    if found is None or len(text) > 28:
        raise ValueError(f"{text} is no whole number")
    digits, exponent, letter = found.groups()
    power = _POWERS[letter] if letter else int(exponent or 0)
    number = Decimal(digits).scaleb(power)
    if number != number.to_integral_value():
        raise ValueError(f"{text} is no whole number")
    return int(number)

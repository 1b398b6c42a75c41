"""Numbers in the `info` of an episode: of its last step, or summed over its steps.

No `info` is an environment's fault: what cannot be read counts as missing, of one kind or another.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fabric_ppo.config_info_keys import InfoKey
from fabric_ppo.envs.reading import LARGEST, read_number
from fabric_ppo.process.errors import USER_ERRORS

MISSING, NUMBER, NOT_FINITE, NO_NUMBER = range(4)
"""Kinds of what is found at a key. The kind of a sum is the greatest one of its steps."""
Reading = tuple[float, int]
"""Number that was found at a key, 0 without one, and its kind."""

_NOTHING: Reading = (0.0, MISSING)
ABSENT = object()
"""Stands for a value that is not there."""
_MOST_NAMES = 20


class Ending(NamedTuple):
    """Readings of an episode that ended, one for each key, in local environment `env`."""

    env: int
    readings: Sequence[Reading]


class EpisodeInfo:
    """Reader of one environment's `info`, with the sums of its episode in progress.

    Attributes:
        adds: true if `add` has to be called in each step.
    """

    def __init__(self, keys: Sequence[InfoKey]) -> None:
        """Look for these keys."""
        self._keys = keys
        self._summed = [key.key for key in keys if key.is_sum]
        self._sums = [_NOTHING] * len(self._summed)
        self._is_asked = any(key.is_asked for key in keys)
        self.adds = bool(self._summed)

    def clear(self) -> None:
        """Begin an episode."""
        self._sums = [_NOTHING] * len(self._summed)

    def add(self, info: Any) -> None:
        """Add the numbers of a step."""
        for index, key in enumerate(self._summed):
            number, kind = read_info(info, key)
            total, so_far = self._sums[index]
            self._sums[index] = total + number, max(so_far, kind)

    def ending(self, info: Any) -> list[Reading] | None:
        """Return the readings of an episode whose last step had this `info`, one for each key.

        None stands for an episode without `is_success`, where no other key is asked for.
        """
        if not self._is_asked:
            reading = read_info(info, self._keys[0].key)
            return None if reading[1] == MISSING else [reading]
        sums = iter(self._sums)
        return [next(sums) if key.is_sum else read_info(info, key.key) for key in self._keys]

    def state(self) -> bytes:
        """Return the sums so far, `SUM_BYTES` for each."""
        return np.array(self._sums, np.float64).tobytes()

    def restore(self, state: bytes) -> bytes:
        """Go on with sums from `state`; return the bytes that follow them."""
        size = SUM_BYTES * len(self._summed)
        sums = np.frombuffer(state[:size], np.float64).reshape(-1, 2).tolist()
        self._sums = [(total, int(kind)) for total, kind in sums]
        return state[size:]


SUM_BYTES = 2 * 8
"""Size of a sum and its kind in `EpisodeInfo.state`."""


def sums_for(state: bytes, before: Sequence[InfoKey], keys: Sequence[InfoKey]) -> bytes:
    """Return a state that began with the sums of keys `before`, with those of `keys` instead.

    A sum that was not kept is not known any more, and counts as one that is not finite.
    """
    known = [key.key for key in before if key.is_sum]
    size, lost = SUM_BYTES * len(known), np.array([0.0, NOT_FINITE]).tobytes()
    kept = {key: state[SUM_BYTES * index :][:SUM_BYTES] for index, key in enumerate(known)}
    return b"".join(kept.get(key.key, lost) for key in keys if key.is_sum) + state[size:]


def read_info(info: Any, key: str) -> Reading:
    """Return the number at a key of `info`, or of a mapping inside of it (`stats.speed`)."""
    try:
        value = info.get(key, ABSENT) if type(info) is dict else ABSENT
        if value is ABSENT and (type(info) is not dict or "." in key):
            value = find_in(info, key)
        if value is ABSENT:
            return _NOTHING
        number = value if type(value) is float else read_number(value)
    except OverflowError:
        return 0.0, NOT_FINITE
    except USER_ERRORS:
        return 0.0, NO_NUMBER
    return (number, NUMBER) if -LARGEST <= number <= LARGEST else (0.0, NOT_FINITE)


def find_in(info: Any, key: str) -> Any:
    """Return the value at a key; a key with dots is tried as it is, and then as a path."""
    if not isinstance(info, Mapping):
        return ABSENT
    if key in info:
        return info[key]
    parts = key.split(".")
    for count in range(1, len(parts)):
        head = ".".join(parts[:count])
        found = find_in(info[head], ".".join(parts[count:])) if head in info else ABSENT
        if found is not ABSENT:
            return found
    return ABSENT


def numbers_of(readings: Sequence[Reading]) -> tuple[float | None, ...]:
    """Return the number of each reading, None where there is none; nothing where none has one."""
    numbers = tuple(number if kind == NUMBER else None for number, kind in readings)
    return () if set(numbers) <= {None} else numbers


def number_names(info: Any) -> list[str]:
    """Return the keys of the numbers in `info`, those of nested mappings with dots; at most 20."""
    try:
        return [name for name, _ in zip(_names(info, ""), range(_MOST_NAMES), strict=False)]
    except USER_ERRORS:
        return []


def _names(info: Any, prefix: str) -> Iterator[str]:
    if not isinstance(info, Mapping) or prefix.count(".") > 3:
        return
    for key, value in info.items():
        if isinstance(value, Mapping):
            yield from _names(value, f"{prefix}{key}.")
        elif isinstance(key, str) and read_info({key: value}, key)[1] == NUMBER:
            yield prefix + key


class PoolInfo:
    """Reader of the `info` of N environments that step as arrays, an array for each key.

    Attributes:
        adds: true if `add` has to be called in each step.
    """

    def __init__(self, keys: Sequence[InfoKey], num_envs: int) -> None:
        """Look for these keys."""
        self._keys = keys
        self._summed = [index for index, key in enumerate(keys) if key.is_sum]
        self._totals = np.zeros((num_envs, len(keys)))
        self._kinds = np.zeros((num_envs, len(keys)), np.int64)
        self.adds = bool(self._summed)

    def add(self, columns: Sequence[Any], valid: NDArray[np.bool_]) -> None:
        """Add the numbers of a step, where it is a transition; see `endings`."""
        for index in self._summed:
            numbers, kinds = _read_column(columns[index], len(valid))
            self._totals[:, index] += np.where(valid, numbers, 0.0)
            self._kinds[:, index] = np.maximum(self._kinds[:, index], np.where(valid, kinds, MISSING))

    def endings(self, columns: Sequence[Any], ended: NDArray[np.bool_]) -> list[Ending]:
        """Return the readings of the episodes that ended, and begin new ones there.

        Args:
            columns: for each key its array `[N, ...]`; None where there is none.
            ended: `[N]`.
        """
        for index, key in enumerate(self._keys):
            if not key.is_sum:
                self._totals[:, index], self._kinds[:, index] = _read_column(columns[index], len(ended))
        rows = np.flatnonzero(ended).tolist()
        readings = [list(zip(self._totals[row].tolist(), self._kinds[row].tolist(), strict=True)) for row in rows]
        self._totals[ended], self._kinds[ended] = 0.0, MISSING
        return [Ending(row, each) for row, each in zip(rows, readings, strict=True)]

    def clear(self) -> None:
        """Begin an episode in each environment."""
        self._totals[:], self._kinds[:] = 0.0, MISSING


def _read_column(column: Any, num_envs: int) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return the numbers of an array `[N]` or `[N, 1]`, 0 without one, and their kinds."""
    nothing = np.zeros(num_envs)
    if column is None:
        return nothing, np.full(num_envs, MISSING)
    column = np.asarray(column)
    if column.dtype.kind not in "biuf" or column.size != num_envs:
        return nothing, np.full(num_envs, NO_NUMBER)
    numbers = column.reshape(num_envs).astype(np.float64)
    is_finite = np.abs(numbers) <= LARGEST
    return np.where(is_finite, numbers, 0.0), np.where(is_finite, NUMBER, NOT_FINITE)

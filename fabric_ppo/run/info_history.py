"""Numbers of `info` over a whole run: those of its last episodes, and keys that never occurred."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fabric_ppo.config_info_keys import InfoKey, info_keys_of
from fabric_ppo.rollouts.buffer import Episode
from fabric_ppo.rollouts.evaluate import TestResult
from fabric_ppo.rollouts.info_totals import (
    InfoMeans,
    InfoTotals,
    Row,
    never_line,
    no_number_line,
    not_finite_line,
)

_LARGEST = 1e100
"""Bound of the numbers in a checkpoint; no sum of a run comes near."""
_ZEROS: Row = (0.0, 0.0, 0.0, 0.0)


@dataclass(frozen=True)
class InfoHistory:
    """Numbers of `info` of a run's training episodes so far, over all ranks.

    Attributes:
        keys: those of the last update.
        rows: totals since the run began, by the name of a key.
        window: number of each of the last episodes, None without one, by the name of a key.
        num_episodes: episodes that ended since the run began.
    """

    keys: tuple[InfoKey, ...] = ()
    rows: Mapping[str, Row] = field(default_factory=dict)
    window: Mapping[str, tuple[float | None, ...]] = field(default_factory=dict)
    num_episodes: int = 0

    def after(self, info: InfoTotals, num_episodes: int, episodes: Sequence[Episode], known: int) -> InfoHistory:
        """Return the history after an update.

        Args:
            info, num_episodes: totals of its episodes, and their number.
            episodes: its last episodes that go into the window, in order.
            known: number of episodes that stay in the window.
        """
        window = {}
        for index, key in enumerate(info.keys):
            before = self.window.get(key.name, ())[-known:] if known else ()
            # a resumed run may have further keys
            missing = (None,) * (known - len(before))
            window[key.name] = (*missing, *before, *(each.info[index] if each.info else None for each in episodes))
        return InfoHistory(info.keys, info.plus(self.rows).by_name(), window, self.num_episodes + num_episodes)

    def means(self) -> InfoMeans:
        """Return the means over the window."""
        numbers = [[each for each in self.window[key.name] if each is not None] for key in self.keys]
        return InfoTotals(self.keys, tuple((sum(each), len(each), 0.0, 0.0) for each in numbers)).means()

    def new_warnings(self, before: InfoHistory) -> list[str]:
        """Return a line for each key that was no number for the first time since `before`."""
        had = {name for name, row in before.rows.items() if row[3]}
        return [no_number_line(key) for key in self.keys if self.rows[key.name][3] and key.name not in had]

    def last_warnings(self, info_keys: str | None, test: TestResult) -> list[str]:
        """Return the lines of a run's end: keys that never came, and numbers that were not finite.

        Args:
            info_keys: the flag `--info-keys`.
            test: the run's test, which may have keys that training did not have.
        """
        in_test, num_episodes = test.info.by_name(), self.num_episodes + len(test.returns)
        lines = []
        for key in info_keys_of(info_keys):
            row, of_test = self.rows.get(key.name, _ZEROS), in_test.get(key.name, _ZEROS)
            if of_test[3] and not row[3]:
                lines.append(no_number_line(key))
            if row[2]:
                lines.append(not_finite_line(key, row, self.num_episodes))
            if key.is_asked and num_episodes and not any(row) and not any(of_test):
                lines.append(never_line(key, num_episodes, test.info_names))
        return lines

    def to_values(self) -> dict[str, Any]:
        """Return the history as values of a checkpoint."""
        window = {name: list(numbers) for name, numbers in self.window.items()}
        rows = {name: list(row) for name, row in self.rows.items()}
        return {"rows": rows, "window": window, "num_episodes": self.num_episodes}

    @classmethod
    def from_values(cls, values: Mapping[str, Any]) -> InfoHistory:
        """Return the history that `to_values` returned.

        Raises:
            ValueError: the values cannot be those of one.
        """
        rows = {name: _numbers(row) for name, row in values["rows"].items()}
        window = {name: _numbers(numbers, None) for name, numbers in values["window"].items()}
        num_episodes = values["num_episodes"]
        if any(len(row) != len(_ZEROS) for row in rows.values()) or type(num_episodes) is not int or num_episodes < 0:
            raise ValueError("its numbers of info cannot be")
        return cls((), {name: (row[0], row[1], row[2], row[3]) for name, row in rows.items()}, window, num_episodes)


def _numbers(values: Any, *others: None) -> tuple[Any, ...]:
    """Return a list of numbers, and `others`, as a tuple; raise a ValueError if it is none."""
    for each in values:
        if each not in others and not (type(each) in (int, float) and -_LARGEST < each < _LARGEST):
            raise ValueError("its numbers of info are not finite, or no numbers")
    return tuple(values)

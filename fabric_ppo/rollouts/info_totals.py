"""Numbers of `info` over episodes: their means, the number of episodes, and unreadable values."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fabric_ppo.config_info_keys import InfoKey, count_name
from fabric_ppo.envs.episode_info import NO_NUMBER, NOT_FINITE, NUMBER, Reading

Row = tuple[float, float, float, float]
"""Of one key: the sum of its numbers, and in how many episodes it had a number, had one that is not
finite, and had something else."""
InfoMeans = dict[str, dict[str, Any]]
"""By the name of a key: its `mean`, None over no episode, and the number of `episodes` that had it."""

_ZEROS: Row = (0.0, 0.0, 0.0, 0.0)


@dataclass(frozen=True)
class InfoTotals:
    """Numbers of `info` over some episodes, a row for each key."""

    keys: tuple[InfoKey, ...] = ()
    rows: tuple[Row, ...] = ()

    @classmethod
    def of(cls, keys: tuple[InfoKey, ...], episodes: Iterable[Sequence[Reading]]) -> InfoTotals:
        """Add up the readings of episodes."""
        rows = [list(_ZEROS) for _ in keys]
        for readings in episodes:
            for row, (number, kind) in zip(rows, readings, strict=True):
                row[0] += number
                for column, counted in enumerate((NUMBER, NOT_FINITE, NO_NUMBER), 1):
                    row[column] += kind == counted
        return cls(keys, tuple((a, b, c, d) for a, b, c, d in rows))

    def to_tensor(self) -> Tensor:
        """Return the rows, `[number of keys, 4]` float64."""
        return torch.tensor(self.rows, dtype=torch.float64).reshape(-1, len(_ZEROS))

    def merged(self, of_ranks: Tensor) -> InfoTotals:
        """Return the totals of all ranks, from what `to_tensor` gave on each, `[W, keys, 4]`."""
        return InfoTotals(self.keys, tuple((a, b, c, d) for a, b, c, d in of_ranks.sum(0).tolist()))

    def by_name(self) -> dict[str, Row]:
        """Return the rows by the names of their keys."""
        return {key.name: row for key, row in zip(self.keys, self.rows, strict=True)}

    def plus(self, others: Mapping[str, Row]) -> InfoTotals:
        """Return the totals together with other rows, by name; those of other keys are left out."""
        rows = [zip(row, others.get(name, _ZEROS), strict=True) for name, row in self.by_name().items()]
        added = ([one + other for one, other in each] for each in rows)
        return InfoTotals(self.keys, tuple((a, b, c, d) for a, b, c, d in added))

    def tagged(self, group: str, num_episodes: float) -> dict[str, float]:
        """Return the scalars to log, tag -> value, for `num_episodes` episodes.

        These are the mean of a key over the episodes that had it, and the number of these episodes
        if it is not that of all.
        """
        tags = {}
        for key, (total, count, *_) in zip(self.keys, self.rows, strict=True):
            if count > 0:
                tags[f"{group}/{key.name}"] = total / count
                if count < num_episodes:
                    tags[f"{group}/{count_name(key)}"] = count
        return tags

    def means(self) -> InfoMeans:
        """Return the means, of `is_success` only where an episode had it or it was asked for."""
        rows = zip(self.keys, self.rows, strict=True)
        shown = [(key, total, int(count)) for key, (total, count, *_) in rows if count or key.is_asked]
        return {key.name: {"mean": total / count if count else None, "episodes": count} for key, total, count in shown}

    def warnings(self, num_episodes: int, names: Sequence[str] = ()) -> list[str]:
        """Return a line for each key that no episode had, or that was no number in some.

        Args:
            num_episodes: number of episodes.
            names: keys of `info` that have numbers, for the text.
        """
        lines = []
        for key, row in zip(self.keys, self.rows, strict=True):
            lines += [no_number_line(key)] if row[3] else []
            lines += [not_finite_line(key, row, num_episodes)] if row[2] else []
            lines += [never_line(key, num_episodes, names)] if key.is_asked and num_episodes and not any(row) else []
        return lines


def no_number_line(key: InfoKey) -> str:
    """Return the warning about a key whose value was not a number."""
    return f"warning: {_where(key)}: no number in an episode's info, which counts as without; a number is expected"


def not_finite_line(key: InfoKey, row: Row, num_episodes: int) -> str:
    """Return the warning about a key whose number was not finite in some episodes."""
    return f"warning: {_where(key)}: not finite in {row[2]:,.0f} of {num_episodes:,} episodes, which count as without"


def never_line(key: InfoKey, num_episodes: int, names: Sequence[str]) -> str:
    """Return the warning about a key that no episode had; `names` are those that there are."""
    known = f"; it has {', '.join(names)}" if names else ""
    of_steps = "in no step" if key.is_sum else "in the last step of none"
    sums = "" if key.is_sum else f"; sum:{key.key} would take all steps"
    return f"warning: {_where(key)}: {of_steps} of {num_episodes:,} episodes{known}{sums}"


def _where(key: InfoKey) -> str:
    return f"--info-keys {key.text}" if key.is_asked else f"{key.text} in info"


def info_text(means: InfoMeans, num_episodes: int) -> str:
    """Return means for a line on the terminal, each after a comma; empty for none.

    >>> info_text({"is_success": {"mean": 0.5, "episodes": 8}, "x": {"mean": 2.0, "episodes": 3}}, 8)
    ', is_success 0.5, x 2 (3 episodes)'
    """
    text = ""
    for name, values in means.items():
        if values["mean"] is not None:
            some = f" ({values['episodes']} episodes)" if values["episodes"] < num_episodes else ""
            text += f", {name} {values['mean']:.4g}{some}"
    return text

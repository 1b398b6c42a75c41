"""Numbers that each rank has of an update: their names, and how ranks merge them.

A metric is declared once, as a field of a `Metrics` dataclass. Merging, sending and logging go by
the fields: whoever adds one adds a line. One of an experiment needs no declaration: see `Own`.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Mapping
from dataclasses import Field, dataclass, field, fields
from typing import Any, ClassVar, Literal, TypeVar, get_args

import torch
from torch import Tensor

from fabric_ppo.process.errors import ConfigError

Merge = Literal["mean", "sum", "max"]
M = TypeVar("M", bound="Metrics")
_TAKEN = ("step", "update")
"""Names of what else is in a line of `metrics.jsonl`."""
Own = Mapping[str, tuple[Merge, float]]
"""Metrics that are declared where they are computed: tag -> how ranks merge it, and its value."""


def metric(merge: Merge, tag: str = "") -> Any:
    """Declare a field: how ranks merge it, and its name in the logs; without a name it is not logged."""
    return field(metadata={"merge": merge, "tag": tag})


@dataclass(frozen=True)
class Metrics:
    """Numbers of one rank, or, once merged, of all ranks; each field is a `metric`, or not merged here.

    Attributes:
        derived: names in the logs of what `tagged` adds, in some updates at least.
    """

    derived: ClassVar[tuple[str, ...]] = ()

    def to_tensor(self) -> Tensor:
        """Return the fields in order, `[number of fields]` float64."""
        return torch.tensor([getattr(self, each.name) for each in self.declared()], dtype=torch.float64)

    @classmethod
    @functools.cache
    def declared(cls) -> tuple[Field[Any], ...]:
        """Return the fields that are a `metric`, in order."""
        return tuple(each for each in fields(cls) if "merge" in each.metadata)

    @classmethod
    def of(cls: type[M], values: Tensor) -> M:
        """Make one of what `to_tensor` returned."""
        return cls(**dict(zip((each.name for each in cls.declared()), values.tolist(), strict=True)))

    @classmethod
    def merge(cls: type[M], of_ranks: Tensor) -> M:
        """Merge what `to_tensor` gave on each rank, `[W, number of fields]`."""
        if len(of_ranks) == 1:  # of a single rank, each of the three is the number itself
            return cls.of(of_ranks[0])
        merged = {"mean": of_ranks.mean(0), "sum": of_ranks.sum(0), "max": of_ranks.amax(0)}
        values = {kind: each.tolist() for kind, each in merged.items()}
        own = cls.declared()
        return cls(**{each.name: values[each.metadata["merge"]][k] for k, each in enumerate(own)})

    @classmethod
    def width(cls) -> int:
        """Return the number of metrics."""
        return len(cls.declared())

    @classmethod
    def names(cls) -> set[str]:
        """Return all names that these numbers may have in the logs."""
        return {each.metadata["tag"] for each in cls.declared()} | set(cls.derived)

    def tagged(self) -> dict[str, float]:
        """Return what is logged: tag -> value. A subclass may add what follows from several fields."""
        named = [(each.metadata["tag"], getattr(self, each.name)) for each in self.declared()]
        return {tag: value for tag, value in named if tag}


def own_metric(tag: str, value: float | Tensor, merge: Merge) -> Own:
    """Declare a metric of one's own: its name in the logs, its value on this rank, how ranks merge it.

    Raises:
        ConfigError: the name cannot be one, there is no such way to merge, or the value is not a
            single number.
    """
    if not isinstance(tag, str) or not tag.strip() or not tag.isprintable() or tag in _TAKEN:
        raise ConfigError(
            f"the metric {tag!r}: a name of printable characters, but not {' or '.join(_TAKEN)}, is expected"
        )
    if merge not in get_args(Merge):
        raise ConfigError(f"the metric {tag}: merge {merge!r}: one of {', '.join(get_args(Merge))} is expected")
    try:
        # a value with a gradient would warn, once, that it becomes a number
        return {tag: (merge, float(value.detach() if isinstance(value, Tensor) else value))}
    except (TypeError, ValueError, RuntimeError):
        raise ConfigError(f"the metric {tag}: a number, or a tensor of one, is expected") from None


def merge_own(of_ranks: Iterable[Own]) -> Own:
    """Merge each metric over the ranks that have it."""
    found: dict[str, tuple[Merge, list[float]]] = {}
    for own in of_ranks:
        for tag, (merge, value) in own.items():
            found.setdefault(tag, (merge, []))[1].append(value)
    return {tag: (merge, _merged(merge, values)) for tag, (merge, values) in found.items()}


def _merged(merge: Merge, values: list[float]) -> float:
    total = math.fsum(values) if all(map(math.isfinite, values)) else sum(values)
    largest = math.nan if any(map(math.isnan, values)) else max(values)
    return {"sum": total, "mean": total / len(values), "max": largest}[merge]

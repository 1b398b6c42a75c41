"""Numbers that each rank has of an update: their names, and how ranks merge them.

A metric is declared once, as a field of a `Metrics` dataclass. Merging, sending and logging go by
the fields: whoever adds one adds a line.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor

Merge = Literal["mean", "sum", "max"]
M = TypeVar("M", bound="Metrics")


def metric(merge: Merge, tag: str = "") -> Any:
    """Declare a field: how ranks merge it, and its name in the logs; without a name it is not logged."""
    return field(metadata={"merge": merge, "tag": tag})


@dataclass(frozen=True)
class Metrics:
    """Numbers of one rank, or, once merged, of all ranks; each field is a `metric`."""

    def to_tensor(self) -> Tensor:
        """Return the fields in order, `[number of fields]` float64."""
        return torch.tensor([getattr(self, each.name) for each in fields(self)], dtype=torch.float64)

    @classmethod
    def of(cls: type[M], values: Tensor) -> M:
        """Make one of what `to_tensor` returned."""
        return cls(**dict(zip((each.name for each in fields(cls)), values.tolist(), strict=True)))

    @classmethod
    def merge(cls: type[M], of_ranks: Tensor) -> M:
        """Merge what `to_tensor` gave on each rank, `[W, number of fields]`."""
        if len(of_ranks) == 1:  # of a single rank, each of the three is the number itself
            return cls.of(of_ranks[0])
        merged = {"mean": of_ranks.mean(0), "sum": of_ranks.sum(0), "max": of_ranks.amax(0)}
        values = {kind: each.tolist() for kind, each in merged.items()}
        own = fields(cls)
        return cls(**{each.name: values[each.metadata["merge"]][k] for k, each in enumerate(own)})

    @classmethod
    def width(cls) -> int:
        """Return the number of fields."""
        return len(fields(cls))

    def tagged(self) -> dict[str, float]:
        """Return what is logged: tag -> value. A subclass may add what follows from several fields."""
        named = [(each.metadata["tag"], getattr(self, each.name)) for each in fields(self)]
        return {tag: value for tag, value in named if tag}

"""Legend of a picture: its rows and columns, and how much room a label has."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

ROW = 0.19
"""Height in inches of a row."""
_IN_AN_INCH = 11
"""Number of characters of the small font in an inch."""
_SAMPLE = 8
"""Number of characters that a line's sample and the gaps take."""
_NARROWEST = 15
"""Number of characters of the narrowest column, with its sample."""


@dataclass(frozen=True)
class Room:
    """Room that a legend has below panels.

    Attributes:
        width: in inches.
        most_rows: number of rows, at most half as high as the panels.
        most_columns: number of columns, where labels are as short as can be.
    """

    width: float
    most_rows: int
    most_columns: int

    @classmethod
    def below(cls, width: float, height: float) -> Room:
        """Return the room below panels of a width and a height in inches."""
        return cls(width, max(2, int(height / 2 / ROW)), max(1, int(_IN_AN_INCH * width / _NARROWEST)))

    def longest_label(self, count: int) -> int:
        """Return the number of characters of each of so many labels that there is room for."""
        columns = min(self.most_columns, math.ceil(count / self.most_rows))
        return int(_IN_AN_INCH * self.width / max(1, columns)) - _SAMPLE

    def columns(self, labels: Sequence[str]) -> int:
        """Return the number of columns: as many as fit, and more where there would be too many rows."""
        longest = max(map(len, labels), default=0) + _SAMPLE
        fitting = max(1, int(_IN_AN_INCH * self.width / longest))
        needed = min(self.most_columns, math.ceil(len(labels) / self.most_rows))
        return min(max(fitting, needed), max(1, len(labels)))

    def shown(self, count: int) -> int:
        """Return how many of so many labels there is room for, with one that counts the others."""
        most = self.most_rows * self.most_columns
        return count if count <= most else most - 1


def add_legend(figure: Any, lines: Sequence[Any], labels: Sequence[str], room: Room) -> None:
    """Add a legend below the panels.

    Args:
        figure: of matplotlib.
        lines: those of a panel, one for each label.
        labels: at least one.
        room: below the panels; where it is too small for all, the last entry counts the others.
    """
    from matplotlib.lines import Line2D

    count = room.shown(len(labels))
    handles, texts = list(lines[:count]), list(labels[:count])
    if count < len(labels):
        handles.append(Line2D([], [], linestyle=""))
        texts.append(f"and {len(labels) - count:,} more")
    names = [str(i) for i in range(len(texts))]
    legend = figure.legend(handles, names, loc="outside lower center", ncols=room.columns(texts))
    # by themselves labels that begin with _ would be left out
    for text, label in zip(legend.get_texts(), texts, strict=True):
        text.set_text(label)


def legend_height(labels: Sequence[str], room: Room) -> float:
    """Return the height of a legend in inches."""
    count = min(len(labels), room.shown(len(labels)) + 1)
    return ROW * math.ceil(count / room.columns(labels[:count]))

"""Values that change over a run: `--learning-rate cosine:1e-3`, instead of a number."""

from __future__ import annotations

import contextlib
import math
from dataclasses import dataclass

from fabric_ppo.process.errors import ConfigError, flag

Scheduled = float | str
"""Value of a flag that a schedule may change: a number, or the text of a Schedule."""
SCHEDULED = {"learning_rate": "anneal_lr", "clip_coef": "anneal_clip_coef", "ent_coef": "anneal_ent_coef"}
"""Flags that take schedules, and the flag of each that has a number fall linearly to zero."""
SHAPES = ("constant", "linear", "cosine")
SCHEDULES = "a schedule such as linear:1e-3, cosine:1e-3:1e-5 or constant:1e-3:warmup=0.1"
"""Description of schedules, for errors."""


@dataclass(frozen=True)
class Schedule:
    """Course of a value over a run, as text `SHAPE:START[:END][:warmup=SHARE]`.

    Attributes:
        shape: constant, linear or cosine.
        start: the value that it begins with, after the warm-up.
        end: the value that it comes to at the end of the run.
        warmup: share of the run, from 0 to below 1, in which the value rises linearly to `start`.
    """

    shape: str
    start: float
    end: float
    warmup: float = 0.0

    def __str__(self) -> str:
        """Return the text of it, the same for equal ones.

        >>> print(schedule_of("cosine:1e-3:0:warmup=.1"))
        cosine:0.001:warmup=0.1
        """
        end = f":{self.end!r}" if self.shape != "constant" and self.end else ""
        return f"{self.shape}:{self.start!r}{end}" + (f":warmup={self.warmup!r}" if self.warmup else "")


def schedule_of(value: Scheduled, anneals: bool = False) -> Schedule:
    """Return the schedule of a flag's value; a number is constant, or where it `anneals` falls to zero.

    >>> schedule_of("cosine:1e-3:warmup=0.1")
    Schedule(shape='cosine', start=0.001, end=0.0, warmup=0.1)

    Raises:
        ValueError: a text that describes none.
    """
    if not isinstance(value, str):
        return Schedule("linear", value, 0.0) if anneals else Schedule("constant", value, value)
    shape, *words = value.split(":")
    warmup = float(words.pop().removeprefix("warmup=")) if words and words[-1].startswith("warmup=") else 0.0
    start, *ends = map(float, words)  # a ValueError without any
    end = ends[0] if ends else start if shape == "constant" else 0.0
    is_known = shape in SHAPES and len(ends) <= (shape != "constant")
    if not (is_known and 0 <= warmup < 1 and all(0 <= each < math.inf for each in (start, end))):
        raise ValueError(value)
    return Schedule(shape, start, end, warmup)


def flag_schedule(config: object, name: str) -> Schedule:
    """Return the schedule of a Config's field, one of SCHEDULED."""
    return schedule_of(getattr(config, name), getattr(config, SCHEDULED[name]))


def require_schedule(name: str, value: Scheduled) -> None:
    """Raise a ConfigError for a text that is no schedule; `name` is the field's."""
    try:
        schedule_of(value)
    except ValueError:
        raise ConfigError(f"{flag(name)} {_shown(value)}: a number, or {SCHEDULES}, is expected") from None


def _shown(value: Scheduled) -> str:
    """Return a text as it is; with quotes where it looks like the number that it is not, as from Python."""
    with contextlib.suppress(ValueError):
        float(value)
        return repr(value)
    return str(value)

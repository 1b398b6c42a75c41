"""The panel of a run on a terminal: its progress, its scores, and where it is saved."""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console
from rich.text import Text

from fabric_ppo.process.console import format_number
from fabric_ppo.process.live_area import LiveArea

_POINTS = 40
"""Number of the latest updates whose returns are drawn."""
_SECONDS_BETWEEN_DRAWINGS = 0.5
_MOST_OF_TIME = 0.005
"""Largest share of the time for drawing: on a busy machine the panel is drawn less often."""
_MOST_COLUMNS = 100
_HIGH_KL = 0.05
"""KL divergence of an update above which it is too large, as in a report."""
_GAP = "   "


@dataclass(frozen=True)
class PanelState:
    """The numbers on a panel; None if there is none yet.

    Attributes:
        env_id, run_dir: environment and folder of the run.
        steps, total_steps: transitions so far, and those of the whole run.
        speed, left: transitions per second, and the remaining time, as text.
        returns: mean return of the episodes of each of the last updates, the newest last; updates
            without an episode have none.
        window_mean, window_size: mean return of the last episodes, and their number.
        explained_variance, approx_kl, entropy: of the last update.
        target_kl: `--target-kl`.
        evaluation: mean return of the last evaluation, and the update before it.
        evaluates: true if there are evaluations.
        checkpoint: name of the last checkpoint.
        saved_at: when it was saved, by `time.monotonic`.
    """

    env_id: str
    run_dir: Path
    steps: int
    total_steps: int
    speed: str
    left: str
    returns: Sequence[float] = ()
    window_mean: float | None = None
    window_size: int = 0
    explained_variance: float | None = None
    approx_kl: float | None = None
    entropy: float | None = None
    target_kl: float | None = None
    evaluation: tuple[float, int] | None = None
    evaluates: bool = False
    checkpoint: str | None = None
    saved_at: float | None = None


@dataclass(frozen=True)
class Glyphs:
    """Characters of a panel; `frame` has four corners, and horizontal and vertical lines."""

    done: str
    rest: str
    levels: str
    good: str
    frame: str
    dots: str


UNICODE = Glyphs("━", "─", "▁▂▃▄▅▆▇█", "✓", "╭╮╰╯─│", "…")
ASCII = Glyphs("#", ".", "_.-~=+*#", "ok", "++++-|", "...")


class Panel:
    """A panel on stdout, which must be a terminal."""

    def __init__(self) -> None:
        """Begin without a panel."""
        out = sys.stdout
        self._console = Console(file=out, highlight=False, markup=False, emoji=False)
        self._glyphs = UNICODE if shows_unicode(out.encoding, os.environ) else ASCII
        self._area = LiveArea()
        self._state: PanelState | None = None
        self._next_at = -math.inf

    def update(self, state: PanelState) -> None:
        """Show `state`, unless the panel has just been drawn."""
        self._state = state
        if time.monotonic() >= self._next_at:
            self._draw(state)

    def _draw(self, state: PanelState) -> None:
        started = time.monotonic()
        self._area.draw(panel_lines(state, self._console, self._glyphs, *self._area.size()))
        ended = time.monotonic()
        self._next_at = ended + max(_SECONDS_BETWEEN_DRAWINGS, (ended - started) / _MOST_OF_TIME)

    def close(self, checkpoint: str | None, saved_at: float | None) -> None:
        """Show the last state with the last checkpoint, and leave it above what is printed next."""
        if self._state is not None and not self._area.is_left():
            self._draw(replace(self._state, checkpoint=checkpoint, saved_at=saved_at))
        self._area.close()


def shows_unicode(encoding: str | None, environ: Mapping[str, str]) -> bool:
    """Return True if a terminal is likely to show more than ASCII.

    Args:
        encoding: that of the stream; in the locale C Python takes UTF-8, whatever the terminal has.
        environ: variables of the environment.
    """
    language, characters = environ.get("LANG", ""), environ.get("LC_CTYPE", "")
    if characters == "C.UTF-8" and language in ("C", "POSIX"):
        characters = ""  # Python itself has set it (PEP 538)
    locale = environ.get("LC_ALL") or characters or language or "UTF-8"
    has_glyphs = environ.get("TERM") != "linux"  # its font has few of them
    return has_glyphs and "utf" in locale.lower() and (encoding or "").lower().startswith("utf")


def panel_lines(state: PanelState, console: Console, glyphs: Glyphs, columns: int, rows: int) -> list[str]:
    """Return the lines of a panel for a terminal with these columns and rows.

    They are one column narrower than the terminal, so that it never breaks a line. If it has too few
    rows or columns for a panel, one line is returned.
    """
    width = min(columns - 1, _MOST_COLUMNS)
    texts = _texts(state, glyphs, width - 4)
    if len(texts) + 2 > rows - 2 or width < 20:
        short = Text(f"{_percent(state)} {_join(_progress(state))}")
        short.truncate(max(width, 0))
        return _rendered(console, [short])
    title = Text(_plain(state.env_id, glyphs), style="bold")
    title.truncate(width - 6)
    return _rendered(console, _framed(title, texts, glyphs.frame, width))


def _framed(title: Text, texts: Sequence[Text], frame: str, width: int) -> list[Text]:
    """Return lines with a frame of some characters around them; rich's own takes four times as long."""
    left_top, right_top, left_bottom, right_bottom, line, side = list(frame)
    for text in texts:
        text.truncate(width - 4)
        text.pad_right(width - 4 - text.cell_len)
    rest = line * (width - 5 - title.cell_len)
    top = Text.assemble((f"{left_top}{line} ", "dim"), title, (f" {rest}{right_top}", "dim"))
    inside = [Text.assemble((f"{side} ", "dim"), text, (f" {side}", "dim")) for text in texts]
    return [top, *inside, Text(f"{left_bottom}{line * (width - 2)}{right_bottom}", style="dim")]


def _rendered(console: Console, texts: Sequence[Text]) -> list[str]:
    """Return lines with the codes for the colors that the terminal has."""
    with console.capture() as capture:
        console.print(Text("\n").join(texts), soft_wrap=True)
    return capture.get().splitlines()


def _texts(state: PanelState, glyphs: Glyphs, width: int) -> list[Text]:
    """Return the lines inside the frame, each at most `width` wide."""
    groups = (_progress(state), _returns(state, glyphs, width), _learning(state, glyphs), _kept(state))
    rows = [row for group in groups for row in _flow(group, width)]
    path = _plain(str(state.run_dir), glyphs)
    if len(path) > width:
        path = glyphs.dots + path[len(path) - width + len(glyphs.dots) :]
    return [_bar(state, glyphs, width), *rows, Text(path, style="dim")]


def _flow(cells: Sequence[Text], width: int) -> list[Text]:
    """Put cells side by side, as many on a line as fit."""
    rows: list[Text] = []
    for cell in cells:
        if rows and rows[-1].cell_len + len(_GAP) + cell.cell_len <= width:
            rows[-1].append(_GAP).append_text(cell)
        else:
            rows.append(cell.copy())
    return rows


def _bar(state: PanelState, glyphs: Glyphs, width: int) -> Text:
    percent = _percent(state)
    length = max(0, width - len(percent) - 1)
    done = round(length * _share(state))
    return Text.assemble((glyphs.done * done, "green"), (glyphs.rest * (length - done), "dim"), f" {percent}")


def _share(state: PanelState) -> float:
    return min(1.0, state.steps / max(state.total_steps, 1))


def _percent(state: PanelState) -> str:
    return f"{math.floor(100 * _share(state)):3d} %"


def _progress(state: PanelState) -> list[Text]:
    numbers = (f"{state.steps:,}/{state.total_steps:,} steps", f"{state.speed} steps/s", f"{state.left} left")
    return [Text(text) for text in numbers]


def _join(cells: Sequence[Text]) -> str:
    return _GAP.join(cell.plain for cell in cells)


def _returns(state: PanelState, glyphs: Glyphs, width: int) -> list[Text]:
    points = list(state.returns)[-min(_POINTS, max(width, 1)) :]
    if not points:
        return [_named("return", "-")]
    cells = [_named("return", format_number(points[-1])), Text(sparkline(points, glyphs.levels), style="cyan")]
    cells.append(Text(f"{format_number(min(points))} to {format_number(max(points))}"))
    if state.window_mean is not None:
        cells.append(_named(f"last {state.window_size} episodes", format_number(state.window_mean)))
    return cells


def sparkline(values: Sequence[float], levels: str) -> str:
    """Return a character for each value, from the lowest of `levels` to the highest.

    Equal values are all in the middle; values that are not finite have a space.
    """
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        return " " * len(values)
    low, high = min(finite), max(finite)
    # halved: the difference of two finite numbers may be infinite
    span = high / 2 - low / 2
    heights = [(value / 2 - low / 2) / span if span > 0 else 0.5 for value in values]
    top = len(levels) - 1
    return "".join(levels[round(each * top)] if math.isfinite(each) else " " for each in heights)


def _learning(state: PanelState, glyphs: Glyphs) -> list[Text]:
    variance, kl = state.explained_variance, state.approx_kl
    limit = min(_HIGH_KL, math.inf if state.target_kl is None else state.target_kl)
    cells = [_named("explained variance", "-" if variance is None else format_number(variance))]
    if variance is not None:
        cells[-1].append_text(_mark(variance >= 0, "low", glyphs))
    cells.append(_named("KL", "-" if kl is None else format_number(kl)))
    if kl is not None:
        cells[-1].append_text(_mark(kl <= limit, "high", glyphs))
    cells.append(_named("entropy", "-" if state.entropy is None else format_number(state.entropy)))
    return cells


def _mark(is_healthy: bool, fault: str, glyphs: Glyphs) -> Text:
    """Return the mark of a value, also legible without colors."""
    return Text(f" {glyphs.good}", style="green") if is_healthy else Text(f" ! {fault}", style="bold yellow")


def _kept(state: PanelState) -> list[Text]:
    cells = []
    if state.evaluates:
        text = "-" if state.evaluation is None else "{} after update {}".format(*_of_evaluation(state.evaluation))
        cells.append(_named("evaluation", text))
    text = state.checkpoint or "none yet"
    if state.saved_at is not None:
        text += f", {_ago(time.monotonic() - state.saved_at)} ago"
    cells.append(_named("checkpoint", text))
    return cells


def _of_evaluation(evaluation: tuple[float, int]) -> tuple[str, str]:
    return format_number(evaluation[0]), f"{evaluation[1]:,}"


def _ago(seconds: float) -> str:
    for unit, size in (("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{int(seconds / size)} {unit}"
    return f"{int(seconds)} s"


def _named(name: str, value: str) -> Text:
    return Text.assemble((name, "dim"), " ", (value, "bold"))


def _plain(text: str, glyphs: Glyphs) -> str:
    """Return a text without control characters, and without those that the terminal does not have."""
    is_ascii = glyphs is ASCII
    return "".join(each if each.isprintable() and (each.isascii() or not is_ascii) else "?" for each in text)

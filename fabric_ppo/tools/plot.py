"""Pictures of curves: of single runs, or of groups of runs as bands."""

from __future__ import annotations

import contextlib
import io
import itertools
import logging
import math
import re
import sys
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from logging.handlers import BufferingHandler
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fabric_ppo.process.console import print_line
from fabric_ppo.process.errors import ConfigError, first_line
from fabric_ppo.process.extras import install
from fabric_ppo.process.files import write_atomically
from fabric_ppo.tools.curves import common_grid
from fabric_ppo.tools.plot_legend import Room, add_legend, legend_height
from fabric_ppo.tools.tables import printable

PALETTE = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#000000")
"""Colours that people with any colour vision tell apart (M. Okabe and K. Ito, 2008)."""
_DASHES = ("-", "--", ":", "-.")
"""Line styles, the next one where all colours are used."""
_LOOK = {
    **{"axes.grid": True, "grid.alpha": 0.3, "axes.spines.top": False, "axes.spines.right": False},
    **{"lines.linewidth": 1.5, "legend.fontsize": "small", "legend.frameon": False, "savefig.dpi": 150},
    # TrueType: journals refuse the fonts of type 3 that are the default, and text stays text
    **{"pdf.fonttype": 42, "ps.fonttype": 42},
    # otherwise ids in an SVG are random: the same curves are to give the same file
    "svg.hashsalt": "fabric-ppo",
}
"""Settings of matplotlib; a style comes before them."""
_PANEL, _ONE_PANEL = (3.6, 2.7), (7.0, 4.0)
"""Width and height in inches: of a panel among several, and of a picture of one."""
_MOST_COLUMNS = 3
KINDS = (".svg", ".png", ".pdf")
"""Ends of the names of pictures."""
_NO_GLYPH = re.compile(r"Glyph (\d+) ")
"""Beginning of matplotlib's warning about a character that no font has."""
_LONG = 10_000
"""Numbers on the x axis from which on thousands are written as k."""
Y_TITLES = {
    "Rewards/rew_avg": "mean return of the episodes that ended",
    "Rewards/rew_last_100": "mean return of the last 100 episodes",
    "Game/ep_len_avg": "mean length of the episodes that ended",
}
"""Titles of y axes; other metrics have their names."""


@dataclass(frozen=True)
class Line:
    """Line of a picture, with a band around it if there is one.

    Attributes:
        label: text in the legend.
        x, y: its points, `[points]` each; there may be none.
        band: lower and upper bounds, `[points]` each.
    """

    label: str
    x: NDArray[np.float64]
    y: NDArray[np.float64]
    band: tuple[NDArray[np.float64], NDArray[np.float64]] | None = None


@dataclass(frozen=True)
class Panel:
    """Axes of a picture: a metric's lines, in the order of the legend."""

    metric: str
    lines: Sequence[Line]


@dataclass(frozen=True)
class Look:
    """Look of a picture.

    Attributes:
        x_title: title of the x axes.
        title: text above the picture; empty for none.
        size: width and height in inches; None for one that fits the number of panels.
        style: name or file of a style sheet of matplotlib; empty for none.
        log_x, log_y: True for logarithmic axes; those of x have the powers of two.
    """

    x_title: str = "transitions"
    title: str = ""
    size: tuple[float, float] | None = None
    style: str = ""
    log_y: bool = False
    log_x: bool = False


def draw_panels(out: Path, panels: Sequence[Panel], look: Look) -> None:
    """Draw panels into a picture, with one legend for all; the same lines give the same file.

    Args:
        out: picture to write.
        panels: at least one; all have the same labels.
        look: what it looks like.

    Raises:
        ConfigError: matplotlib or the style is missing, or `out` is no kind of picture.
    """
    with _matplotlib(look.style):
        from matplotlib.figure import Figure

        columns, rows = _grid(len(panels))
        labels = [line.label for line in panels[0].lines]
        width, height = panels_size(len(panels), look)
        room = Room.below(width, height)
        size = look.size or (width, height + legend_height(labels, room))
        figure = Figure(figsize=size, layout="constrained")
        grid = figure.subplots(rows, columns, squeeze=False).flatten()
        for axes, panel in zip(grid, panels, strict=False):
            _draw_panel(axes, panel, look, is_alone=len(panels) == 1)
        for axes in grid[len(panels) :]:
            axes.remove()
        if look.title:
            figure.suptitle(look.title)
        add_legend(figure, grid[0].get_lines(), labels, room)
        _save(figure, out)


def _grid(count: int) -> tuple[int, int]:
    """Return columns and rows of so many panels."""
    columns = 2 if count in (2, 4) else min(_MOST_COLUMNS, count)
    return columns, math.ceil(count / columns)


def panels_size(count: int, look: Look) -> tuple[float, float]:
    """Return width and height in inches of so many panels, without the legend."""
    if look.size is not None:
        return look.size[0], look.size[1] * 2 / 3
    columns, rows = _grid(count)
    return _ONE_PANEL if count == 1 else (_PANEL[0] * columns, _PANEL[1] * rows)


def require_kind(out: Path) -> None:
    """Raise a ConfigError for a name that is not that of a picture."""
    if out.suffix.lower() not in KINDS:
        raise ConfigError(f"--out {out}: a name that ends with {', '.join(KINDS)} is expected")


def _draw_panel(axes: Any, panel: Panel, look: Look, is_alone: bool) -> None:
    from matplotlib.ticker import EngFormatter, StrMethodFormatter

    for line, (dash, color) in zip(panel.lines, itertools.cycle(_styles()), strict=False):
        marker = "o" if len(line.x) == 1 else ""
        axes.plot(line.x, line.y, color=color, linestyle=dash, marker=marker)
        if line.band is not None:
            axes.fill_between(line.x, *line.band, color=color, alpha=0.2, linewidth=0)
    axes.set(xlabel=look.x_title)
    if is_alone:
        axes.set_ylabel(Y_TITLES.get(panel.metric, panel.metric), wrap=True)
    else:  # in a small panel there is more room above
        axes.set_title(panel.metric, fontsize="medium")
    if max((line.x[-1] for line in panel.lines if len(line.x)), default=0) >= _LONG:
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))  # 20k, 1M
    if look.log_y:
        axes.set_yscale("log")
    if look.log_x:
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,g}"))


def _styles() -> list[tuple[str, str]]:
    """Return dashes and colours of lines: the colours of the style, with each of the dashes."""
    import matplotlib

    colors = matplotlib.rcParams["axes.prop_cycle"].by_key().get("color", PALETTE)
    return list(itertools.product(_DASHES, colors))


def draw(out: Path, curves: Sequence[NDArray[Any]], title: str, goal: float | None) -> None:
    """Draw the returns of several seeds over transitions, with their mean and the goal.

    Args:
        out: picture to write.
        curves: `[2, points]` each, transitions and returns of a seed.
        title: text above the curves.
        goal: return at which a line is drawn; None for none.

    Raises:
        ConfigError: as `draw_panels`.
    """
    with _matplotlib():
        from matplotlib.figure import Figure

        figure = Figure(figsize=_ONE_PANEL, layout="constrained")
        axes = figure.subplots()
        axes.set(xlabel="transitions", ylabel=Y_TITLES["Rewards/rew_avg"], title=title)
        for steps, returns in curves:
            axes.plot(steps, returns, linewidth=0.6, alpha=0.5, color=PALETTE[0])
        # the mean only where all curves have points, interpolated at the same transitions
        shared = common_grid([(steps, returns) for steps, returns in curves])
        mean = np.mean([np.interp(shared, *each) for each in curves], axis=0)
        axes.plot(shared, mean, linewidth=2, color=PALETTE[0], label=f"mean of {len(curves)}")
        if goal is not None:
            axes.axhline(goal, linewidth=1, linestyle="--", color="gray", label="goal")
        axes.legend()
        _save(figure, out)


@contextlib.contextmanager
def _matplotlib(style: str = "") -> Iterator[None]:
    """Have matplotlib draw as `_LOOK` and a style say, whatever its own configuration is."""
    try:
        import matplotlib.style
        from cycler import cycler
    except ImportError:
        raise ConfigError(f"plot: needs matplotlib: {install('plot')}") from None
    look = _LOOK | {"axes.prop_cycle": cycler(color=PALETTE)}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with matplotlib.style.context(["default", look, *([_style_of(style)] if style else [])], after_reset=True):
            yield
    found = [_NO_GLYPH.match(str(each.message)) for each in caught]
    missing = "".join(dict.fromkeys(chr(int(each[1])) for each in found if each is not None))
    if missing:
        font = "a style sheet with a font.family that has them, --style, draws them"
        print_line(f"note: no font has {printable(missing)}: boxes stand for these characters; {font}", sys.stderr)


def _style_of(style: str) -> Any:
    """Return a style that matplotlib knows by its name, or the settings in a file."""
    import matplotlib.style

    if style == "default" or style in matplotlib.style.available:
        return style
    path = Path(style)
    if not path.is_file():
        known = ", ".join(name for name in matplotlib.style.available if not name.startswith("_"))
        raise ConfigError(f"--style {style}: no such file; a style sheet of matplotlib, or one of {known} is expected")
    # what is wrong in a file is only logged
    logger, handler = logging.getLogger("matplotlib"), BufferingHandler(1000)
    logger.addHandler(handler)
    propagates, logger.propagate = logger.propagate, False
    try:
        settings = matplotlib.rc_params_from_file(path, use_default_template=False)
    except (OSError, ValueError) as error:
        raise ConfigError(f"--style {style}: {first_line(error)}") from None
    finally:
        logger.removeHandler(handler)
        logger.propagate = propagates
    if handler.buffer:
        reason = " ".join(handler.buffer[0].getMessage().split())
        raise ConfigError(f"--style {style}: {reason[:300]}")
    return settings


def _save(figure: Any, out: Path) -> None:
    """Write a picture, whole or not at all.

    Raises:
        ConfigError: it is no kind of picture, or cannot be drawn or written.
    """
    require_kind(out)
    kind = out.suffix[1:].lower()
    dates = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}
    content = io.BytesIO()
    try:
        figure.savefig(content, format=kind, metadata=dates.get(kind))
        if out.exists() and not out.is_file():
            out.write_bytes(content.getvalue())  # such as /dev/stdout
        else:
            write_atomically(out.resolve(), content.getvalue())
    except OSError as error:
        raise ConfigError(f"--out {out}: cannot be written ({error.strerror or first_line(error)})") from None
    except (ValueError, RuntimeError) as error:  # as of a formula in a title, or of LaTeX, which a style may ask for
        raise ConfigError(f"--out {out}: cannot be drawn ({' '.join(str(error).split())[:300]})") from None

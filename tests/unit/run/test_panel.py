"""The panel of a run: what it shows at any size of a terminal, and with what characters."""

from __future__ import annotations

import io
import math
import re
import time
from dataclasses import replace
from pathlib import Path

import pytest
from rich.cells import cell_len
from rich.console import Console

from fabric_ppo.process.console import format_number
from fabric_ppo.run import panel as module
from fabric_ppo.run.panel import ASCII, UNICODE, Panel, PanelState, panel_lines, shows_unicode, sparkline
from tests.fixtures.terminals import Terminal

STATE = PanelState(
    env_id="CartPole-v1",
    run_dir=Path("/home/me/logs/torch_logs/2026-11-27_07-50-12_CartPole-v1_default_42"),
    steps=37_376,
    total_steps=65_536,
    speed="4,120",
    left="0:07",
    returns=(21.0, 35.5, 180.25),
    window_mean=61.7,
    window_size=100,
    explained_variance=0.712,
    approx_kl=0.0123,
    entropy=0.551,
    evaluation=(200.0, 1100),
    evaluates=True,
    checkpoint="update_280",
)
FIGURES = [
    *("57 %", "37,376/65,536 steps", "4,120 steps/s", "0:07 left", "return 180.2", "21.0 to 180.2"),
    *("last 100 episodes 61.7", "explained variance 0.712", "KL 0.0123", "entropy 0.551"),
    *("evaluation 200.0 after update 1,100", "checkpoint update_280", "CartPole-v1_default_42"),
]
WILD = replace(STATE, env_id="module\n\x1b[31m:Ünï 環境" * 9, run_dir=Path("/tmp/\x1b[2J\udcff/" + "環" * 90))


def lines_of(state, columns=80, rows=24, glyphs=UNICODE, **settings):
    console = Console(file=io.StringIO(), width=500, _environ={}, highlight=False, **settings)
    return panel_lines(state, console, glyphs, columns, rows)


@pytest.mark.parametrize("columns", [40, 60, 80, 120, 200, 1000])
@pytest.mark.parametrize("glyphs", [UNICODE, ASCII], ids=["unicode", "ascii"])
def test_all_figures_at_any_width(columns, glyphs):
    lines = lines_of(STATE, columns, glyphs=glyphs)
    for figure in FIGURES:
        assert any(figure in line for line in lines), figure


@pytest.mark.parametrize("columns", [1, 5, 19, 20, 21, 22, 39, 40, 80, 99, 101, 200])
@pytest.mark.parametrize("rows", [1, 2, 3, 9, 24])
@pytest.mark.parametrize("state", [STATE, WILD, PanelState("x", Path("x"), 0, 0, "0.0", "0:00")])
def test_no_line_reaches_the_last_column_nor_the_first_row(columns, rows, state):
    """A terminal would break the line, or scroll, and the next drawing begin at another place."""
    lines = lines_of(state, columns, rows)
    assert len(lines) <= max(1, rows - 2)
    assert all(cell_len(line) < columns for line in lines)
    if len(lines) > 1:
        assert len({cell_len(line) for line in lines}) == 1


@pytest.mark.parametrize("glyphs", [UNICODE, ASCII], ids=["unicode", "ascii"])
def test_names_cannot_steer_the_terminal(glyphs):
    text = "".join(lines_of(WILD, glyphs=glyphs))
    assert text.isprintable()
    assert text.isascii() or glyphs is UNICODE
    text.encode()  # no half of a surrogate


@pytest.mark.parametrize("columns", [40, 80, 200])
def test_ascii_is_enough(columns):
    assert "".join(lines_of(replace(STATE, approx_kl=1.0), columns, glyphs=ASCII)).isascii()


def test_colors_change_nothing_but_colors():
    plain = lines_of(STATE)
    colored = lines_of(STATE, force_terminal=True, color_system="truecolor")
    assert plain != colored
    assert [re.sub(r"\x1b\[[\d;]*m", "", line) for line in colored] == plain


@pytest.mark.parametrize(
    ("kl", "target", "is_high"),
    [(0.01, None, 0), (0.05, None, 0), (0.051, None, 1), (0.03, 0.02, 1), (0.02, 0.02, 0), (0.06, 0.5, 1)],
)
@pytest.mark.parametrize("columns", [40, 80])
def test_a_kl_divergence_above_its_limit_has_a_mark(kl, target, is_high, columns):
    text = "\n".join(lines_of(replace(STATE, approx_kl=kl, target_kl=target), columns))
    assert (f"KL {kl:g} ! high" in text) == is_high
    assert (f"KL {kl:g} ✓" in text) != is_high


@pytest.mark.parametrize(("variance", "mark"), [(0.5, "✓"), (0.0, "✓"), (-0.25, "! low"), (-123456.789, "! low")])
def test_a_negative_explained_variance_has_a_mark(variance, mark):
    for columns in (40, 80):
        text = "\n".join(lines_of(replace(STATE, explained_variance=variance), columns))
        assert f"explained variance {format_number(variance)} {mark}" in text


def test_what_is_not_there_yet_is_a_dash():
    state = PanelState("x", Path("logs/x"), 0, 100, "10", "0:10", evaluates=True)
    text = "\n".join(lines_of(state))
    for words in (
        "0 %",
        "return -",
        "explained variance -",
        "KL -",
        "entropy -",
        "evaluation -",
        "checkpoint none yet",
    ):
        assert words in text
    assert "evaluation" not in "\n".join(lines_of(replace(state, evaluates=False)))


@pytest.mark.parametrize(("seconds", "words"), [(0, "0 s"), (59.9, "59 s"), (60, "1 min"), (7300, "2 h")])
def test_the_age_of_a_checkpoint(monkeypatch, seconds, words):
    monkeypatch.setattr(time, "monotonic", lambda: 1e6 + seconds)
    assert f"update_280, {words} ago" in "\n".join(lines_of(replace(STATE, saved_at=1e6)))


def test_a_sparkline_has_the_order_of_its_values():
    assert sparkline([0, 1, 2, 3, 4, 5, 6, 7], UNICODE.levels) == UNICODE.levels
    assert sparkline([3.0, -4.0, 3.0], UNICODE.levels) == "█▁█"
    assert sparkline([-1e308, 1e308], ASCII.levels) == "_#"
    assert len(set(sparkline([5.0] * 9, UNICODE.levels))) == 1
    assert sparkline([math.nan, 1, math.inf, 2], UNICODE.levels) == " ▁ █"
    assert sparkline([math.nan], UNICODE.levels) == " "
    assert sparkline([], UNICODE.levels) == ""


@pytest.mark.parametrize("value", [0.0, 1e-300, -0.00123, 9.99, 99.96, -123.45, 12345.678, 1e6, -1e300, 5e-324])
def test_a_number_is_short_and_near(value):
    text = format_number(value)
    assert len(text) <= 10
    assert float(text.replace(",", "")) == pytest.approx(value, rel=0.006)


def test_numbers_that_are_none():
    assert format_number(math.inf) == "inf"
    assert format_number(math.nan) == "nan"


@pytest.mark.parametrize(
    ("expected", "environ"),
    [
        (True, {"LANG": "en_US.UTF-8"}),
        (True, {"LANG": "C.UTF-8"}),
        (True, {"LC_CTYPE": "UTF-8"}),
        (True, {}),
        (True, {"LC_CTYPE": "C.UTF-8"}),
        (False, {"LANG": "C"}),
        (False, {"LANG": "POSIX"}),
        (False, {"LANG": "C", "LC_CTYPE": "C.UTF-8"}),  # as Python sets it
        (False, {"LC_ALL": "C", "LANG": "en_US.UTF-8"}),
        (False, {"LC_ALL": "de_DE.ISO-8859-1"}),
        (True, {"LC_ALL": "de_DE.utf8", "LANG": "C"}),
        (False, {"LANG": "en_US.UTF-8", "TERM": "linux"}),
    ],
)
def test_where_more_than_ascii_is_shown(expected, environ):
    assert shows_unicode("utf-8", environ) == expected
    assert not shows_unicode("ascii", environ)
    assert not shows_unicode(None, environ)


def test_drawing_takes_a_small_share_of_the_time(monkeypatch):
    """With a clock that is given: on a machine where it takes 0.1 s, and updates take 1 s."""
    now, drawn = [0.0], []

    def draw(*_):
        now[0] += 0.1
        drawn.append(now[0])
        return ["x"]

    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(module, "panel_lines", draw)
    terminal = Terminal(80, 24)
    with terminal.as_streams():
        panel = Panel()
        for _ in range(1000):
            now[0] += 1.0
            panel.update(STATE)
        panel.close(None, None)
    terminal.close()
    assert len(drawn) >= 10
    assert 0.1 * len(drawn) <= 0.01 * now[0]


def test_it_is_drawn_a_few_times_a_second_and_at_the_end(monkeypatch):
    """With a clock that is given: 1000 updates in 10 s."""
    now = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    terminal = Terminal(80, 24)
    with terminal.as_streams():
        panel = Panel()
        for number in range(1000):
            now[0] = number / 100
            panel.update(replace(STATE, steps=number))
        terminal.drain()
        assert 10 <= terminal.written.count(b"steps/s") <= 41
        panel.update(replace(STATE, steps=65_000))
        panel.close("update_999", None)
    terminal.drain()
    text = "\n".join(terminal.lines)
    assert "65,000/65,536" in text
    assert "update_999" in text
    terminal.close()

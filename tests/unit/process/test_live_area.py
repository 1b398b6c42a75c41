"""What a terminal shows where an area below the text is drawn again and again, and others print meanwhile."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import subprocess
import sys

import pytest

from fabric_ppo.process.live_area import LiveArea
from tests.fixtures.terminals import Terminal

AREA = ["+----+", "| ab |", "+----+"]


@pytest.fixture
def terminal():
    """A terminal of 40 x 12."""
    made = Terminal(40, 12)
    yield made
    made.close()


@contextlib.contextmanager
def area_on(terminal):
    """An area on a terminal that stdout and stderr are in the block."""
    with terminal.as_streams():
        area = LiveArea()
        try:
            yield area
        finally:
            area.close()


def shown(terminal):
    """Lines of the terminal, those that left it too, without empty ones at its end."""
    terminal.drain()
    lines = terminal.history
    while lines and not lines[-1]:
        lines.pop()
    return lines


def test_drawn_again_it_is_there_once(terminal):
    with area_on(terminal) as area:
        for number in range(30):
            area.draw(["+----+", f"| {number:2d} |", "+----+"])
        assert shown(terminal) == ["", "+----+", "| 29 |", "+----+"]


@pytest.mark.parametrize(("first", "second"), [(AREA, AREA[:1]), (AREA[:1], AREA), (["wide" * 9], ["x"])])
def test_nothing_is_left_of_other_lines(terminal, first, second):
    with area_on(terminal) as area:
        area.draw(first)
        area.draw(second)
        assert shown(terminal) == ["", *second]


@pytest.mark.parametrize("name", ["stdout", "stderr"])
@pytest.mark.parametrize("count", [1, 2, 3, 50])
def test_lines_that_are_printed_are_above_it(terminal, name, count):
    with area_on(terminal) as area:
        area.draw(AREA)
        lines = [f"a line that is longer than the area {number}" for number in range(count)]
        print("\n".join(line[:39] for line in lines), file=getattr(sys, name))
        area.draw(AREA)
        assert shown(terminal) == [*(line[:39] for line in lines), "", *AREA]


def test_parts_of_a_line_wait_for_its_end(terminal):
    with area_on(terminal) as area:
        area.draw(AREA)
        print("a", end="", flush=True)
        area.draw(AREA)
        assert shown(terminal) == ["", *AREA]
        print("b")
        assert shown(terminal) == ["ab", "", *AREA]
        print("end", end="")
        area.close()
        print("next")
        assert shown(terminal) == ["ab", "end", "", *AREA, "next"]


def test_a_bar_of_another_program_does_not_grow(terminal):
    with area_on(terminal) as area:
        area.draw(AREA)
        for number in range(10_000):
            sys.stderr.write(f"\r{number}/10000 of something")
        sys.stderr.write("\n")
        assert shown(terminal) == ["9999/10000 of something", "", *AREA]


@pytest.mark.parametrize("count", [1, 2, 20])
def test_lines_of_another_process_are_not_lost(terminal, count):
    """It writes where the cursor is, and knows nothing of an area; as C code in this process does."""
    with area_on(terminal) as area:
        area.draw(AREA)
        code = f"for number in range({count}): print('from another process', number)"
        subprocess.run([sys.executable, "-c", code], stdout=terminal.slave, check=True)
        area.draw(AREA)
        lines = shown(terminal)
        assert lines[-3:] == AREA
        for number in range(count):
            assert any(f"from another process {number}" in line for line in lines)


def test_a_fork_prints_as_ever(terminal):
    with area_on(terminal) as area:
        area.draw(AREA)
        sys.stdout.write("of the parent")
        child = os.fork()
        if child == 0:
            sys.stdout.write("of the child\n")
            sys.stdout.flush()
            area.draw(["of the child"])
            os._exit(0)
        os.waitpid(child, 0)
        area.draw(AREA)
        lines = shown(terminal)
        assert lines[0] == "of the child"
        assert lines[-3:] == AREA
        assert not any("parent" in line for line in lines)


@pytest.mark.parametrize("size", [(20, 12), (100, 12), (40, 30)])
def test_another_size_leaves_no_second_one(terminal, size):
    with area_on(terminal) as area:
        area.draw(AREA)
        terminal.drain()
        terminal.resize(*size)
        assert area.size() == size
        area.draw(AREA)
        assert shown(terminal)[-3:] == AREA
        assert sum(line == AREA[1] for line in shown(terminal)) == 1


def test_no_mode_is_changed(terminal):
    """The cursor is visible and colors are as before, so that a kill leaves a terminal that works."""
    with area_on(terminal) as area:
        area.draw(AREA)
        terminal.drain()
        assert terminal.cursor == (0, 0, False)
        assert b"\x1b[?" not in terminal.written


def test_closed_it_stays_and_gives_all_back(terminal):
    with terminal.as_streams():
        before = (sys.stdout, sys.stderr, signal.getsignal(signal.SIGTSTP))
        area = LiveArea()
        kept = sys.stderr
        area.draw(AREA)
        area.close()
        area.close()
        assert (sys.stdout, sys.stderr, signal.getsignal(signal.SIGTSTP)) == before
        print("below")
        kept.write("by one who kept the stream\n")
        kept.flush()
        area.draw(AREA)
        assert shown(terminal) == ["", *AREA, "below", "by one who kept the stream"]


def test_a_stream_that_somebody_else_has_set_stays(terminal):
    with terminal.as_streams():
        area, other = LiveArea(), io.StringIO()
        with contextlib.redirect_stdout(other):
            area.close()
            assert sys.stdout is other


def test_a_handler_that_is_there_stays(terminal):
    with terminal.as_streams():

        def own(*_):
            pass

        before = signal.signal(signal.SIGTSTP, own)
        try:
            LiveArea().close()
            assert signal.getsignal(signal.SIGTSTP) is own
        finally:
            signal.signal(signal.SIGTSTP, before)


def test_a_stderr_that_leads_elsewhere_is_left_alone(terminal):
    errors = io.StringIO()
    with terminal.as_streams(), contextlib.redirect_stderr(errors):
        area = LiveArea()
        assert sys.stderr is errors
        area.close()


def test_the_stream_is_still_the_terminals(terminal):
    with area_on(terminal):
        assert sys.stdout.isatty()
        assert sys.stdout.fileno() == terminal.slave
        assert sys.stdout.encoding.lower() == "utf-8"
        sys.stdout.writelines(["a\n", "b\n"])
        with pytest.raises(TypeError):
            sys.stdout.write(b"bytes")
        assert shown(terminal) == ["a", "b"]

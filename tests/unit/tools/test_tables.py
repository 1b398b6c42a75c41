"""Tables on terminals of any width, and as columns."""

from __future__ import annotations

import pytest

from fabric_ppo.tools import tables
from fabric_ppo.tools.tables import Column, fitting, print_table, printable, room_for

COLUMNS = [Column("name", wraps=True), Column("state"), Column("speed", is_number=True, rank=1), Column("day", rank=2)]
ROWS = [["n" * 40, "done", "1,000", "2026-01-01"], ["b [red]c", "failed", "", "2026-01-02"]]


def test_elsewhere_than_on_a_terminal_each_line_has_as_many_words_as_there_are_columns(capsys):
    print_table(COLUMNS, [*ROWS, ["a\tb\nc", " ", "x", "\x1b[31m"]])
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [len(line) for line in lines] == [4] * 4
    assert lines[0] == ["name", "state", "speed", "day"]
    assert lines[2] == ["b_[red]c", "failed", "-", "2026-01-02"]
    assert lines[3] == [r"a\tb\nc", "_", "x", r"\x1b[31m"]


@pytest.mark.parametrize("width", [26, 30, 45, 60, 200])
def test_no_line_is_wider_than_the_terminal_and_nothing_is_cut(capsys, monkeypatch, width):
    monkeypatch.setattr(tables, "is_terminal", lambda _: True)
    monkeypatch.setenv("COLUMNS", str(width))
    print_table(COLUMNS, ROWS, {"done": "green"})
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= width
    text = "".join(out.split())
    assert text.count("n") >= 40
    assert "…" not in text
    assert {"done", "failed"} <= set(out.split())
    assert ("speed" in out, "2026-01-02" in out) == (width >= 45, width >= 60)


def test_columns_of_the_greatest_rank_go_first():
    assert [fitting(COLUMNS, ROWS, width) for width in (200, 50, 40, 10)] == [
        [0, 1, 2, 3],
        [0, 1, 2, 3],
        [0, 1, 2],
        [0, 1],
    ]


def test_at_least_one_column_has_room(capsys, monkeypatch):
    columns = [Column("group"), *(Column(f"g{i}", wraps=True) for i in range(5))]
    rows = [["x" * 20, *"12345"]]
    assert room_for(columns, rows, 1) == 5
    monkeypatch.setattr(tables, "is_terminal", lambda _: True)
    for width, count in ((200, 5), (60, 2), (10, 1)):
        monkeypatch.setenv("COLUMNS", str(width))
        assert room_for(columns, rows, 1) == count


def test_what_a_terminal_would_act_on_is_escaped():
    assert printable("a\x1b[2Jb\u202e\n") == r"a\x1b[2Jb\u202e\n"
    assert printable("naïve 環境") == "naïve 環境"

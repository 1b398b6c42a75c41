"""Which lines of a traceback are the user's own."""

from __future__ import annotations

import json

import pytest

from fabric_ppo.process.errors import ConfigError, one_line, reason_line
from fabric_ppo.process.files import require_text_path
from fabric_ppo.process.frames import locate_error, user_frames


def error_of(call):
    with pytest.raises(ValueError, match=r".") as caught:
        call()
    return caught.value


def code_of(path, text):
    names = {}
    exec(compile(text, str(path), "exec"), names)
    return names["run"]


def test_the_last_line_of_the_user_is_named_and_not_that_of_a_library(tmp_path):
    run = code_of(tmp_path / "mine.py", "import json\n\ndef run():\n    json.loads('{')\n")
    error = error_of(run)
    assert locate_error(error).endswith(f" in {tmp_path}/mine.py, line 4")
    assert [frame.lineno for frame in user_frames(error) if frame.filename.endswith("mine.py")] == [4]
    assert not any("json" in frame.filename for frame in user_frames(error))


def test_an_installed_part_of_the_user_is_a_library(tmp_path):
    inner = code_of(tmp_path / "site-packages/theirs.py", "def run():\n    raise ValueError('x')\n")
    run = code_of(tmp_path / "mine.py", "def make(inner):\n    return lambda: inner()\nrun = make\n")(inner)
    assert locate_error(error_of(run)) == f"ValueError: x in {tmp_path}/mine.py, line 2"


def test_a_cell_of_a_notebook_is_the_users(tmp_path, monkeypatch):
    """Also where the working directory has been removed."""
    run = code_of("<ipython-input-3>", "def run():\n    raise ValueError('x')\n")
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert locate_error(error_of(run)).endswith(" in <ipython-input-3>, line 2")


def test_an_error_without_a_traceback_has_no_place():
    assert locate_error(ValueError("x")) == "ValueError: x"


def test_of_this_package_alone_the_place_is_named():
    error = error_of(lambda: require_text_path("--out", "a\0b"))
    assert isinstance(error, ConfigError)
    error.__traceback__ = error.__traceback__.tb_next.tb_next
    assert "fabric_ppo/process/files.py, line" in locate_error(error)


def test_of_a_library_alone_there_is_no_place():
    error = error_of(lambda: json.loads("{"))
    while error.__traceback__ and "json" not in error.__traceback__.tb_frame.f_code.co_filename:
        error.__traceback__ = error.__traceback__.tb_next
    assert ", line" not in locate_error(error)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("a\n  b\tc", "a b c"),
        ("red \x1b[31m", r"red \x1b[31m"),
        ("\u202e", r"\u202e"),
        ("full\n[SQL: \nCREATE TABLE x (\n a\n)]\n(Background on: https://x)", "full"),
        ("", ""),
    ],
)
def test_a_reason_is_one_printable_line(text, line):
    assert reason_line(text) == line


def test_a_long_reason_is_cut_in_the_middle():
    assert len(reason_line("x " * 5000)) <= 410
    assert reason_line("begin " + "x " * 5000 + "end").endswith("end")
    assert one_line("y" * 1500) == "y" * 1500

"""The text of a rank that has failed."""

from __future__ import annotations

import pytest

from fabric_ppo.config import Config
from fabric_ppo.process.failures import format_failure, mark_callback
from fabric_ppo.run.callbacks import Callback, Callbacks
from fabric_ppo.run.counts import Counts
from fabric_ppo.run.env_attributes import EnvAttributes

MINE = """
def deep(error):
    raise error


class Mine(Base):
    def on_end(self, run, summary):
        deep(self.error)
"""


def callback_that_raises(path, error):
    names = {"Base": Callback, "__name__": "mine"}
    path.write_text(MINE)
    exec(compile(MINE, str(path), "exec"), names)
    callback = names["Mine"]()
    callback.error = error
    return callback


@pytest.mark.parametrize("error", [LookupError("told to"), OSError(28, "No space left on device"), SystemExit(3)])
def test_an_error_of_a_callback_names_it_and_shows_the_users_lines_alone(error, tmp_path, monkeypatch):
    path = tmp_path / "mine.py"
    callbacks = Callbacks(
        [callback_that_raises(path, error)], Config(), tmp_path, None, 3, EnvAttributes.__new__(EnvAttributes)
    )
    monkeypatch.setattr(callbacks, "_view", lambda *_: None)
    with pytest.raises(type(error)) as caught:
        callbacks._call("on_end", Counts(), lambda: {})
    assert caught.value is error
    first, *lines = format_failure(error).splitlines()
    assert first == f"error: rank 0: the callback mine:Mine: on_end raised {type(error).__name__}: {error}"
    assert [line for line in lines if line.startswith("  File")] == [
        f'  File "{path}", line 8, in on_end',
        f'  File "{path}", line 3, in deep',
    ]
    assert "fabric_ppo" not in "".join(lines)


def test_other_errors_have_their_whole_traceback():
    with pytest.raises(LookupError) as caught:
        raise LookupError("a bug")
    assert format_failure(caught.value).startswith("Traceback (most recent call last):")


def test_an_error_that_takes_no_attributes_stays():
    class Fixed(Exception):
        def __setattr__(self, name, value):
            raise AttributeError(name)

    error = Fixed("x")
    mark_callback(error, "mine:Mine", "on_end")
    assert format_failure(error).endswith("Fixed: x")

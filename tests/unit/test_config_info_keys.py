"""`--info-keys`: which texts name numbers of `info`, and which are refused."""

from __future__ import annotations

import pytest

from fabric_ppo.config import Config
from fabric_ppo.config_info_keys import info_keys_of
from fabric_ppo.process.errors import ConfigError


def test_success_is_always_looked_for_and_comes_first():
    """Also where it is named, and then it counts as asked for."""
    assert [(key.name, key.is_asked) for key in info_keys_of(None)] == [("is_success", False)]
    assert [(key.name, key.is_asked) for key in info_keys_of("x, is_success")] == [("is_success", True), ("x", True)]


def test_keys_have_the_names_of_what_they_are():
    keys = info_keys_of("x_position, sum:reward_ctrl,stats.speed,sum: is_success,TimeLimit.truncated,name:1")
    names = ["is_success", "x_position", "reward_ctrl_sum", "stats.speed", "is_success_sum", "TimeLimit.truncated"]
    assert [key.name for key in keys] == [*names, "name:1"]
    assert [key.key for key in keys if key.is_sum] == ["reward_ctrl", "is_success"]


@pytest.mark.parametrize(
    ("text", "named"),
    [
        *[(text, "keys with commas between them") for text in ("", ",", "a,", " ", "a,,b", "sum:", "a\nb", "\udc80")],
        *[(text, "two meanings") for text in ("a,a", "is_success,is_success", "sum:a,a_sum", "a,a_count")],
        *[(text, "two meanings") for text in ("is_success_count", "return_mean", "sum:a,sum:a")],
    ],
)
def test_what_cannot_be_logged_is_refused_in_one_line(text, named):
    """Empty and unprintable keys, and two numbers of one name in the logs."""
    with pytest.raises(ConfigError, match=named) as caught:
        Config(info_keys=text)
    assert str(caught.value).startswith("--info-keys ")
    assert len(str(caught.value).splitlines()) == 1

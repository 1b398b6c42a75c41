"""The launcher's environment variables."""

from __future__ import annotations

import pytest

from fabric_ppo.process.errors import ConfigError
from fabric_ppo.process.launch import Launch, read_launch
from tests.fixtures.flags import LAUNCH_VARIABLES


def launched(monkeypatch, **values):
    for name in LAUNCH_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    for name, value in values.items():
        monkeypatch.setenv(name, value)


def test_without_a_launcher_there_is_one_process(monkeypatch):
    launched(monkeypatch)
    assert read_launch() == Launch(0, 1, 0, 1)


def test_the_launchers_variables_are_read(monkeypatch):
    launched(monkeypatch, RANK="5", WORLD_SIZE="8", LOCAL_RANK="1", LOCAL_WORLD_SIZE="4")
    assert read_launch() == Launch(rank=5, world_size=8, local_rank=1, local_world_size=4)
    launched(monkeypatch, RANK="1", WORLD_SIZE="3", LOCAL_RANK="1")
    assert read_launch() == Launch(rank=1, world_size=3, local_rank=1, local_world_size=3)


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"RANK": "0"}, ["WORLD_SIZE", "LOCAL_RANK", "not set"]),
        ({"RANK": "0", "WORLD_SIZE": "2"}, ["LOCAL_RANK", "not set"]),
        ({"WORLD_SIZE": "2", "LOCAL_RANK": "0"}, ["RANK", "not set"]),
        ({"RANK": "x", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}, ["RANK=x", "whole numbers"]),
        ({"RANK": "0", "WORLD_SIZE": "", "LOCAL_RANK": "0"}, ["WORLD_SIZE=", "whole numbers"]),
        ({"RANK": "2", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}, ["RANK=2", "0 to", "1"]),
        ({"RANK": "-1", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}, ["RANK=-1", "0 to", "1"]),
    ],
)
def test_half_set_variables_are_refused_in_one_line(values, named, monkeypatch):
    launched(monkeypatch, **values)
    with pytest.raises(ConfigError) as caught:
        read_launch()
    message = str(caught.value)
    assert message.startswith("environment variable")
    assert all(part in message for part in named), message
    assert "\n" not in message


def test_a_wrong_local_rank_is_named(monkeypatch):
    launched(monkeypatch, RANK="0", WORLD_SIZE="8", LOCAL_RANK="4", LOCAL_WORLD_SIZE="4")
    with pytest.raises(ConfigError, match="LOCAL_RANK=4"):
        read_launch()

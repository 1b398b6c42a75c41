"""Fixtures of the tests of single modules."""

from __future__ import annotations

import sys

import pytest

from fabric_ppo.envs.ids import resolve_env_id
from tests.fixtures.envs import backend, open_envs
from tests.fixtures.flags import LAUNCH_VARIABLES
from tests.fixtures.hub_server import hub

__all__ = ["backend", "hub", "no_launcher", "open_envs"]


@pytest.fixture
def no_launcher(monkeypatch):
    """As if started by hand, whatever runs the tests; ids are resolved anew."""
    for name in LAUNCH_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(sys, "path", list(sys.path))
    resolve_env_id.cache_clear()

"""Fixtures of the tests of properties."""

from tests.fixtures.envs import backend, open_envs

__all__ = ["backend", "open_envs"]

"""Which rank prints."""

from __future__ import annotations

import pytest

from fabric_ppo.process.console import is_rank_zero

pytestmark = pytest.mark.usefixtures("no_launcher")


def test_rank_zero(monkeypatch):
    assert is_rank_zero()
    monkeypatch.setenv("RANK", "0")
    assert is_rank_zero()
    monkeypatch.setenv("RANK", "1")
    assert not is_rank_zero()

"""`train` from Python."""

from __future__ import annotations

import pytest

from fabric_ppo.api import train
from fabric_ppo.config import Config
from fabric_ppo.process.errors import ConfigError
from tests.fixtures.configs import TINY


def test_a_folder_that_holds_a_run_is_refused(tmp_path):
    run_dir = train(Config(**TINY, run_dir=str(tmp_path / "run")))
    with pytest.raises(ConfigError, match="holds a run already"):
        train(Config(**TINY, run_dir=str(run_dir)))

"""The folder of a sweep: what is written is read again, by nobody else; it is one process'."""

from __future__ import annotations

import stat

import pytest

from fabric_ppo.process.errors import ConfigError
from fabric_ppo.tools.sweep.folder import SWEEP_FILE, lock_folder, read_folder, write_folder
from tests.fixtures.launching import in_fork
from tests.fixtures.sweeps import SPACE, settings

pytestmark = pytest.mark.usefixtures("no_launcher")


def test_settings_and_space_are_read_as_they_were_written(tmp_path):
    own = settings("postgresql+psycopg://me:secret@host/db", objective="iqm", lost_after=7.5)
    write_folder(tmp_path / "a" / "b", own, SPACE)
    assert read_folder(tmp_path / "a" / "b") == (own, SPACE)
    assert stat.S_IMODE((tmp_path / "a" / "b" / SWEEP_FILE).stat().st_mode) == 0o600


def test_what_is_no_sweep_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="holds no sweep"):
        read_folder(tmp_path)
    write_folder(tmp_path, settings("sqlite:///x.db"), SPACE)
    path = tmp_path / SWEEP_FILE
    text = path.read_text()
    for damaged, named in ((text.replace("trials: 10", "trials: many"), "trials"), (text + "more: 1\n", "its keys")):
        path.write_text(damaged)
        with pytest.raises(ConfigError, match=f"{named}: the file of a sweep is expected"):
            read_folder(tmp_path)
    path.write_text("x: [")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_folder(tmp_path)


def test_one_process_works_in_a_folder(tmp_path, monkeypatch):
    monkeypatch.setattr("fabric_ppo.tools.sweep.folder._LOCK_SECONDS", 0.0)
    unlock = lock_folder(tmp_path)

    def other():
        try:
            lock_folder(tmp_path)()
        except ConfigError as error:
            return str(error)

    assert in_fork(other) == f"--resume {tmp_path}: another process works there"
    unlock()
    assert in_fork(other) is None

"""Storages of a sweep: their URLs, no password in any line, and what is missing is named."""

from __future__ import annotations

import sys

import pytest

from fabric_ppo.process.errors import ConfigError
from fabric_ppo.tools.sweep import storage
from fabric_ppo.tools.sweep.storage import absolute_url, hide_password, open_storage, require_optuna

pytest.importorskip("optuna")


def test_files_get_absolute_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    expected = {
        "sqlite:///a/b.db": f"sqlite:///{tmp_path}/a/b.db",
        f"sqlite:///{tmp_path}/b.db": f"sqlite:///{tmp_path}/b.db",
        "journal:///shared/b.log": "journal:///shared/b.log",
        "journal:////shared/b.log": "journal:///shared/b.log",
        "journal:b.log": f"journal://{tmp_path}/b.log",
        "postgresql://me@host/db": "postgresql+psycopg://me@host/db",
        "postgresql+psycopg://me@host/db": "postgresql+psycopg://me@host/db",
    }
    assert {url: absolute_url(url) for url in expected} == expected


@pytest.mark.parametrize("url", ["", "sweep.db", "sqlite://", "journal:", "sqlite:///", "a:b"])
def test_what_is_no_storage_is_refused(url):
    with pytest.raises(ConfigError, match="sqlite:///FILE, journal:///FILE or postgresql"):
        absolute_url(url)


@pytest.mark.parametrize(
    "text", ["UNIQUE constraint failed: alembic_version.version_num", "duplicate key value violates unique constraint"]
)
def test_tables_that_another_worker_makes_are_waited_for(tmp_path, monkeypatch, text):
    """It may be between any two of them, and has written their first rows."""
    from sqlalchemy.exc import IntegrityError

    errors, opened = [IntegrityError("INSERT", {}, Exception(text))] * 2, storage._open

    def late(url):
        if errors:
            raise errors.pop()
        return opened(url)

    monkeypatch.setattr(storage, "_open", late)
    monkeypatch.setattr(storage, "_RETRY_SECONDS", 0.0)
    assert open_storage(f"sqlite:///{tmp_path}/sweep.db").get_all_studies() == []
    assert not errors


def test_a_storage_that_cannot_be_opened_is_named_without_its_password():
    """Nobody listens on port 1."""
    with pytest.raises(ConfigError) as raised:
        open_storage("mysql+nothing://me:secret@127.0.0.1:1/db")
    assert str(raised.value).startswith("--storage mysql+nothing://me:***@127.0.0.1:1/db: cannot be opened (")
    assert "secret" not in str(raised.value)
    pytest.importorskip("psycopg")
    with pytest.raises(ConfigError) as raised:
        open_storage("postgresql+psycopg://me:p@ss@127.0.0.1:1/db")
    assert "p@ss" not in str(raised.value)
    assert hide_password("postgresql://me@host/db") == "postgresql://me@host/db"


def test_what_is_not_installed_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(ConfigError, match=r'needs psycopg: pip install "psycopg\[binary\]"'):
        open_storage("postgresql+psycopg://me@host/db")
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(ConfigError, match=r"^sweep: needs optuna: pip install optuna$"):
        require_optuna()

"""Storage of a sweep's trials (`--storage`): a database or a journal, opened by Optuna."""

from __future__ import annotations

import os
import re
import time
from pathlib import Path
from typing import TYPE_CHECKING

from fabric_ppo.process.errors import ConfigError, first_line, reason_line
from fabric_ppo.process.extras import install
from fabric_ppo.process.files import require_text_path

if TYPE_CHECKING:
    from optuna.storages import BaseStorage

_FORMS = "sqlite:///FILE, journal:///FILE or postgresql+psycopg://USER:PASSWORD@HOST/DATABASE is expected"
_JOURNAL = "journal:"
_WAIT_SECONDS = 60
"""Seconds that a process waits for another one that writes into the same SQLite file."""
_TRIES, _RETRY_SECONDS = 5, 1.0
"""Tries to make tables, and seconds between them."""


def require_optuna() -> None:
    """Raise a ConfigError where Optuna is not installed; else have it print errors only."""
    try:
        import optuna
    except ImportError:
        raise ConfigError(f"sweep: needs optuna: {install('sweep')}") from None
    optuna.logging.set_verbosity(optuna.logging.ERROR)


def absolute_url(url: str) -> str:
    """Return the URL of a storage with the absolute path of its file, where it has one.

    `sqlite:///FILE` is relative, and `sqlite:////FILE` absolute, as SQLAlchemy has it.
    `journal:///FILE` is absolute, as other URLs of files are, and `journal:FILE` relative.

    Raises:
        ConfigError: it is none of a storage.
    """
    require_text_path("--storage", url)
    if url.startswith(_JOURNAL):
        path = re.sub(r"^//+(?=/)", "", url.removeprefix(_JOURNAL))
        if not path or path.startswith("//"):
            raise ConfigError(f"--storage {url}: {_FORMS}")
        return f"{_JOURNAL}//{os.path.abspath(path)}"
    if found := re.fullmatch(r"(sqlite(?:\+\w+)?:///)([^?]+)(.*)", url):
        return f"{found[1]}{os.path.abspath(found[2])}{found[3]}"
    if not re.match(r"\w+(\+\w+)?://.", url) or url.startswith("sqlite"):
        raise ConfigError(f"--storage {hide_password(url)}: {_FORMS}")
    return re.sub(r"^postgres(ql)?://", "postgresql+psycopg://", url)


def hide_password(url: str) -> str:
    """Return the URL of a storage without its password, to be printed.

    >>> hide_password("postgresql+psycopg://me:secret@host/db")
    'postgresql+psycopg://me:***@host/db'
    """
    return re.sub(r"(://[^:/@]*):.*@", r"\1:***@", url)


def storage_errors() -> tuple[type[Exception], ...]:
    """Return the errors of a storage that cannot be read or written, such as of a server that has gone."""
    from optuna.exceptions import StorageInternalError
    from sqlalchemy.exc import SQLAlchemyError

    return StorageInternalError, SQLAlchemyError, OSError


def storage_reason(url: str, error: BaseException) -> str:
    """Return why a storage cannot be used, in a part of a line, without its password."""
    cause = error.__cause__ or error
    text = reason_line(str(cause) or first_line(cause))
    return text if (secret := re.search(r"://[^:/@]*:(.*)@", url)) is None else text.replace(secret[1], "***")


def open_storage(url: str) -> BaseStorage:
    """Open the storage of an absolute URL; a file or tables that are missing are made.

    Raises:
        ConfigError: it cannot be opened; the line has no password in it.
    """
    shown = hide_password(url)
    for tries in range(_TRIES):
        try:
            return _open(url)
        except ImportError as error:
            if url.startswith("postgresql+psycopg:"):
                raise ConfigError(f"--storage {shown}: needs psycopg: {install('postgresql')}") from None
            raise ConfigError(f"--storage {shown}: its driver cannot be imported ({first_line(error)})") from None
        except Exception as error:  # each driver has errors of its own
            if tries == _TRIES - 1 or not _is_being_made(error):
                raise ConfigError(f"--storage {shown}: cannot be opened ({storage_reason(url, error)})") from None
            time.sleep(_RETRY_SECONDS)
    raise AssertionError


def _is_being_made(error: BaseException) -> bool:
    """Return True for an error because another worker makes the tables, or their first rows, at this moment."""
    from sqlalchemy.exc import IntegrityError

    return "already exists" in str(error) or any(isinstance(each, IntegrityError) for each in (error, error.__cause__))


def _open(url: str) -> BaseStorage:
    """Open a storage; raise whatever its driver raises."""
    import optuna
    from optuna.storages import JournalStorage, RDBStorage
    from optuna.storages.journal import JournalFileBackend

    if url.startswith(_JOURNAL):
        path = Path(url.removeprefix(f"{_JOURNAL}//"))
        path.parent.mkdir(parents=True, exist_ok=True)
        return JournalStorage(JournalFileBackend(str(path)))
    if url.startswith("sqlite"):
        Path(re.sub(r"^[^/]+///|\?.*$", "", url)).parent.mkdir(parents=True, exist_ok=True)
    arguments = {"connect_args": {"timeout": _WAIT_SECONDS}} if url.startswith("sqlite") else {"pool_pre_ping": True}
    # reads trials that have ended once only
    return optuna.storages.get_storage(RDBStorage(url, engine_kwargs=arguments))

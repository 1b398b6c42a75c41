"""Policies on the Hugging Face Hub: addresses `hf://USER/NAME`, files in the cache, errors in one line.

The client's variables hold: `HF_TOKEN`, `HF_HOME`, `HF_ENDPOINT`, `HF_HUB_OFFLINE`.
"""

from __future__ import annotations

import contextlib
import errno
import importlib.util
import logging
import os
import re
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fabric_ppo.process.errors import ConfigError, HubError, first_line
from fabric_ppo.process.extras import install

if TYPE_CHECKING:
    from huggingface_hub import HfApi

_ADDRESS = re.compile(r"hf:/{1,2}(?P<repo>[^@]*)(?:@(?P<revision>.*))?", re.DOTALL)
"""A `Path` of an address has one slash."""
_REPO_ID = re.compile(r"\w([\w.-]*\w)?/\w([\w.-]*\w)?", re.ASCII)
_LONGEST_ID = 96
"""Characters of a repository's id, of which the Hub takes no more."""
_REVISION = re.compile(r"(?!.*(\.\.|//|/\.|\.lock(/|$)))\w[\w./+-]*(?<![./])", re.ASCII)
"""Names of branches, tags and commits, a part of those that git allows."""
_OF_THE_DISK = {errno.EACCES, errno.EDQUOT, errno.EISDIR, errno.ENOSPC, errno.ENOTDIR, errno.EPERM, errno.EROFS}
_ANSWER_SECONDS = 120.0
"""Seconds that the Hub may be silent in a request."""
_LOG_IN = "`hf auth login`, or HF_TOKEN"


@dataclass(frozen=True)
class HubAddress:
    """A repository on the Hub.

    Attributes:
        repo_id: USER/NAME.
        revision: branch, tag or commit; empty for the branch main.
    """

    repo_id: str
    revision: str = ""

    def __str__(self) -> str:
        """Return the address as it is written: hf://USER/NAME@REVISION."""
        return f"hf://{self.repo_id}" + (f"@{self.revision}" if self.revision else "")

    @classmethod
    def parse(cls, text: str) -> HubAddress:
        """Return the address in a text.

        Raises:
            ConfigError: the text is no address.
        """
        found = _ADDRESS.fullmatch(text)
        if found is None:
            raise ConfigError(f"{text}: hf://USER/NAME, or hf://USER/NAME@REVISION, is expected")
        require_repo_id(found["repo"], text)
        if found["revision"] is not None:
            require_revision(found["revision"], text)
        return cls(found["repo"], found["revision"] or "")


def is_hub_address(path: str | os.PathLike[str]) -> bool:
    """Return True if a text, or a `Path` made of one, begins like the address of a repository."""
    return os.fspath(path).startswith(("hf://", "hf:/"))


def require_repo_id(repo_id: str, given: str) -> None:
    """Raise a ConfigError unless `repo_id` is USER/NAME; `given` is what the user wrote."""
    fits = _REPO_ID.fullmatch(repo_id) and len(repo_id) <= _LONGEST_ID
    if not fits or "--" in repo_id or ".." in repo_id or repo_id.endswith(".git"):
        raise ConfigError(f"{given}: USER/NAME is expected, with letters, digits and single '-', '_' and '.' in them")


def require_revision(revision: str, given: str) -> None:
    """Raise a ConfigError unless `revision` can name a branch, tag or commit."""
    if not _REVISION.fullmatch(revision):
        raise ConfigError(f"{given}: the name of a branch, a tag or a commit is expected")


def require_client(given: str) -> None:
    """Raise a ConfigError if the Hub's client is not installed; `given` is what needs it."""
    if importlib.util.find_spec("huggingface_hub") is None:
        raise ConfigError(f"{given}: needs huggingface_hub: {install('hub')}")


def pull(address: HubAddress, needed: str, wanted: Sequence[str] = ()) -> Path:
    """Return the path of a file in the cache, after downloading it if the Hub has a newer one.

    Args:
        address: the repository.
        needed: the file's name.
        wanted: further files of the same commit to download, if the repository has them.

    Raises:
        ConfigError: there is no such repository, revision or file, or it may not be read.
        HubError: the network or the Hub failed, and the cache does not have it.
    """
    with hub_client(address) as api:
        from huggingface_hub import constants
        from huggingface_hub.errors import LocalEntryNotFoundError, RemoteEntryNotFoundError

        path = Path(api.hf_hub_download(address.repo_id, needed, revision=address.revision or None))
        for name in wanted:
            try:
                # a cached file's folder has the name of its commit
                api.hf_hub_download(address.repo_id, name, revision=path.parent.name)
            except RemoteEntryNotFoundError:
                continue
            except LocalEntryNotFoundError:
                if not constants.HF_HUB_OFFLINE:
                    raise
    return path


@contextlib.contextmanager
def hub_client(address: HubAddress, outcome: str = "") -> Iterator[HfApi]:
    """Yield the client of the Hub, which prints nothing, and whose errors are one line.

    Args:
        address: the repository, which errors name.
        outcome: words that errors begin with, such as "nothing was pushed".

    Raises:
        ConfigError: the package is missing, or the Hub refused the request.
        HubError: the network or the Hub failed.
    """
    require_client(str(address))
    from huggingface_hub import HfApi

    with _silence(), _patience():
        try:
            yield HfApi(library_name="fabric-ppo")
        except ConfigError:
            raise
        except Exception as error:
            kind, reason = _explain(error)
            raise kind(f"{address}: {outcome}{': ' if outcome else ''}{reason}") from None


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Keep the client from printing: it warns at each try, and draws bars for files of kilobytes."""
    from huggingface_hub import constants
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    logger = logging.getLogger("huggingface_hub")
    level = logger.level
    hides = constants.HF_HUB_DISABLE_PROGRESS_BARS is None and not are_progress_bars_disabled()
    logger.setLevel(logging.CRITICAL)
    if hides:
        disable_progress_bars()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
        if hides:
            enable_progress_bars()


@contextlib.contextmanager
def _patience() -> Iterator[None]:
    """Limit the time that the client waits for an answer, which is infinite by default."""
    from huggingface_hub import get_session

    session = get_session()
    before = session.timeout
    session.timeout = _ANSWER_SECONDS
    try:
        yield
    finally:
        session.timeout = before


def _explain(error: Exception) -> tuple[type[ConfigError] | type[HubError], str]:
    """Return the exception for an error of the client: bad input or a failure, and its reason."""
    from huggingface_hub import constants, errors

    chain = list(_causes(error))
    for each in chain:
        if isinstance(each, errors.OfflineModeIsEnabled):
            return ConfigError, "HF_HUB_OFFLINE is set, and the cache does not have it; without that it is asked for"
    for each in chain:
        if isinstance(each, errors.HfHubHTTPError) and getattr(each, "response", None) is not None:
            return _explain_answer(each)
    for each in chain:
        if isinstance(each, OSError) and each.errno in _OF_THE_DISK:
            place = each.filename or constants.HF_HUB_CACHE
            return ConfigError, f"{place}: {each.strerror}; a cache that can be written is expected (HF_HOME)"
    # the last one in the chain is that of the network
    return HubError, f"{_endpoint()} cannot be reached, or broke off ({first_line(chain[-1])})"


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and those from which it was raised, once each."""
    seen: set[int] = set()
    each: BaseException | None = error
    while each is not None and id(each) not in seen:
        seen.add(id(each))
        yield each
        each = each.__cause__ or each.__context__


def _explain_answer(error: BaseException) -> tuple[type[ConfigError] | type[HubError], str]:
    """Return the exception for an error that the Hub has returned, and its reason."""
    from huggingface_hub import errors, get_token

    unknown = f"there is no such repository, or it is private and needs a token: {_LOG_IN}"
    reasons = {
        errors.GatedRepoError: "its owner has to give access first: ask for it on its page",
        errors.RevisionNotFoundError: "the repository has no such branch, tag or commit",
        errors.RepositoryNotFoundError: unknown,
        errors.EntryNotFoundError: "the repository does not hold a policy of this program (policy.safetensors)",
    }
    for kind, reason in reasons.items():
        if isinstance(error, kind):
            return ConfigError, reason
    status = int(error.response.status_code)  # type: ignore[attr-defined]
    message = str(getattr(error, "server_message", None) or "").strip()
    details = f" ({'; '.join(message.splitlines())})" if message else ""
    if status == 401:
        return ConfigError, unknown if get_token() is None else f"the token is not accepted: {_LOG_IN}{details}"
    if status == 403:
        return ConfigError, f"the token may not do that: one that may write there is expected, by {_LOG_IN}{details}"
    if status == 429:
        return HubError, f"{_endpoint()} takes no more requests for a while: try again later{details}"
    kind_of_status = ConfigError if 400 <= status < 500 and status != 408 else HubError
    return kind_of_status, f"{_endpoint()} answered with status {status}{details}"


def _endpoint() -> str:
    from huggingface_hub import constants

    return str(constants.ENDPOINT)

"""Pushing to the Hugging Face Hub: the files of a run that are published, in one commit."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from fabric_ppo.agents.agent import Architecture
from fabric_ppo.agents.hub import HubAddress, hub_client, is_hub_address
from fabric_ppo.agents.policy import load_agent
from fabric_ppo.agents.policy_file import POLICY_FILE, described, no_policy, policy_bytes, policy_path, read_policy
from fabric_ppo.envs.spaces import EnvSpec
from fabric_ppo.process.errors import ConfigError
from fabric_ppo.run.folder import CONFIG_FILE
from fabric_ppo.run.trackers.json_lines import METRICS_FILE
from fabric_ppo.tools.hub_card import Published, card_of
from fabric_ppo.tools.report.runs import read_runs
from fabric_ppo.tools.report.videos import newest_video

if TYPE_CHECKING:
    from huggingface_hub import CommitOperationAdd, CommitOperationCopy, CommitOperationDelete

    _Operation = CommitOperationAdd | CommitOperationCopy | CommitOperationDelete

CARD_FILE, VIDEO_FILE = "README.md", "replay.mp4"
"""Names that the Hub knows: the page, and the video that its widget plays."""
_OF_ALL_RUNS = (CONFIG_FILE, METRICS_FILE)
_OF_THE_END = ("summary.json", "report.html")
"""Files about the policy of a run's end; they are not published beside another policy."""
FILES = (CARD_FILE, POLICY_FILE, *_OF_ALL_RUNS, *_OF_THE_END, VIDEO_FILE)
"""Names of all files that a push may write."""


def contents_of(run_dir: str | os.PathLike[str], address: HubAddress) -> dict[str, bytes]:
    """Return the files to publish, name -> content.

    Args:
        run_dir: the folder of a run, or a checkpoint in it. Of a run that has not finished it is
            the policy of the newest checkpoint, which a line on stderr says.
        address: where they go, for the commands on the page.

    Raises:
        ConfigError: there is no whole policy, or a file cannot be read.
    """
    if is_hub_address(run_dir):
        raise ConfigError(f"{run_dir}: the folder of a run on this machine is expected")
    path = policy_path(run_dir)
    is_final = path.suffix != ".ckpt"
    folder = path.parent if is_final else path.parent.parent
    spec, architecture = _checked(path)
    try:
        contents = {POLICY_FILE: policy_bytes(path)}
        for name in (*_OF_ALL_RUNS, *(_OF_THE_END if is_final else ())):
            if (folder / name).is_file():
                contents[name] = (folder / name).read_bytes()
        run = read_runs([folder])[0]
        video = newest_video(run) if is_final else None
        if video is not None:
            contents[VIDEO_FILE] = video.read_bytes()
    except OSError as error:
        raise ConfigError(f"{error.filename or folder}: cannot be read ({error.strerror})") from None
    published = Published(run, spec, architecture, address, "" if is_final else path.name, sorted(contents))
    return {CARD_FILE: card_of(published).encode("utf-8", "backslashreplace")} | contents


def _checked(path: Path) -> tuple[EnvSpec, Architecture]:
    """Return what the policy in a file is of, once the file is known to be whole.

    Raises:
        ConfigError: it is damaged.
    """
    try:
        metadata, _ = read_policy(path)
        spec, architecture = described(metadata)
    except Exception as error:  # a damaged file fails in many ways
        raise ConfigError(f"{path}: {no_policy(error)}") from None
    if ":" not in architecture.encoder:  # one of the user's own is not imported for this
        load_agent(path.parent if path.name == POLICY_FILE else path)
    return spec, architecture


def write_contents(contents: Mapping[str, bytes]) -> Path:
    """Write files into a new folder for temporary files; return the folder.

    Raises:
        ConfigError: they cannot be written.
    """
    try:
        folder = Path(tempfile.mkdtemp(prefix="fabric-ppo-push-"))
        for name, content in contents.items():
            (folder / name).write_bytes(content)
    except OSError as error:
        where = error.filename or tempfile.gettempdir()
        raise ConfigError(f"--dry-run: {where} cannot be written ({error.strerror}); TMPDIR names another") from None
    return folder


def push(contents: Mapping[str, bytes], address: HubAddress, private: bool = False, message: str | None = None) -> str:
    """Push files in one commit: all of them are there afterwards, or none; return the page's URL.

    The repository and the branch are made where there are none. Files of an earlier push that these
    ones do not replace are removed.

    Args:
        contents: name -> content.
        address: repository and branch.
        private: have the repository private.
        message: title of the commit.

    Raises:
        ConfigError: the Hub refused it, such as a token without rights; or the repository is public.
        HubError: the network or the Hub failed.
    """
    with hub_client(address, "nothing was pushed") as api:
        from huggingface_hub import CommitOperationAdd, CommitOperationDelete, constants, get_token

        if constants.HF_HUB_OFFLINE:
            raise ConfigError(f"{address}: HF_HUB_OFFLINE is set, and pushing takes the network; nothing was pushed")
        if get_token() is None:
            raise ConfigError(f"{address}: pushing takes a token that may write: `hf auth login`, or HF_TOKEN")
        repo_id, branch = address.repo_id, address.revision or None
        api.create_repo(repo_id, private=True if private else None, exist_ok=True)
        if branch is not None:
            api.create_branch(repo_id, branch=branch, exist_ok=True)
        present = api.model_info(repo_id, revision=branch)
        if private and not present.private:
            raise ConfigError(
                f"--private: {address} is public already; nothing was pushed. Its page can make it private"
            )
        stale = {each.rfilename for each in present.siblings or ()} & set(FILES) - set(contents)
        operations: list[_Operation] = [CommitOperationAdd(name, content) for name, content in contents.items()]
        operations += [CommitOperationDelete(name, is_folder=False) for name in sorted(stale)]
        api.create_commit(repo_id, operations, commit_message=message or "Push a trained agent", revision=branch)
        return f"{api.endpoint}/{repo_id}" + (f"/tree/{branch}" if branch else "")

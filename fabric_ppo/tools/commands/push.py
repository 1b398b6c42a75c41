"""`push`: a trained agent on the Hugging Face Hub."""

from __future__ import annotations

from fabric_ppo.process.errors import ConfigError
from fabric_ppo.process.files import require_text_path
from fabric_ppo.tools.command_parser import CommandParser
from fabric_ppo.tools.help import Entry

ENTRY = Entry("push RUN_DIR USER/NAME", "Publish a trained agent on the Hugging Face Hub.")
"""Row of this command on the page of all."""


def run(args: list[str]) -> int:
    """Push the policy of a run with its page, or write the folder that would be pushed."""
    given = push_parser().parse_args(args)
    require_text_path("RUN_DIR", given.run_dir)
    if given.message is not None and not given.message.strip():
        raise ConfigError("--message: a text that is not empty is expected")
    # these imports load torch, which takes seconds: wrong flags are reported before
    from fabric_ppo.agents.hub import HubAddress, require_client, require_repo_id, require_revision
    from fabric_ppo.tools.hub import contents_of, push, write_contents

    repo_id = given.repo.removeprefix("hf://")
    require_repo_id(repo_id, given.repo)
    if given.branch is not None:
        require_revision(given.branch, f"--branch {given.branch}")
    require_client(f"push {given.repo}")
    address = HubAddress(repo_id, given.branch or "")
    contents = contents_of(given.run_dir, address)
    if given.dry_run:
        print(f"folder   {write_contents(contents)}")
        return 0
    url = push(contents, address, private=given.private, message=given.message)
    print(f"pushed   {url}\nevaluate python -m fabric_ppo evaluate {address}")
    return 0


def push_parser() -> CommandParser:
    """Return the parser of this command's flags."""
    parser = CommandParser("fabric-ppo push")
    parser.description = "Publish a trained agent on the Hugging Face Hub, with a page about it."
    parser.add_argument("run_dir", metavar="RUN_DIR", help="Folder of a run, or a checkpoint in it.")
    parser.add_argument("repo", metavar="USER/NAME", help="Repository; it is made where there is none.")
    private = "Make the repository private; one that is public already is refused."
    parser.add_argument("--private", action="store_true", help=private)
    branch = "Branch to push to; it is made where there is none. (default: main)"
    parser.add_argument("--branch", "--revision", metavar="NAME", help=branch)
    parser.add_argument("--message", metavar="TEXT", help="Title of the commit.")
    dry_run = "Push nothing: write the folder that would be pushed, and print where it is."
    parser.add_argument("--dry-run", action="store_true", help=dry_run)
    return parser

"""`evaluate`: test episodes with a trained agent."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fabric_ppo.config import TEST_STEP_LIMIT
from fabric_ppo.config_info_keys import info_keys_of
from fabric_ppo.config_values import ATARI
from fabric_ppo.process.console import format_number, lost_output, print_line, stdout_on_stderr
from fabric_ppo.process.errors import FAILED, NOT_ALL_WRITTEN, ConfigError, DoesNotRenderError, EnvironmentFault
from fabric_ppo.process.files import require_text_path
from fabric_ppo.tools.command_parser import CommandParser, count
from fabric_ppo.tools.help import Entry

if TYPE_CHECKING:
    from fabric_ppo.rollouts.evaluate import TestResult

ENTRY = Entry("evaluate RUN_DIR", "Play test episodes with a trained agent.")
"""Row of this command on the page of all."""


def run(args: list[str]) -> int:
    """Play test episodes with a run's policy, and print the scores."""
    given = evaluate_parser().parse_args(args)
    if given.episodes < 1:
        raise ConfigError(f"--episodes {given.episodes}: a whole number from 1 up is expected")
    if not 0 <= given.seed < 2**32:
        raise ConfigError(f"--seed {given.seed}: a whole number from 0 to 4294967295 is expected")
    if given.step_limit < 1:
        raise ConfigError(f"--step-limit {given.step_limit}: a whole number from 1 up is expected")
    info_keys_of(given.info_keys)
    _require_paths(given)
    # the environment's code may change the working directory
    run_dir, gif = Path(given.run_dir).absolute(), given.gif and os.path.abspath(given.gif)
    run_dir = run_folder(run_dir)
    video_dir = str(run_dir / "test_videos") if given.video else ""
    try:
        # environments may print, too, and JSON is to stand alone
        with stdout_on_stderr() if given.json else contextlib.nullcontext():
            env_id, result = _play(given, video_dir, gif)
    except DoesNotRenderError as refused:
        of = f"--render {given.render}" if refused.mode == "human" else f"--gif {given.gif}" if gif else "--video"
        raise ConfigError(f"{of}: {refused}") from None
    except EnvironmentFault as fault:
        print_line(f"error: {fault}", sys.stderr)
        return FAILED
    from fabric_ppo.rollouts.info_totals import info_text

    scores = result.to_dict()
    for line in result.info.warnings(given.episodes, result.info_names):
        print_line(line, sys.stderr)
    if given.json:
        print(json.dumps(scores))
    else:
        spread = f"{format_number(scores['return_mean'])} +- {format_number(scores['return_std'])}"
        info = info_text(scores.get("info", {}), given.episodes)
        print(f"{env_id}: return {spread}, length {scores['length_mean']:.1f}, {given.episodes} episodes{info}")
        if video_dir and not result.unwritten:
            print(f"video: {video_dir}")
        if gif and not result.unwritten:
            print(f"gif: {gif}")
        if given.record and not result.unwritten:
            print(f"recorded: {given.record}")
    if error := lost_output(sys.stdout):
        print_line(f"error: the scores could not be printed ({error.strerror})", sys.stderr)
    return NOT_ALL_WRITTEN if result.unwritten or error else 0


def _require_paths(given: argparse.Namespace) -> None:
    """Raise a ConfigError for a folder or file that cannot be what its flag expects; make `record` absolute."""
    require_text_path("RUN_DIR", given.run_dir)
    require_text_path("--gif", given.gif)
    require_text_path("--code-dir", given.code_dir)
    require_text_path("--record", given.record)
    if given.gif is not None and Path(given.gif).suffix.lower() != ".gif":
        raise ConfigError(f"--gif {given.gif}: a name that ends in .gif is expected")
    if given.code_dir is not None and not os.path.isdir(given.code_dir):
        raise ConfigError(f"--code-dir {given.code_dir}: an existing folder is expected")
    if given.record is not None:
        from fabric_ppo.rollouts.demonstrations import require_record_path

        require_record_path("--record", Path(given.record))
        given.record = os.path.abspath(given.record)
    if given.video and given.run_dir.startswith("hf:/"):
        raise ConfigError(f"--video: the folder of a run is expected, not {given.run_dir}; --gif FILE records, too")


def _play(given: argparse.Namespace, video_dir: str, gif: str | None) -> tuple[str, TestResult]:
    """Load the policy of a run and play; return the id of its environment, and the result.

    Raises:
        ConfigError: the policy cannot be loaded, or the environment cannot be made.
        EnvironmentFault: the environment failed.
    """
    # these imports load torch, which takes seconds: wrong flags are reported before
    from fabric_ppo.agents.policy import load_agent, require_own_modules
    from fabric_ppo.envs.ids import look_in, resolve_env_id
    from fabric_ppo.rollouts.demonstrations import EpisodeLog
    from fabric_ppo.rollouts.evaluate import cut_off_text, evaluate
    from fabric_ppo.run.progress import TestProgress
    from fabric_ppo.tools.video import recorded_gif

    if given.code_dir is not None:
        look_in(os.path.abspath(given.code_dir))
        print_line(f"modules of your own are imported from {os.path.abspath(given.code_dir)}", sys.stderr)
    has_own_code = given.own_code or given.code_dir is not None
    policy = load_agent(given.run_dir, own_code=has_own_code)
    require_own_modules(policy.spec, given.run_dir, has_own_code)
    # imports the module that registers the environment
    resolve_env_id(policy.spec.env_id, ATARI if policy.spec.is_atari else "")
    options: dict[str, Any] = {"render_mode": given.render, "stochastic": given.stochastic}
    progress = TestProgress("evaluate", given.episodes, True)
    options |= {"step_limit": given.step_limit, "report": progress.update}
    options["info_keys"] = given.info_keys or _info_keys_of(given.run_dir)
    options["log"] = log = EpisodeLog(policy.spec) if given.record else None
    with recorded_gif(gif, video_dir) as recording:
        result = evaluate(policy, given.episodes, given.seed, video_dir=recording.folder, **options)
    unwritten = [recording.unwritten or result.unwritten, log.write(Path(given.record)) if log else ""]
    result = replace(result, unwritten=", ".join(filter(None, unwritten)))
    if result.cut_off:
        print_line(f"warning: {cut_off_text(result.cut_off, given.episodes, given.step_limit)}", sys.stderr)
    return policy.spec.env_id, result


def run_folder(path: Path) -> Path:
    """Return the folder of a run that `load_agent` finds by it, a checkpoint or the policy's file."""
    above = {".ckpt": path.parent.parent, ".safetensors": path.parent}
    return above.get(path.suffix, path)


def _info_keys_of(run_dir: str) -> str | None:
    """Return the `--info-keys` of a run, from what `load_agent` takes; None where unknown."""
    import yaml

    from fabric_ppo.agents.hub import is_hub_address
    from fabric_ppo.agents.policy_file import policy_path

    path = policy_path(run_dir).parent if is_hub_address(run_dir) else Path(run_dir)
    folder = run_folder(path)
    try:
        keys = yaml.safe_load((folder / "config.yaml").read_bytes())["info_keys"]
        info_keys_of(keys)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, yaml.YAMLError):
        return None  # a policy without its run, or of an older version
    return str(keys) if keys else None


def evaluate_parser() -> CommandParser:
    """Return the parser of this command's flags."""
    parser = CommandParser("fabric-ppo evaluate")
    parser.description = "Play test episodes with a trained agent, and print their scores."
    run_dir = "Folder of a run, a checkpoint in it, or hf://USER/NAME of the Hugging Face Hub."
    parser.add_argument("run_dir", metavar="RUN_DIR", help=run_dir)
    parser.add_argument("--episodes", type=count, default=100, help="Number of episodes. (default: 100)")
    parser.add_argument("--seed", type=count, default=0, help="Seed of the episodes. (default: 0)")
    limit = f"Steps after which an episode is cut off. (default: {TEST_STEP_LIMIT})"
    parser.add_argument("--step-limit", type=count, default=TEST_STEP_LIMIT, help=limit)
    parser.add_argument("--json", action="store_true", help="Print one JSON object and nothing else.")
    parser.add_argument("--video", action="store_true", help="Record the first episode into RUN_DIR/test_videos.")
    parser.add_argument("--gif", metavar="FILE", help="Record the first episode as a moving picture.")
    record = "Record every transition into this file (.npz), for fabric-ppo imitate."
    parser.add_argument("--record", metavar="FILE", help=record)
    parser.add_argument("--render", choices=["human"], help="Show the episodes in a window.")
    parser.add_argument("--stochastic", action="store_true", help="Sample actions instead of the most probable ones.")
    info_keys = "Numbers of info to print besides is_success. (default: those of the run)"
    parser.add_argument("--info-keys", metavar="KEYS", help=info_keys)
    parser.add_argument("--own-code", action="store_true", help="Import the modules that the policy's file names.")
    code_dir = "Import these modules, from this folder first."
    parser.add_argument("--code-dir", metavar="FOLDER", help=code_dir)
    return parser

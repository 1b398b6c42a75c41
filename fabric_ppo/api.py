"""Training and evaluation from Python, such as in a notebook, a sweep or a larger program."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fabric_ppo.agents.policy_file import newest_whole
from fabric_ppo.config import TEST_STEP_LIMIT, Config, DecoupledConfig, TorchConfig
from fabric_ppo.config_call import answering, switch_argument
from fabric_ppo.config_given import format_given, python_scalar, whole_number
from fabric_ppo.config_names import call_hint
from fabric_ppo.config_values import ATARI, field_types
from fabric_ppo.process.console import muted, print_line
from fabric_ppo.process.errors import ConfigError, flag
from fabric_ppo.process.files import require_text_path, update_of
from fabric_ppo.process.launch import read_launch
from fabric_ppo.process.settings import callers_settings_kept
from fabric_ppo.run.commands import go_on_with
from fabric_ppo.run.resolve import resolve
from fabric_ppo.run.result import RunResult
from fabric_ppo.tools.command_hints import command_hint

if TYPE_CHECKING:
    from fabric_ppo.agents.policy import Policy
    from fabric_ppo.rollouts.evaluate import TestResult
    from fabric_ppo.run.callbacks import Callback
    from fabric_ppo.run.trackers.tracker import Tracker


_CONFIG = "a Config, as in train(Config(env_id='CartPole-v1')),"
"""Description of the first argument of `train`."""
_POLICY = "an agent or the folder of a run, as in evaluate('RUN_DIR'),"
"""Description of the first argument of `evaluate`."""


class Interrupted(KeyboardInterrupt):
    """Ctrl-C during `train`, which has printed a line about it; notebooks show no traceback."""

    def _render_traceback_(self) -> list[str]:
        """Return the lines that IPython shows."""
        return ["KeyboardInterrupt"]


def _train_hint(name: str, own: Mapping[str, inspect.Parameter]) -> str:
    """Return a hint for the error about an argument that `train`, with the arguments `own`, does not have."""
    return call_hint(name, own, field_types(TorchConfig))


def _evaluate_hint(name: str, own: Mapping[str, inspect.Parameter]) -> str:
    """Return a hint for the error about an argument that `evaluate`, with the arguments `own`, does not have."""
    hint = command_hint(flag(name), [*map(flag, own)], "help(fabric_ppo.evaluate)")

    def as_argument(found: re.Match[str]) -> str:
        argument = found[1].replace("-", "_")
        return f"{argument}=True" if argument in own and own[argument].default is False else argument

    return re.sub(r"--([a-z][a-z-]*)", as_argument, hint)


@answering(_CONFIG, _train_hint)
def train(
    config: Config, verbose: bool = True, *, callbacks: Sequence[Callback] = (), trackers: Sequence[Tracker] = ()
) -> RunResult:
    """Train in this process, to the same result as `python train_torch.py` with the same flags.

    Afterwards PyTorch's settings and Python's warning filters are restored. Ctrl-C prints a line
    and raises KeyboardInterrupt. With `resume=True` a finished or interrupted run continues, as
    from the command line.

    Args:
        config: the flags. A flag with its default value is replaced by that of the file
            `config.config`, or with `resume=True` by that of the run. So to resume a run no other
            flag is needed. With `quiet=True` warnings are still printed.
        verbose: False: print nothing, not even warnings; your own code still prints.
        callbacks, trackers: objects of subclasses of `Callback` and `Tracker`, or such classes.
            They are called on rank 0, after those of the flags. They are not in `config.yaml`, so
            pass them again when you resume a run.

    Returns:
        The run: its folder, summary, metrics and agent.

    Raises:
        ConfigError: invalid flags; nothing has been written.
        EnvironmentFault, TrainingError: the training failed; the folder has a checkpoint from
            before.
        NotAllWrittenError: the training is done, but something could not be written.
        KeyboardInterrupt: the training was interrupted. The folder has a checkpoint, unless it
            was interrupted before the first update.

    Example:
        >>> from fabric_ppo import Config, train
        >>> train(Config(num_steps=32, total_timesteps=128), verbose=False).summary["env_steps"]
        128
    """
    _require_one_process(config)
    verbose = switch_argument("train", "verbose", verbose)
    flags = _flags(config)
    if not verbose:
        flags["quiet"] = True
    with callers_settings_kept(), contextlib.nullcontext() if verbose else _silence():
        launch = read_launch()
        resolved = resolve(TorchConfig(**flags), launch.world_size, launch.local_world_size)

        from fabric_ppo.run.folder import new_run_dir
        from fabric_ppo.run.parts import parts_of
        from fabric_ppo.tools.locate import load_script

        parts = parts_of(callbacks, trackers)
        run_dir = new_run_dir(resolved)
        script = load_script(TorchConfig)
        try:
            script.main(dataclasses.replace(resolved, run_dir=str(run_dir)), parts)
        except KeyboardInterrupt:
            print_line(f"interrupted{_where_to_go_on(run_dir, bool(callbacks or trackers))}", sys.stderr)
            # a new one: the traceback of the old one leads through the whole program
            raise Interrupted from None
        finally:
            with contextlib.suppress(OSError):  # that of a run that could not start is empty
                run_dir.rmdir()
    return RunResult(run_dir, own_code=True)


@answering(_POLICY, _evaluate_hint)
def evaluate(
    policy: Policy | str | os.PathLike[str],
    episodes: int = 100,
    seed: int = 0,
    *,
    own_code: bool = False,
    video_dir: str = "",
    render_mode: str | None = None,
    stochastic: bool = False,
    step_limit: int = TEST_STEP_LIMIT,
    report: Callable[[int, int], None] | None = None,
    info_keys: str | None = None,
    record: str | os.PathLike[str] | None = None,
) -> TestResult:
    """Play test episodes, as `fabric-ppo evaluate` does; the same seed gives the same episodes.

    Args:
        policy: the agent, or an argument of `load_agent`: the folder of a run, a RunResult.
        episodes: number of episodes.
        seed: determines the episodes; training cannot draw the same ones.
        own_code: import modules that a run's files name; not needed for results of `train`.
        video_dir: folder for a video of the first episode; empty: no video.
        render_mode: `human` to watch.
        stochastic: sample actions instead of taking the most probable ones.
        step_limit: steps after which an episode is cut off.
        report: called after each step with the numbers of finished episodes and of all steps.
        info_keys: numbers of `info` to read, in the form of `--info-keys`.
        record: file `.npz` for every transition, which `fabric-ppo imitate` reads; see
            `rollouts/demonstrations.py`. The result notes if it could not be written.

    Returns:
        The returns (sums of rewards) and lengths (steps) of the episodes; its repr has their mean.

    Raises:
        ConfigError: an argument is invalid, there is no policy, or its environment cannot be made.
        EnvironmentFault: the environment failed.

    Example:
        >>> from fabric_ppo import evaluate
        >>> list(evaluate("RUN_DIR", episodes=2, seed=7, step_limit=5).returns)
        [5.0, 5.0]
    """
    episodes = _whole_argument("episodes", episodes, 1, 2**30)
    seed = _whole_argument("seed", seed, 0, 2**32 - 1)
    step_limit = _whole_argument("step_limit", step_limit, 1, 2**63 - 1)
    own_code = switch_argument("evaluate", "own_code", own_code)
    stochastic = switch_argument("evaluate", "stochastic", stochastic)
    _require_kinds(video_dir, report, info_keys, record)
    return _played(
        _agent_of(policy, own_code),
        record,
        episodes,
        seed,
        video_dir=os.fspath(video_dir),
        render_mode=render_mode,
        stochastic=stochastic,
        step_limit=step_limit,
        report=report,
        info_keys=info_keys,
    )


def _played(agent: Policy, record: str | os.PathLike[str] | None, *args: Any, **options: Any) -> TestResult:
    """Play test episodes, and record them where there is a file for it; see `evaluate`."""
    from fabric_ppo.rollouts.demonstrations import EpisodeLog, require_record_path
    from fabric_ppo.rollouts.evaluate import evaluate as play

    if record is None:
        return play(agent, *args, **options)
    # an environment may change the working directory
    path = Path(record).absolute()
    require_record_path("record", path)
    log = EpisodeLog(agent.spec)
    result = play(agent, *args, **options, log=log)
    unwritten = log.write(path)
    return dataclasses.replace(result, unwritten=unwritten) if unwritten else result


def _whole_argument(name: str, given: Any, least: int, most: int) -> int:
    """Return an argument of `evaluate`, which must be a whole number within bounds."""
    number = whole_number(python_scalar(given))
    if type(number) is not int or not least <= number <= most:
        more = "; the agent has an environment made for itself" if hasattr(given, "reset") else ""
        expected = f"a whole number from {least} {'up' if least else f'to {most}'} is expected"
        raise ConfigError(f"evaluate({name}={format_given(given)}): {expected}{more}")
    return number


def _require_kinds(video_dir: Any, report: Any, info_keys: Any, record: Any) -> None:
    """Raise a ConfigError for an argument of `evaluate` of the wrong type."""
    path = (str, os.PathLike)
    _require_argument("video_dir", video_dir, isinstance(video_dir, path), "a folder")
    _require_argument("report", report, report is None or callable(report), "a function")
    is_text = info_keys is None or isinstance(info_keys, str)
    _require_argument("info_keys", info_keys, is_text, "text, as in info_keys='x_position',")
    _require_argument("record", record, record is None or isinstance(record, path), "a file that ends in .npz")


def _require_argument(name: str, given: Any, is_right: bool, expected: str) -> None:
    """Raise a ConfigError with the expected value, unless an argument of `evaluate` `is_right`."""
    if not is_right:
        raise ConfigError(f"evaluate({name}={format_given(given)}): {expected} is expected")


def _agent_of(given: Any, own_code: bool) -> Policy:
    """Return the agent of `evaluate`: the given one, or that of a run's folder; raise as `evaluate`."""
    from fabric_ppo.agents.policy import Policy, load_agent, require_own_modules
    from fabric_ppo.envs.ids import resolve_env_id

    if isinstance(given, Policy):
        return given
    if not isinstance(given, (str, os.PathLike)):
        raise ConfigError(f"evaluate({format_given(given)}): {_POLICY} is expected")
    own_code = own_code or (isinstance(given, RunResult) and given.own_code)
    agent = load_agent(given, own_code)
    require_own_modules(agent.spec, given, own_code, how="evaluate(..., own_code=True)")
    # imports the module that registers the environment
    resolve_env_id(agent.spec.env_id, ATARI if agent.spec.is_atari else "")
    return agent


def _require_one_process(config: object) -> None:
    """Raise a ConfigError unless the argument is a Config that can be trained in this process."""
    if not isinstance(config, Config):
        kind = config.__name__ if isinstance(config, type) else type(config).__name__
        raise ConfigError(f"train({kind}): a Config is expected, as in train(Config(env_id='CartPole-v1'))")
    if isinstance(config, DecoupledConfig):
        raise ConfigError(
            "train(DecoupledConfig): a Config or TorchConfig is expected; player and trainers are several processes, "
            "as in python -m fabric_ppo train decoupled --devices 3"
        )


def _flags(config: Config) -> dict[str, Any]:
    """Return field name -> value.

    Values at their default are replaced by those of the file `config.config`, if there is one, or
    else by those of the resumed run.

    Raises:
        ConfigError: a file cannot be read, or the run is another script's.
    """
    flags = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    if config.config is None and not config.resume:
        return flags
    from fabric_ppo.run.near_runs import require_run_or_flags
    from fabric_ppo.tools.flags import flags_of_run, load_yaml
    from fabric_ppo.tools.locate import config_path

    defaults = {field.name: field.default for field in dataclasses.fields(config)}
    of_files: dict[str, Any] = {}
    if config.config is not None:
        require_text_path("--config", path := os.fspath(config.config))
        of_files = load_yaml(config_path(path), TorchConfig)
    if config.resume:
        require_text_path("--run-dir", run_dir := os.fspath(config.run_dir or ""))
        given = {name for name, value in flags.items() if value != defaults[name]}
        require_run_or_flags(run_dir, given | of_files.keys(), config.log_dir)
        of_run = flags_of_run(run_dir, TorchConfig)
        of_run.pop("quiet", None)  # how much is printed is for this call to say
        of_files = of_run | of_files
    return flags | {name: value for name, value in of_files.items() if flags.get(name) == defaults.get(name)}


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Keep this program's lines and the libraries' warnings from being printed."""
    with muted(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _where_to_go_on(run_dir: Path, has_parts: bool) -> str:
    """Return the end of a message about a run that was interrupted."""
    newest = newest_whole(run_dir / "checkpoints")
    if newest is None:
        return " before the first update was done: there is nothing to go on from"
    more = ", giving it callbacks and trackers again," if has_parts else ""
    return f" after update {update_of(newest)}; go on{more} with {go_on_with(run_dir)}"

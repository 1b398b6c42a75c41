"""Training from Python: a notebook, a sweep, a larger program."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fabric_ppo.agents.policy_file import newest_whole
from fabric_ppo.config import Config, DecoupledConfig, TorchConfig
from fabric_ppo.process.console import muted, print_line
from fabric_ppo.process.errors import ConfigError
from fabric_ppo.process.files import require_text_path, update_of
from fabric_ppo.process.launch import read_launch
from fabric_ppo.process.settings import callers_settings_kept
from fabric_ppo.run.resolve import resolve
from fabric_ppo.run.result import RunResult

if TYPE_CHECKING:
    from fabric_ppo.run.callbacks import Callback
    from fabric_ppo.run.trackers.tracker import Tracker


class Interrupted(KeyboardInterrupt):
    """Ctrl-C during `train`, which has printed a line about it: notebooks show no traceback."""

    def _render_traceback_(self) -> list[str]:
        """Return the lines that IPython shows."""
        return ["KeyboardInterrupt"]


def train(
    config: Config, verbose: bool = True, *, callbacks: Sequence[Callback] = (), trackers: Sequence[Tracker] = ()
) -> RunResult:
    """Train in this process, to the same result as `python train_torch.py` with the same flags.

    PyTorch's settings and the filters of warnings are afterwards as they were before. Ctrl-C prints
    a line and raises KeyboardInterrupt. A finished or interrupted run goes on with `resume=True`,
    as from the command line.

    Args:
        config: the flags. Where the Config has the default, those of the file `config.config` hold,
            or with `resume=True` those of the run, which needs no other flag then.
            `quiet=True` is that of the command line: warnings are printed.
        verbose: False: print nothing, warnings included; code of your own still prints.
        callbacks, trackers: objects of subclasses of `Callback` and `Tracker`, or such classes,
            called after those that the flags name, on rank 0. They are not in `config.yaml`: a run
            that is resumed is given them again.

    Returns:
        The run: its folder, summary, metrics and agent.

    Raises:
        ConfigError: flags that cannot work; nothing has been written.
        EnvironmentFault, TrainingError: the training failed; the folder has a checkpoint from
            before.
        NotAllWrittenError: done, but something could not be written.
        KeyboardInterrupt: the training was interrupted; the folder has a checkpoint, unless that
            was before the first update.
    """
    _require_one_process(config)
    flags = _flags(config)
    if not verbose:
        flags["quiet"] = True
    with callers_settings_kept(), contextlib.nullcontext() if verbose else _silence():
        launch = read_launch()
        resolved = resolve(TorchConfig(**flags), launch.world_size, launch.local_world_size)

        from fabric_ppo.run.folder import new_run_dir
        from fabric_ppo.run.parts import parts_of
        from train_torch import main

        parts = parts_of(callbacks, trackers)
        run_dir = new_run_dir(resolved)
        try:
            main(dataclasses.replace(resolved, run_dir=str(run_dir)), parts)
        except KeyboardInterrupt:
            print_line(f"interrupted{_where_to_go_on(run_dir)}", sys.stderr)
            # a new one: the traceback of the old one leads through the whole program
            raise Interrupted from None
        finally:
            with contextlib.suppress(OSError):  # that of a run that could not start is empty
                run_dir.rmdir()
    return RunResult(run_dir, own_code=True)


def _require_one_process(config: object) -> None:
    """Raise a ConfigError for what cannot be trained in this process."""
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

    Those at their default are those of the file `config.config`, where there is one, or else of the
    run that is resumed.

    Raises:
        ConfigError: a file cannot be read, or the run is another script's.
    """
    flags = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    if config.config is None and not config.resume:
        return flags
    from fabric_ppo.tools.flags import flags_of_run, load_yaml
    from fabric_ppo.tools.locate import config_path

    of_files: dict[str, Any] = {}
    if config.resume:
        require_text_path("--run-dir", run_dir := os.fspath(config.run_dir or ""))
        of_files = flags_of_run(run_dir, TorchConfig)
        of_files.pop("quiet", None)  # how much is printed is for this call to say
    if config.config is not None:
        require_text_path("--config", path := os.fspath(config.config))
        of_files |= load_yaml(config_path(path), TorchConfig)
    defaults = {field.name: field.default for field in dataclasses.fields(config)}
    return flags | {name: value for name, value in of_files.items() if flags.get(name) == defaults.get(name)}


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Keep this program's lines and the libraries' warnings from being printed."""
    with muted(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _where_to_go_on(run_dir: Path) -> str:
    """Return the end of a message about a run that was interrupted."""
    newest = newest_whole(run_dir / "checkpoints")
    if newest is None:
        return " before the first update was done: there is nothing to go on from"
    return f" after update {update_of(newest)}: Config(..., run_dir={str(run_dir)!r}, resume=True) goes on"

"""Setup of a run before its first update: process, folder, checkpoint, trackers and callbacks."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch

from fabric_ppo.agents.agent import Agent
from fabric_ppo.agents.policy_file import start_from
from fabric_ppo.config import Config
from fabric_ppo.envs.action_log import ActionLog
from fabric_ppo.fast.flat_weights import require_all_held
from fabric_ppo.process.console import print_from_rank_zero, print_line, without_notes
from fabric_ppo.process.errors import ConfigError, StoppedBySignal
from fabric_ppo.process.failures import is_lost_contact
from fabric_ppo.process.group import Ranks, from_rank_zero
from fabric_ppo.process.settings import settings_kept
from fabric_ppo.process.signals import signals
from fabric_ppo.rollouts.buffer import RolloutBuffer
from fabric_ppo.run.callbacks import Callback
from fabric_ppo.run.checkpoint import Checkpoints, drop_old
from fabric_ppo.run.counts import Counts
from fabric_ppo.run.env_attributes import EnvAttributes
from fabric_ppo.run.folder import CONFIG_FILE, is_of_a_run, lock_folder, make_folder, note_failure, replace_run
from fabric_ppo.run.near_runs import is_numbered_alike, nearest_run
from fabric_ppo.run.opening import opening_lines
from fabric_ppo.run.optimizer_state import settings_of
from fabric_ppo.run.parts import NO_PARTS, Parts, name_of
from fabric_ppo.run.prepare import prepare_process
from fabric_ppo.run.resume import find_checkpoint, restore
from fabric_ppo.run.run import Books, Run
from fabric_ppo.run.trackers.make import make_trackers, own_tracker
from fabric_ppo.run.trackers.tracker import Trackers, make_part
from fabric_ppo.run.writes import Writes

R = TypeVar("R", bound="Closable")


class Closable(Protocol):
    """A resource of a run, such as its environments."""

    def close(self) -> object:
        """Close it.

        Raises:
            OSError: something could not be written, which has been printed.
        """


class RunSetup(contextlib.ExitStack):
    """Context of a run: `start` begins the run, and leaving the context closes everything it opened.

    Attributes:
        dir: the run's folder; it does not exist yet, and a run that cannot start leaves none.
        video_dir: folder of training videos; empty for none (batches are not recorded).
    """

    def __init__(self, config: Config, ranks: Ranks, run_dir: Path, parts: Parts = NO_PARTS) -> None:
        """Prepare the process, and find the checkpoint for `--resume`.

        Args:
            config: the run's configuration, resolved.
            ranks: the ranks with environments.
            run_dir: result of `new_run_dir`.
            parts: callbacks and trackers besides those of the flags.

        Raises:
            ConfigError: ranks have different flags, or the checkpoint does not fit these flags.
        """
        super().__init__()
        self._started = time.perf_counter()
        self._config, self._ranks, self._leads, self._parts = config, ranks, ranks.rank == 0, parts
        prepare_process(config, ranks)
        # a folder's default name has the time in it, which other ranks read later
        named_by_rank_zero = Path(os.fsdecode(from_rank_zero(os.fsencode(run_dir), ranks)))
        self.dir = named_by_rank_zero if config.run_dir is None else run_dir
        records = config.capture_video and config.env_backend in ("sync", "async")
        self.video_dir = str(self.dir / "train_videos") if records else ""
        folder = Path(self.video_dir or self.dir)
        self._is_new = not (os.path.isdir(self.dir) and os.listdir(self.dir))
        self._missing = [path for path in (folder, *folder.parents) if not os.path.exists(path)]
        self._writes = Writes()
        # before reading a checkpoint, or a run that still trains there could write a newer one
        self._is_locked = self._leads and config.resume and self.dir.exists()
        if self._is_locked:
            self.callback(lock_folder(self.dir))
        self._checkpoint = find_checkpoint(self.dir, config, ranks) if config.resume else None
        if config.resume and self._checkpoint is None and not config.quiet:
            # a folder that holds a run, killed before its first checkpoint, is the one that was meant
            near = None if (self.dir / CONFIG_FILE).is_file() else nearest_run(self.dir, config.log_dir)
            hint = "" if near is None or is_numbered_alike(near, self.dir) else f"; did you mean {near}?"
            print_from_rank_zero(f"nothing to go on from in {self.dir}: a new run begins{hint}")
        if config.quiet:
            self.enter_context(without_notes())
        self._run: Run | None = None
        self._close_early: list[Callable[[], None]] = []

    def closing(self, resource: R) -> R:
        """Close `resource` when the context is left, and return it."""

        def close() -> None:
            try:
                resource.close()
            except OSError as error:
                self._writes.note(error)

        self._close_early.append(close)
        self.callback(close)
        return resource

    def _close_resources(self) -> None:
        """Close the resources passed to `closing`; a second call does nothing."""
        for close in reversed(self._close_early):
            close()

    def start(self, agent: Agent, optimizer: torch.optim.Optimizer, buffer: RolloutBuffer) -> Run:
        """Start the environments, or restore everything from a checkpoint, and return the run.

        A new run starts with the policy of `--init-from`, if there is one.

        Args:
            agent: the agent to train, the plain module.
            optimizer: its optimizer.
            buffer: the buffer of this rank's environments.

        Raises:
            ConfigError: the optimizer does not hold all that is trained, the checkpoint or the policy
                does not fit, or the folder cannot be made.
        """
        require_all_held(optimizer, agent)
        config, ranks, checkpoint = self._config, self._ranks, self._checkpoint
        settings = settings_of(optimizer)  # before the checkpoint's
        attributes, callback_names = EnvAttributes(buffer, ranks, config.overlaps), self._callback_names()
        if checkpoint is None:
            if config.init_from is not None:
                start_from(agent, config.init_from)
            buffer.start()
            num_envs, shape = buffer.num_envs * ranks.size, buffer.actions.shape[2:]
            counts, log = Counts(), ActionLog.empty(num_envs, shape, buffer.log_dtype)
        else:
            counts, log = restore(checkpoint, self.dir, config, ranks, agent, optimizer, buffer, attributes)
            # of rank 0 alone: in a program of several ranks only one may have given objects
            names = from_rank_zero(f"+{callback_names}".encode(), ranks).decode()[1:]
            counts.resume_ending(checkpoint.values, config, names)
            if counts.ended_by_callback:
                go_on = "another --callback or more --total-timesteps go on with it"
                print_from_rank_zero(f"a callback has ended this run: {go_on}")
        counts.started = self._started
        trackers, callbacks = Trackers({}, self._writes), []
        # the folder comes last, so that a run that cannot start leaves none
        if self._leads:
            trackers, callbacks = self._make_trackers(), self._make_callbacks()
            self._open_folder(trackers, counts, agent)
        checkpoints = Checkpoints(self.dir / "checkpoints", config, self._writes, trackers.flush)
        if checkpoint is not None:
            checkpoints.resume_from(checkpoint)
        in_flight = {} if checkpoint is None else checkpoint.under("in_flight.")
        given = (self._close_resources, callback_names, attributes, settings)
        books = Books(self.dir, self._writes, trackers, callbacks, checkpoints, *given)
        self._run = Run(config, ranks, agent, optimizer, counts, log, books, in_flight)
        self.callback(self._run.close)
        return self._run

    def _make_trackers(self) -> Trackers:
        made = make_trackers(self._config)
        made |= {name_of(each): own_tracker(each, self._config) for each in self._parts.trackers}
        return Trackers(made, self._writes)

    def _make_callbacks(self) -> list[Callback]:
        names = (self._config.callback or "").split(",")
        with settings_kept(self._config.seed):  # they may change some as they are made
            made = [make_part(name, "callback", Callback) for name in names if name]
        return [*made, *self._parts.callbacks]

    def _callback_names(self) -> str:
        """Return the classes of all callbacks, separated by commas."""
        return ",".join([*filter(None, [self._config.callback]), *map(name_of, self._parts.callbacks)])

    def _open_folder(self, trackers: Trackers, counts: Counts, agent: Agent) -> None:
        """Make and lock the folder, start the trackers in it, and print the opening lines."""
        config = self._config
        # before anything is written: another run may have been started there
        if not self._is_locked:
            self.callback(lock_folder(self.dir))
        if not config.resume and replace_run(self.dir) and not config.quiet:
            print_from_rank_zero(f"replacing the run in {self.dir}, which ended before its first checkpoint")
        make_folder(self.dir, config)
        folder, keep = self.dir / "checkpoints", config.keep_checkpoints
        # a kill may have come between writing a checkpoint and dropping an old one
        self._writes.do("a checkpoint", drop_old, folder, keep)
        try:
            trackers.start(config.to_dict(), self.dir, counts.position)
        except ConfigError:
            self._remove_new_folder()
            raise
        num_updates = config.num_updates(self._ranks.size)
        if self._checkpoint is not None and not config.quiet:
            print_from_rank_zero(f"resumed after update {counts.updates} of {num_updates}")
        if not config.quiet:
            self._print_remainder(num_updates)
            print_line(opening_lines(config, self.dir, agent, self._ranks.size, counts.updates), sys.stdout)

    def _print_remainder(self, num_updates: int) -> None:
        """Print a line if `--total-timesteps` is no whole number of updates."""
        config = self._config
        per_update = config.num_steps
        if config.timestep_unit == "transition":
            per_update *= config.num_envs * self._ranks.size
        counted = num_updates * per_update
        if counted < config.total_timesteps:
            print_from_rank_zero(
                f"--total-timesteps {config.total_timesteps} is rounded down to {counted}: "
                f"{num_updates} updates of {per_update}"
            )

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> bool | None:
        """Save the state of a run that failed, and close everything.

        Raises:
            NotAllWrittenError: the run is done, but something could not be written.
        """
        if error is not None:
            self._fail(error)
        suppresses = super().__exit__(kind, error, trace)
        if self._leads and (self._run is None or (isinstance(error, ConfigError) and self._run.is_at_start)):
            if self._run is not None:
                self._remove_new_folder()
            self._remove_empty_folders()
        if error is None:
            self._writes.raise_if_incomplete()
        return suppresses

    def _fail(self, error: BaseException) -> None:
        """Save the state from before the failed update, and print where it is."""
        # from here on no signal interrupts the writing
        signals.stopping()
        is_refused = isinstance(error, ConfigError) and (self._run is None or self._run.is_at_start)
        is_failure = not is_refused and not isinstance(error, (StoppedBySignal, KeyboardInterrupt))
        where = self._run.fail() if self._run is not None else None
        if is_failure and where is not None:
            print_from_rank_zero(f"the run has failed{where}")
        if is_failure:
            if self._run is not None:
                note_failure(self.dir, error, is_final=not is_lost_contact(error))
            signals.failed(error)

    def _remove_new_folder(self) -> None:
        """Remove the folder of a run that is refused after it was made, but no foreign files."""
        if not self._is_new:
            return
        with contextlib.suppress(OSError):
            for each in self.dir.iterdir():
                if is_of_a_run(each.name):
                    shutil.rmtree(each) if each.is_dir() else each.unlink()
            self.dir.rmdir()

    def _remove_empty_folders(self) -> None:
        """Remove the folders for videos of a run that did not begin."""
        for path in self._missing:
            with contextlib.suppress(OSError):  # missing, or no longer empty
                path.rmdir()

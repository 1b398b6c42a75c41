"""A training run: it counts, logs, saves and tests, but does not change what an agent learns.

In each update a script calls `merge` with its numbers, changes what depends on the result, such as
running statistics, and calls `finish_update` with it.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fabric_ppo.agents.agent import Agent
from fabric_ppo.agents.policy import own_modules
from fabric_ppo.agents.policy_file import POLICY_FILE, save_policy
from fabric_ppo.config import Config
from fabric_ppo.envs.action_log import ActionLog
from fabric_ppo.ppo.update import UpdateStats
from fabric_ppo.process.console import print_line
from fabric_ppo.process.errors import StoppedBySignal
from fabric_ppo.process.group import Ranks
from fabric_ppo.process.launch import read_launch
from fabric_ppo.process.metrics import Metrics
from fabric_ppo.process.profile import Profile, timed
from fabric_ppo.process.signals import signals
from fabric_ppo.rollouts.buffer import Rollout
from fabric_ppo.rollouts.evaluate import TestResult
from fabric_ppo.run.callbacks import Callback, Callbacks
from fabric_ppo.run.checkpoint import Checkpoints
from fabric_ppo.run.commands import play_again
from fabric_ppo.run.counts import Counts
from fabric_ppo.run.env_attributes import EnvAttributes
from fabric_ppo.run.evaluation import play_evaluation, play_test
from fabric_ppo.run.guard import Guard
from fabric_ppo.run.metrics import Requests, UpdateResult, merge_update, require_own_names
from fabric_ppo.run.optimizer_state import OptimizerState, read_optimizer
from fabric_ppo.run.progress import Progress
from fabric_ppo.run.result import WINDOW_RETURN
from fabric_ppo.run.snapshot import Copies, Snapshot
from fabric_ppo.run.summary import Summary, summarize
from fabric_ppo.run.surroundings import surroundings
from fabric_ppo.run.trackers.tracker import Trackers
from fabric_ppo.run.writes import Writes


@dataclass(frozen=True)
class Books:
    """Destinations of everything that a run writes; trackers and callbacks exist only on rank 0.

    `close_envs` closes the environments of this rank, after training. `callback_names` has the
    classes of all callbacks, separated by commas. `attributes` are set by callbacks. The optimizer
    was made with `optimizer_settings`.
    """

    dir: Path
    writes: Writes
    trackers: Trackers
    callbacks: list[Callback]
    checkpoints: Checkpoints
    close_envs: Callable[[], None]
    callback_names: str
    attributes: EnvAttributes
    optimizer_settings: dict[str, Any]


class Run:
    """A run after its setup; `RunSetup.start` makes one.

    After each update rank 0 keeps a snapshot, from which a checkpoint can be written at any moment:
    in the middle of the next update, or when another rank has died.

    Attributes:
        num_updates: number of updates of the whole run.
        first_update: number of the first update of this process; above 0 in a resumed run.
        in_flight: weights with which the rollout in progress was collected, in a resumed run with
            overlap; else empty.
    """

    def __init__(
        self,
        config: Config,
        ranks: Ranks,
        agent: Agent,
        optimizer: torch.optim.Optimizer,
        counts: Counts,
        log: ActionLog,
        books: Books,
        in_flight: Mapping[str, Tensor],
    ) -> None:
        """Begin after `counts`, with the actions in `log`; see `RunSetup.start`."""
        self.num_updates = config.num_updates(ranks.size)
        self.first_update, self.in_flight = counts.updates, in_flight
        self._config, self._ranks, self._leads = config, ranks, ranks.rank == 0
        self._agent, self._optimizer, self._guard = agent, optimizer, Guard(agent)
        self._counts, self._log, self._books = counts, log, books
        self._is_over = counts.ends_early(config)
        self._is_stopping = self._is_finished = False
        self._eval_return: float | None = None
        self._has_begun = False
        self._profile: Profile | None = None
        self._summary: Summary | None = None
        self._has_policy = False
        total = self.num_updates * config.num_steps * config.num_envs * ranks.size
        counted = (total, counts.env_steps, self._leads and not config.quiet)
        self._progress_of = (config, books.dir, books.checkpoints, *counted)
        self._constants = _constant_values(config, agent) | {
            "callbacks": books.callback_names,
            "optimizer_settings": books.optimizer_settings,
        }
        self._attributes = books.attributes
        self._callbacks = Callbacks(books.callbacks, config, books.dir, agent, self.num_updates, books.attributes)

    @property
    def is_at_start(self) -> bool:
        """True before the end of the run's first update."""
        return self._counts.updates == 0

    def updates(self) -> Iterator[int]:
        """Yield the numbers of the updates until the run is over; write due checkpoints after each."""
        checkpoints = self._books.checkpoints
        self._progress = Progress(*self._progress_of)
        self._has_begun = True
        self._attributes.start(lambda: self._callbacks.on_start(self._counts))
        # the first update begins here: what came before does not count as training time
        self._update_started = time.perf_counter()
        self._train_started = self._update_started - self._counts.train_seconds
        if self._config.profile:
            self._profile = Profile.start()
        signals.begin_training(self._save_late if self._leads else None)
        for update in range(self.first_update, self.num_updates):
            if self._is_over or self._is_stopping:
                break
            yield update
            assert self._counts.updates == update + 1, "each update ends with finish_update"
            if self._is_stopping:
                signals.stopping()
            elif self._leads and checkpoints.is_due(self._counts.updates, self._eval_return):
                self._save()
        self._save()
        signals.end_training()

    def _save(self) -> None:
        """Write a checkpoint, unless it has been written, and call the callbacks."""
        checkpoints = self._books.checkpoints
        before = checkpoints.path
        checkpoints.save()
        if checkpoints.path is not None and checkpoints.path != before:
            self._callbacks.on_checkpoint(self._counts, checkpoints.path)

    def _save_late(self) -> str:
        """Write a checkpoint, from any thread, when the process ends in the middle of an update."""
        try:
            return self._books.checkpoints.save()
        finally:
            self._progress.close()

    @timed("report")
    def merge(self, rollout: Rollout, stats: UpdateStats) -> UpdateResult:
        """Merge this rank's part of an update with those of all ranks (one collective).

        If a callback has set attributes of environments, these need two more.

        Raises:
            TrainingError: a number is not finite; the agent has the weights from before this
                update.
        """
        # before anything is logged or saved: the last checkpoint must be one to go on from
        self._guard.check(stats, self._counts.updates)
        attributes = self._attributes
        requests = Requests(bool(signals.name), self._counts.asked_to_stop, attributes.is_asked)
        result = merge_update(rollout, stats, requests, self._ranks)
        attributes.merge(result.requests.attributes > 0)
        return result

    def is_last(self, result: UpdateResult) -> bool:
        """Return True if no update follows the one with this result."""
        counts = self._counts.after(result)
        is_over = counts.updates == self.num_updates or counts.ends_early(self._config)
        return is_over or result.requests.signal > 0

    def finish_update(self, result: UpdateResult, learning_rate: float, *more: Metrics) -> None:
        """Log and print an update, evaluate if that is due, and keep a snapshot of the run.

        Args:
            result: result of `merge`.
            learning_rate: learning rate of this update.
            more: further numbers to log.

        Raises:
            TrainingError: running statistics are not finite.
            ConfigError: one of the user's own metrics has a name that is taken.
        """
        require_own_names(result, more)
        if len(result.moments):  # sums of observations can overflow
            self._guard.check(result.update, self._counts.updates)
        # the rollout in progress was collected with the weights from before this update
        in_flight = self._guard.kept if self._config.overlaps else {}
        self._guard.keep()
        before, self._counts = self._counts, self._counts.after(result)
        counts = self._counts
        self._is_over = counts.ends_early(self._config)
        self._is_stopping = result.requests.signal > 0
        self._attributes.finish_update(result.snapshot.ended)
        started, self._update_started = self._update_started, time.perf_counter()
        counts.train_seconds = self._update_started - self._train_started
        seconds = self._update_started - started
        if self._leads:
            for line in counts.info.new_warnings(before.info):
                print_line(line, sys.stderr)
            metrics = _logged(result, more, self._config, counts.return_mean)
            metrics |= {"Info/learning_rate": learning_rate, "Time/step_per_second": result.rollout.env_steps / seconds}
            evaluation: TestResult | None = None
            try:
                evaluation = self._evaluate(metrics)
            finally:  # an environment that fails in an evaluation must not cost the update
                self._log_update(result, metrics)
                self._books.checkpoints.keep(self._snapshot(result, in_flight))
            # last: whatever a callback raises, the update is on record
            self._attributes.on_set = lambda: self._books.checkpoints.keep(self._snapshot(result, in_flight))
            if self._callbacks.on_update(counts, metrics, evaluation):
                counts.asked_to_stop = True
                self._books.checkpoints.keep(self._snapshot(result, in_flight))
            self._progress.update(counts, metrics, seconds)
        self._attributes.apply()

    @timed("evaluation")
    def _evaluate(self, metrics: dict[str, float]) -> TestResult | None:
        """Play the episodes of an evaluation if one is due, and add their mean return."""
        every, self._eval_return = self._config.eval_every, None
        if not every or self._counts.updates % every:
            return None
        result = play_evaluation(self._config, self._agent)
        self._eval_return = float(np.mean(result.returns))
        metrics |= result.info.tagged("Eval", len(result.returns)) | {"Eval/return_mean": self._eval_return}
        return result

    @timed("logging")
    def _log_update(self, result: UpdateResult, metrics: Mapping[str, float]) -> None:
        """Log an update."""
        # before its snapshot is kept: the logs of a resumed run must not have gaps
        self._books.trackers.log(metrics, self._counts.env_steps)
        self._log.append(result.snapshot.actions, result.snapshot.ended)

    def _snapshot(self, result: UpdateResult, in_flight: Mapping[str, Tensor]) -> Snapshot:
        """Return a snapshot of the run after an update."""
        state = read_optimizer(self._optimizer)
        weights, optimizer = self._guard.kept, OptimizerState(Copies(state.tensors), state.values)
        mean = self._eval_return if self._config.eval_every else self._counts.return_mean
        values = self._constants | self._counts.to_values() | {"attributes": self._attributes.to_values()}
        values |= {"learning_rate": float(self._optimizer.param_groups[0]["lr"]), "return_mean": mean}
        log = self._log.view()
        return Snapshot(weights, optimizer, in_flight, result.snapshot, log, values)

    def finish(self) -> Summary:
        """Test the agent and write its files on rank 0; return the summary, on other ranks without test.

        Raises:
            StoppedBySignal: the run was stopped before its end; a checkpoint has been written.
        """
        self._progress.close()
        if self._is_stopping:
            where = self._books.checkpoints.last
            raise StoppedBySignal(f"stopped by {signals.name or 'a signal'}{where}")
        writes, run_dir = self._books.writes, self._books.dir
        if self._profile is not None:
            writes.do("the profile", self._profile.finish, self._ranks, run_dir)
        self._summary = summarize(self._config, self._counts, {})
        if self._leads:
            self._has_policy = writes.do(POLICY_FILE, save_policy, self._agent, run_dir)
        # of some environments only one can be open, and the test needs it
        self._books.close_envs()
        if self._leads:
            # the test may fail, and leaves a summary of the training then
            writes.do("summary.json", self._summary.write, run_dir)
            self._test()
        return self._summary

    def _test(self) -> None:
        """Play the test episodes, and pass the summary to file, trackers, callbacks and console."""
        config, books = self._config, self._books
        records = config.capture_video
        result = play_test(config, self._agent, str(books.dir / "test_videos") if records else "")
        if result.unwritten:
            books.writes.note(OSError(result.unwritten))
        for line in self._counts.info.last_warnings(config.info_keys, result):
            print_line(line, sys.stderr)
        self._summary = summary = summarize(config, self._counts, result.to_dict())
        books.writes.do("summary.json", summary.write, books.dir)
        if self._has_policy:  # else an older one may be there
            books.trackers.artifact(books.dir / POLICY_FILE, "policy")
        if records and _has_video(books.dir / "test_videos"):
            books.trackers.artifact(books.dir / "test_videos", "video")
        self._is_finished = True
        self._callbacks.on_end(self._counts, summary)
        if not config.quiet:
            print_line(_closing_lines(summary, config, self._agent, books.dir), sys.stdout)

    def fail(self) -> str | None:
        """Save the state from before the failed update.

        Returns:
            Where it is; None before the first update and after the test, when nothing can be resumed.
        """
        if not self._has_begun or self._is_finished:
            return None
        self._progress.close()
        return self._books.checkpoints.save() if self._leads else ""

    def close(self) -> None:
        """Close all destinations of the run."""
        signals.end_training()
        if self._has_begun:
            self._progress.close()
        self._books.trackers.finish(None if self._summary is None else asdict(self._summary))


def _constant_values(config: Config, agent: Agent) -> dict[str, Any]:
    """Return the values of a checkpoint that stay the same for the whole run."""
    return {
        "script": config.script,
        "config": config.to_dict(),
        "world_size": read_launch().world_size,
        "surroundings": surroundings(config, agent),
        "env_spec": agent.spec.to_json(),
        "agent": agent.architecture.to_json(),
    }


def _logged(
    result: UpdateResult, more: Sequence[Metrics], config: Config, return_mean: float | None
) -> dict[str, float]:
    """Return the scalars of an update, tag -> value; `return_mean` is that of the last episodes."""
    metrics = result.tagged()
    if return_mean is not None:
        metrics[WINDOW_RETURN] = return_mean
    if not config.restart_envs:
        del metrics["Info/env_restarts"]  # always zero then
    for each in more:
        metrics |= each.tagged()
    return metrics


def _closing_lines(summary: Summary, config: Config, agent: Agent, run_dir: Path) -> str:
    """Return the text that is printed at the end of a training."""
    folders = [run_dir / name for name in ("train_videos", "test_videos")] if config.capture_video else []
    videos = [str(folder) for folder in folders if _has_video(folder)]
    has_policy = (run_dir / POLICY_FILE).exists()
    again = play_again(run_dir, config, own_modules(agent.spec)) if has_policy else ""
    return summary.lines(run_dir, videos, again)


def _has_video(folder: Path) -> bool:
    """Return True if there is a video in a folder, for making one may have failed."""
    return any(folder.glob("*.mp4"))

"""A training run: it counts, logs, saves and tests. It changes nothing that is learned.

In a script, an update is: `merge` what the ranks saw of it, let the script renew what depends on
that, and `finish_update` with the result.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fabric_ppo.agents.agent import Agent
from fabric_ppo.agents.policy import Policy, own_modules
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
from fabric_ppo.rollouts.evaluate import TestResult, evaluate
from fabric_ppo.run.callbacks import Callback, RunView
from fabric_ppo.run.checkpoint import Checkpoints
from fabric_ppo.run.counts import Counts
from fabric_ppo.run.guard import Guard
from fabric_ppo.run.metrics import Requests, UpdateResult, merge_update
from fabric_ppo.run.progress import Progress
from fabric_ppo.run.resume import surroundings
from fabric_ppo.run.snapshot import Snapshot, copies, optimizer_tensors
from fabric_ppo.run.summary import Summary
from fabric_ppo.run.trackers.tracker import Trackers
from fabric_ppo.run.writes import Writes

_EVALUATION = 2**31
"""Bit of the seed that tells an evaluation's episodes from the test's."""


@dataclass(frozen=True)
class Books:
    """Everything that a run writes into; trackers and callbacks on rank 0 only."""

    dir: Path
    writes: Writes
    trackers: Trackers
    callbacks: list[Callback]
    checkpoints: Checkpoints


class Run:
    """A run from its first update on; `RunSetup.start` makes one.

    On rank 0 it keeps, from update to update, all that the run goes on from: a checkpoint can be
    written at any moment, also in the middle of an update or when another rank has died.

    Attributes:
        num_updates: how many updates the run has.
        first_update: the one that it begins with; not 0 where it was resumed.
        in_flight: weights that the rollout in progress was collected with, of a resumed run with
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
        """Go on from `counts` and the actions in `log`; see `RunSetup.start`."""
        self.num_updates = config.num_updates(ranks.size)
        self.first_update, self.in_flight = counts.updates, in_flight
        self._config, self._ranks, self._leads = config, ranks, ranks.rank == 0
        self._agent, self._optimizer, self._guard = agent, optimizer, Guard(agent)
        self._counts, self._log, self._books = counts, log, books
        self._is_over = counts.has_reached(config.stop_at_return)
        self._is_stopping = self._wants_to_stop = False
        self._eval_return: float | None = None
        self._has_begun = False
        self._profile: Profile | None = None
        self._summary: Summary | None = None
        total = self.num_updates * config.num_steps * config.num_envs * ranks.size
        self._progress_of = (total, counts.env_steps, self._leads and not config.quiet)
        self._constants: dict[str, Any] = {
            "script": config.script,
            "config": config.to_dict(),
            "world_size": read_launch().world_size,
            "surroundings": surroundings(),
            "env_spec": agent.spec.to_json(),
            "agent": agent.architecture.to_json(),
        }

    def updates(self) -> Iterator[int]:
        """Count the updates until the run is over; after each, write what is due."""
        checkpoints = self._books.checkpoints
        self._progress = Progress(*self._progress_of)
        self._has_begun = True
        for callback in self._books.callbacks:
            callback.on_start(self._view())
        self._update_started = time.perf_counter()
        self._train_started = self._update_started - self._counts.train_seconds
        if self._config.profile:
            self._profile = Profile.start()
        signals.begin_training(checkpoints.save if self._leads else None)
        for update in range(self.first_update, self.num_updates):
            if self._is_over or self._is_stopping:
                break
            yield update
            assert self._counts.updates == update + 1, "each update ends with finish_update"
            if self._is_stopping:
                signals.stopping()
            elif self._leads and checkpoints.is_due(self._counts.updates, self._eval_return):
                checkpoints.save()
        checkpoints.save()
        signals.end_training()

    @timed("report")
    def merge(self, rollout: Rollout, stats: UpdateStats) -> UpdateResult:
        """Merge what the ranks saw of an update (one collective), and whether one asks to stop.

        Raises:
            TrainingError: something is not finite; the agent has the weights from before this
                update.
        """
        self._guard.check(stats, self._counts.updates)
        requests = Requests(signal=bool(signals.name), callback=self._wants_to_stop)
        return merge_update(rollout, stats, requests, self._ranks)

    def is_last(self, result: UpdateResult) -> bool:
        """Return whether no update follows the one with this result."""
        counts = self._counts.after(result)
        has_all = counts.updates == self.num_updates
        return has_all or self._ends(counts, result) or result.requests.signal > 0

    def _ends(self, counts: Counts, result: UpdateResult) -> bool:
        """Return whether the run is over before its last update."""
        return counts.has_reached(self._config.stop_at_return) or result.requests.callback > 0

    def finish_update(self, result: UpdateResult, learning_rate: float, *more: Metrics) -> None:
        """Log and print an update, evaluate if that is due, and keep what the run could go on from.

        Other ranks may train on meanwhile: it looks at nothing but the agent, the optimizer and its
        arguments.

        Args:
            result: from `merge`.
            learning_rate: of this update.
            more: further numbers to log.

        Raises:
            TrainingError: running statistics are not finite.
        """
        if len(result.moments):  # sums of observations can overflow
            self._guard.check(result.update, self._counts.updates)
        in_flight = copies(self._guard.kept) if self._config.overlaps else {}
        self._guard.keep()
        self._counts = counts = self._counts.after(result)
        self._is_over = self._ends(counts, result)
        self._is_stopping = result.requests.signal > 0
        started, self._update_started = self._update_started, time.perf_counter()
        counts.train_seconds = self._update_started - self._train_started
        speed = result.rollout.env_steps / (self._update_started - started)
        metrics = result.tagged()
        if not self._config.restart_envs:
            del metrics["Info/env_restarts"]  # always zero then
        for each in more:
            metrics |= each.tagged()
        metrics |= {"Info/learning_rate": learning_rate, "Time/step_per_second": speed}
        if self._leads:
            self._evaluate(metrics)
            self._look_on(metrics)
            self._log_update(result, metrics)
            self._books.checkpoints.keep(self._snapshot(result, in_flight))
        self._progress.update(counts.env_steps, counts.return_mean, speed)

    @timed("evaluation")
    def _evaluate(self, metrics: dict[str, float]) -> None:
        """Where an evaluation is due, add its mean return; its episodes are not the test's."""
        every, self._eval_return = self._config.eval_every, None
        if every and self._counts.updates % every == 0:
            seed, episodes = self._config.seed ^ _EVALUATION, self._config.eval_episodes
            result = evaluate(Policy(self._agent), episodes, seed)
            self._eval_return = float(np.mean(result.returns))
            metrics["Eval/return_mean"] = self._eval_return
            asked = [each.on_evaluation(self._view(), result.to_dict()) for each in self._books.callbacks]
            self._wants_to_stop |= any(asked)

    def _look_on(self, metrics: Mapping[str, float]) -> None:
        asked = [each.on_update(self._view(), dict(metrics)) for each in self._books.callbacks]
        self._wants_to_stop |= any(asked)

    @timed("logging")
    def _log_update(self, result: UpdateResult, metrics: Mapping[str, float]) -> None:
        """Log an update, before a checkpoint can be made of it."""
        self._books.trackers.log(metrics, self._counts.env_steps)
        self._log.append(result.snapshot.actions, result.snapshot.ended)

    def _view(self) -> RunView:
        return RunView(
            config=self._config.to_dict(),
            run_dir=self._books.dir,
            policy=Policy(self._agent),
            update=self._counts.updates,
            env_steps=self._counts.env_steps,
            num_updates=self.num_updates,
        )

    def _snapshot(self, result: UpdateResult, in_flight: dict[str, Tensor]) -> Snapshot:
        weights, optimizer = copies(self._guard.kept), copies(optimizer_tensors(self._optimizer))
        mean = self._eval_return if self._config.eval_every else self._counts.return_mean
        values = self._constants | self._counts.to_values()
        values |= {"learning_rate": self._optimizer.param_groups[0]["lr"], "return_mean": mean}
        log = self._log.view()
        return Snapshot(weights, optimizer, in_flight, result.snapshot, log, values)

    def finish(self) -> Summary:
        """Test the agent and write what remains; rank 0 does so, others return what they know.

        Raises:
            StoppedBySignal: the run is not over: it was asked to stop, and has saved what it goes
                on from.
        """
        self._progress.close()
        if self._is_stopping:
            where = self._books.checkpoints.last
            raise StoppedBySignal(f"stopped by {signals.name or 'a signal'}{where}")
        writes, run_dir = self._books.writes, self._books.dir
        if self._profile is not None:
            writes.do("the profile", self._profile.finish, self._ranks, run_dir)
        self._summary = self._summarize({})
        if self._leads:
            writes.do(POLICY_FILE, save_policy, self._agent, run_dir)
            # the test may fail: what was trained is on record
            writes.do("summary.json", self._summary.write, run_dir)
            self._test()
        return self._summary

    def _test(self) -> None:
        """Play the test episodes, and tell everybody how it ended."""
        config, books = self._config, self._books
        records = config.capture_video
        video_dir = str(books.dir / "test_videos") if records else ""
        policy = Policy(self._agent)
        result: TestResult = evaluate(policy, config.test_episodes, config.seed, video_dir=video_dir)
        if result.unwritten:
            books.writes.note(OSError(result.unwritten))
        self._summary = summary = self._summarize(result.to_dict())
        books.writes.do("summary.json", summary.write, books.dir)
        books.trackers.artifact(books.dir / POLICY_FILE, "policy")
        if records:
            books.trackers.artifact(books.dir / "test_videos", "video")
        for callback in books.callbacks:
            callback.on_end(self._view(), asdict(summary))
        if not config.quiet:
            has_own_code = ":" in config.encoder or bool(own_modules(self._agent.spec))
            train_videos = str(books.dir / "train_videos")
            video_dirs = [video_dir] if config.env_backend == "envpool" else [train_videos, video_dir]
            lines = summary.lines(books.dir, video_dirs if records else [], has_own_code)
            print_line(lines, sys.stdout)

    def _summarize(self, test: dict[str, Any]) -> Summary:
        config, counts = self._config, self._counts
        return Summary(
            script=config.script,
            env_id=config.env_id,
            seed=config.seed,
            world_size=read_launch().world_size,
            total_timesteps=config.total_timesteps,
            env_steps=counts.env_steps,
            updates=counts.updates,
            gradient_steps=counts.gradient_steps,
            wall_seconds=counts.wall_seconds,
            train_seconds=counts.train_seconds,
            steps_per_second=counts.env_steps / counts.train_seconds,
            train_return_mean=counts.return_mean,
            train_return_episodes=len(counts.window),
            resumes=counts.resumes,
            exact_resume=counts.is_exact,
            test=test,
        )

    def fail(self) -> str | None:
        """Save the state from before the update that failed; return where, None if none began."""
        if not self._has_begun:
            return None
        self._progress.close()
        return self._books.checkpoints.save() if self._leads else ""

    def close(self) -> None:
        """Close what it writes into."""
        signals.end_training()
        if self._has_begun:
            self._progress.close()
        self._books.trackers.finish(None if self._summary is None else asdict(self._summary))

"""Worker of a sweep: keeps `--jobs` trials at work on this host until all trials of the study have ended."""

from __future__ import annotations

import contextlib
import select
import signal
import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from fabric_ppo.process.command import package_command
from fabric_ppo.process.console import format_number, print_line
from fabric_ppo.process.errors import FAILED, INTERRUPTED, STOPPED_BY_SIGNAL, ConfigError
from fabric_ppo.process.hold import STOPPING
from fabric_ppo.process.launch import cores_per_rank
from fabric_ppo.tools.sweep.folder import PAGE_FILE, PRESET_FILE, TRIALS
from fabric_ppo.tools.sweep.job import Job
from fabric_ppo.tools.sweep.page import write_page
from fabric_ppo.tools.sweep.preset import write_preset
from fabric_ppo.tools.sweep.runs import OUTPUT_FILE, has_ended_well, was_stopped
from fabric_ppo.tools.sweep.storage import hide_password, storage_errors, storage_reason
from fabric_ppo.tools.sweep.study import FAILURE, STEPS, Sweep
from fabric_ppo.tools.sweep.table import best_trial, describe_params

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

_FAILURES_AT_FIRST = 3
"""Trials that have failed before any has ended well, after which a worker gives up."""
_POLL_SECONDS, _LOOK_SECONDS = 0.05, 1.0
"""Seconds between looks at this worker's processes, and at trials of others."""
_SAME_CTRL_C = 1.0
"""Seconds within which a second Ctrl-C is the first, seen twice."""


class Worker:
    """The trials that this process works on."""

    def __init__(self, sweep: Sweep) -> None:
        """Work on the trials of a sweep; nothing starts yet."""
        self._sweep, self._jobs = sweep, dict[int, Job]()
        fixed = sweep.space.fixed.get("num_threads")
        # trials side by side share the cores
        self._num_threads = None if fixed else max(1, cores_per_rank() // sweep.settings.jobs)
        self._failed = self._ended_well = 0
        self._next_beat = self._next_look = 0.0
        self._stopped_by, self._interrupted_at, self._is_twice = "", 0.0, False
        self._has_said_waiting = False

    def work(self) -> int:
        """Work until all trials have ended; return the exit status."""
        url = self._sweep.settings.storage
        with self._listening():
            try:
                status = self._work()
            except storage_errors() as error:
                # one of files names its own, which may be a run's
                of = "" if isinstance(error, OSError) else f"--storage {hide_password(url)}: "
                print_line(f"error: {of}{storage_reason(url, error)}; {self._go_on_text()}", sys.stderr)
                status = FAILED
            finally:
                self._end_all(signal.SIGKILL if self._is_twice else signal.SIGTERM)
        return status

    def _work(self) -> int:
        while not self._stopped_by:
            if self._failed >= _FAILURES_AT_FIRST and not self._ended_well:
                where = self._sweep.folder / TRIALS
                print_line(
                    f"error: the first {self._failed} trials have all failed; their output is in {where}", sys.stderr
                )
                return FAILED
            self._fill()
            if not self._jobs and self._sweep.is_over():
                self._write()
                self._print_end()
                return 0
            self._serve()
            self._beat()
        self._end_all(signal.SIGTERM)
        if self._is_twice:
            print_line("interrupted twice", sys.stderr)
            return INTERRUPTED
        print_line(f"stopped by {self._stopped_by}; {self._go_on_text()}", sys.stderr)
        return STOPPED_BY_SIGNAL

    def _fill(self) -> None:
        """Take trials up while there is room for more."""
        while len(self._jobs) < self._sweep.settings.jobs and time.monotonic() >= self._next_look:
            trial = self._sweep.next_trial()
            if trial is None:
                self._next_look = time.monotonic() + _LOOK_SECONDS
                if not self._jobs and not self._has_said_waiting and not self._sweep.is_over():
                    self._has_said_waiting = True
                    print_line("waiting for trials of other workers", sys.stderr)
                return
            job = self._jobs[trial.number] = Job(self._sweep, trial, self._num_threads)
            self._go_on(job)

    def _serve(self) -> None:
        """Wait a moment for reports of the runs, answer them, and see which runs have ended."""
        running = [job for job in self._jobs.values() if job.run is not None and job.run.poll() is None]
        if not running:
            time.sleep(_POLL_SECONDS if self._jobs else _LOOK_SECONDS)
        by_connection = {job.run.connection: job for job in running if job.run is not None}
        for connection in select.select(by_connection, [], [], _POLL_SECONDS)[0] if running else []:
            job = by_connection[connection]
            if job.run is not None and (report := job.run.read()) is not None:
                try:
                    job.take(report)
                finally:  # a storage that has gone must not make the run hang
                    job.run.answer(job.is_pruned)
        self._see_ends()

    def _see_ends(self) -> None:
        for job in list(self._jobs.values()):
            assert job.run is not None
            status = job.run.poll()
            if status is None or self._stopped_by:
                continue
            job.run.close()
            if job.is_pruned:
                self._end(job)
            elif has_ended_well(status) or (was_stopped(status) and job.may_start_again()):
                self._go_on(job)
            else:
                self._fail(job, job.run.failure())

    def _go_on(self, job: Job) -> None:
        """Start the next run of a trial, or end the trial."""
        try:
            value = job.go_on()
        except ConfigError as error:  # of values between those that were checked
            self._fail(job, str(error))
            return
        if value is not None:
            self._sweep.end(job.number, "COMPLETE", value)
            self._end(job)

    def _fail(self, job: Job, reason: str) -> None:
        self._failed += 1
        self._sweep.note(job.number, FAILURE, f"{reason}; see {job.run_folder / OUTPUT_FILE}")
        self._sweep.end(job.number, "FAIL")
        self._end(job)

    def _end(self, job: Job) -> None:
        """Print the line of a trial that has ended, and write page and preset."""
        del self._jobs[job.number]
        trials = self._sweep.trials()
        trial = next(each for each in trials if each.number == job.number)
        self._ended_well += trial.state.name != "FAIL"
        print_line(_line(trial, best_trial(trials), self._sweep), sys.stdout)
        self._write()

    def _write(self) -> None:
        """Write page and preset; where they cannot be written, a line says so, and the search goes on."""
        try:
            write_page(self._sweep)
            write_preset(self._sweep)
        except OSError as error:
            print_line(f"warning: {self._sweep.folder}: cannot be written ({error.strerror})", sys.stderr)

    def _beat(self) -> None:
        """Show that this worker is alive, and leave trials that others have taken up in the meantime."""
        if time.monotonic() < self._next_beat:
            return
        self._next_beat = time.monotonic() + self._sweep.beat_seconds()
        mine = self._sweep.still_mine()
        for job in [job for number, job in self._jobs.items() if number not in mine and not job.is_pruned]:
            print_line(f"trial {job.number}: another worker has taken it up", sys.stderr)
            del self._jobs[job.number]
            if job.run is not None:
                job.run.stop(signal.SIGKILL)
                job.run.close()

    def _end_all(self, number: int) -> None:
        """Stop all runs in good order, and wait for their ends; a second Ctrl-C kills them."""
        for job in self._jobs.values():
            if job.run is not None:
                job.run.stop(number)
        while any(job.run is not None and job.run.poll() is None for job in self._jobs.values()):
            if self._is_twice:
                for job in self._jobs.values():
                    if job.run is not None:
                        job.run.stop(signal.SIGKILL)
            with contextlib.suppress(*storage_errors()):
                self._serve()
        for job in self._jobs.values():
            if job.run is not None:
                job.run.close()
        self._jobs.clear()

    @contextlib.contextmanager
    def _listening(self) -> Iterator[None]:
        """Have signals ask this worker to stop."""

        def note(number: int, _: Any) -> None:
            now = time.monotonic()
            self._is_twice |= number == signal.SIGINT and 0 < self._interrupted_at < now - _SAME_CTRL_C
            if number == signal.SIGINT:
                self._interrupted_at = self._interrupted_at or now
            self._stopped_by = self._stopped_by or signal.Signals(number).name

        before = {each: signal.signal(each, note) for each in STOPPING}
        try:
            yield
        finally:
            for each, handler in before.items():
                signal.signal(each, handler)

    def _go_on_text(self) -> str:
        return f"go on with {package_command(['sweep', '--resume', str(self._sweep.folder)])}"

    def _print_end(self) -> None:
        """Print where the best trial, the page and the preset are."""
        folder, best = self._sweep.folder, best_trial(self._sweep.trials())
        lines = [f"page    {folder / PAGE_FILE}"]
        if best is not None:
            value = format_number(float(best.value or 0))
            preset = str(folder / PRESET_FILE)
            lines = [f"best    trial {best.number}: {value}; {describe_params(best, self._sweep.space)}", *lines]
            lines += [f"preset  {preset}", f"train   {package_command(['train', 'torch', '--config', preset])}"]
        print_line("\n".join(lines), sys.stdout)


def _line(trial: FrozenTrial, best: FrozenTrial | None, sweep: Sweep) -> str:
    """Return the line of a trial that has ended: number, value, best so far, parameters."""
    state = trial.state.name
    parts = STEPS * sweep.settings.seeds
    outcome = {
        "COMPLETE": format_number(float(trial.value or 0)) if state == "COMPLETE" else "",
        "PRUNED": f"pruned after {max(trial.intermediate_values, default=0) / parts:.0%}",
    }.get(state, f"failed ({trial.user_attrs.get(FAILURE, 'no reason is known')})")
    so_far = "" if best is None else f", best {format_number(float(best.value or 0))} (trial {best.number})"
    return f"trial {trial.number}: {outcome}{so_far}; {describe_params(trial, sweep.space)}"

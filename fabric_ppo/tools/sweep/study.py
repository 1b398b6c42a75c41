"""Study of a sweep in Optuna: its trials, which of them are this worker's, and what becomes of them.

Optuna's own heartbeat is for databases and `Study.optimize` only. Here each running trial has in
`alive` the name of its worker and a number that this worker counts up. Whoever sees the number
stand still for `--lost-after` seconds of a clock of its own takes the trial up. Trials of a worker
that was killed and has been resumed are its own at once: its folder is locked, so nobody else is it.
"""

from __future__ import annotations

import hashlib
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fabric_ppo.process.errors import ConfigError
from fabric_ppo.run.folder import is_locked
from fabric_ppo.tools.sweep.folder import TRIALS, Settings
from fabric_ppo.tools.sweep.space import Choices, Range, Space
from fabric_ppo.tools.sweep.storage import hide_password, open_storage

if TYPE_CHECKING:
    import optuna
    from optuna.pruners import BasePruner
    from optuna.trial import FrozenTrial

ALIVE, FOLDER, EVALUATIONS, RETURNS, FAILURE, SURPLUS = (
    *("alive", "folder", "evaluations", "returns", "failure", "surplus"),
)
"""Attributes of a trial: `[worker, count]`; the folder of its runs; returns of evaluations, seed -> step -> return;
returns of the tests of seeds that are done, in their order; an error in one line; true for one too many."""
STEPS = 10
"""Parts of a run's length: evaluations are compared where as many of them are done."""
_OF_STUDY = "fabric_ppo"
_STARTUP_TRIALS, _WARMUP_STEPS = 5, 3
"""Of the median pruner: trials that it lets through, and steps that it lets each trial have."""
_BEATS = 8
"""Signs of life within `--lost-after`."""
_LONGEST_LOOK = 5.0
"""Most seconds that a worker waits for another one that takes up the same trial."""


class Sweep:
    """The trials of a study, for one worker.

    Attributes:
        settings, space: those of the sweep.
        folder: the worker's folder.
    """

    def __init__(self, settings: Settings, space: Space, folder: Path) -> None:
        """Open the storage, and the study, which is made where it is missing.

        Raises:
            ConfigError: the storage cannot be opened, or has a study of that name with other settings.
        """
        self.settings, self.space, self.folder = settings, space, folder
        self._storage = open_storage(settings.storage)
        self._study_id = _study_id(self, self._storage)
        self._held: dict[int, int] = {}
        self._seen: dict[int, tuple[Any, float]] = {}

    # ---- reading

    def trials(self) -> list[FrozenTrial]:
        """Return all trials in the order of their numbers, but for those that were one too many."""
        found = self._storage.get_all_trials(self._study_id, deepcopy=False)
        return [trial for trial in found if not trial.user_attrs.get(SURPLUS)]

    def finished(self) -> list[FrozenTrial]:
        """Return the trials that have ended."""
        return [trial for trial in self.trials() if trial.state.is_finished()]

    def study(self, number: int = 0) -> optuna.Study:
        """Return Optuna's study, which samples what belongs to the trial `number`."""
        import optuna

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            # each trial has draws of its own, a function of --seed and its number: workers do not
            # draw the same, and a sweep that is resumed goes on as if it had not been stopped.
            # Running trials count as bad ones (constant liar), so that several at once differ
            sampler = optuna.samplers.TPESampler(
                multivariate=True, constant_liar=True, seed=_draws(self.settings.seed, number)
            )
        # a new object: an old one remembers trials from when it sampled
        return optuna.load_study(
            study_name=self.settings.study, storage=self._storage, sampler=sampler, pruner=make_pruner(self.settings)
        )

    # ---- trials of this worker

    def next_trial(self) -> FrozenTrial | None:
        """Return the trial to be worked on next, with values for all flags; None if there is none at present.

        It is one of this worker from before it was stopped, a lost one of another, or a new one.
        """
        trials = self.trials()
        running = [trial for trial in trials if not trial.state.is_finished() and trial.number not in self._held]
        mine = [trial for trial in running if self._worker_of(trial) == self.settings.worker]
        for trial in mine or running:
            if mine or (self._is_lost(trial) and self._take_up(trial)):
                return self._held_trial(trial._trial_id)
        return self._new_trial() if len(trials) < self.settings.trials else None

    def is_over(self) -> bool:
        """Return True if all trials have ended."""
        return len(self.finished()) >= self.settings.trials

    def still_mine(self) -> set[int]:
        """Give a sign of life for each trial of this worker; return the numbers of those that are still its own.

        One is not where this worker was silent so long that another has taken it up.
        """
        for number, trial_id in list(self._held.items()):
            trial = self._storage.get_trial(trial_id)
            if trial.state.is_finished() or self._worker_of(trial) != self.settings.worker:
                self.release(number)
            else:
                self._say_alive(trial)
        return set(self._held)

    def beat_seconds(self) -> float:
        """Return the seconds between signs of life."""
        return self.settings.lost_after / _BEATS

    def release(self, number: int) -> None:
        """Forget a trial of this worker: it has ended, or another works on it."""
        self._held.pop(number, None)

    # ---- what becomes of a trial

    def note(self, number: int, name: str, value: Any) -> None:
        """Store an attribute of a trial of this worker."""
        self._storage.set_trial_user_attr(self._held[number], name, value)

    def should_prune(self, number: int, step: int, value: float) -> bool:
        """Store an intermediate value of a trial, unless that has been done; return what the pruner says."""
        import optuna

        trial = optuna.trial.Trial(self.study(number), self._held[number])
        if step not in self._storage.get_trial(self._held[number]).intermediate_values:
            trial.report(value, step)
        return bool(trial.should_prune())

    def end(self, number: int, state: str, value: float | None = None) -> None:
        """End a trial as COMPLETE, with its value, as PRUNED, or as FAIL; once only, whoever comes first."""
        import optuna

        values = value if state == "COMPLETE" else None
        self.study(number).tell(number, values, optuna.trial.TrialState[state], skip_if_finished=True)
        self.release(number)

    # ---- inside

    def _new_trial(self) -> FrozenTrial | None:
        """Make a trial; None where other workers have made the last ones at the same moment."""
        import optuna

        # with its worker from the first moment on: whenever this is killed, it is known whose it was
        template = optuna.trial.create_trial(
            state=optuna.trial.TrialState.RUNNING, user_attrs={ALIVE: [self.settings.worker, 0]}
        )
        trial_id = self._storage.create_new_trial(self._study_id, template)
        number = self._storage.get_trial(trial_id).number
        if sum(trial.number < number for trial in self.trials()) >= self.settings.trials:
            self._storage.set_trial_user_attr(trial_id, SURPLUS, True)
            self._storage.set_trial_state_values(trial_id, optuna.trial.TrialState.FAIL)
            return None
        return self._held_trial(trial_id)

    def _held_trial(self, trial_id: int) -> FrozenTrial:
        """Return a trial that is this worker's, with values for all flags: those that it lacks are sampled."""
        import optuna

        frozen = self._storage.get_trial(trial_id)
        self._held[frozen.number] = trial_id
        trial = optuna.trial.Trial(self.study(frozen.number), trial_id)
        for name, search in self.space.searched.items():
            suggest(trial, name, search)
        folder = frozen.user_attrs.get(FOLDER)
        if folder is None or not Path(folder).is_dir():  # another host's, whose disk this one does not have
            self.note(frozen.number, FOLDER, str(self.folder.absolute() / TRIALS / str(frozen.number)))
        return self._storage.get_trial(trial_id)

    def _worker_of(self, trial: FrozenTrial) -> str:
        return str(trial.user_attrs.get(ALIVE, [""])[0])

    def _say_alive(self, trial: FrozenTrial) -> None:
        count = trial.user_attrs.get(ALIVE, ["", 0])[1]
        self._storage.set_trial_user_attr(trial._trial_id, ALIVE, [self.settings.worker, count + 1])

    def _is_lost(self, trial: FrozenTrial) -> bool:
        """Return True if another worker's trial has shown no sign of life for `--lost-after` seconds."""
        sign, now = trial.user_attrs.get(ALIVE), time.monotonic()
        before, since = self._seen.setdefault(trial.number, (sign, now))
        if before != sign:
            self._seen[trial.number] = (sign, now)
            return False
        runs = Path(trial.user_attrs.get(FOLDER, "/nowhere")).glob("seed_*")
        return now - since >= self.settings.lost_after and not any(map(is_locked, runs))

    def _take_up(self, trial: FrozenTrial) -> bool:
        """Make a lost trial this worker's; return False where another one was as quick."""
        trial_id = trial._trial_id
        self._say_alive(self._storage.get_trial(trial_id))
        # of those who write at the same time the last one has it, and all others see that
        time.sleep(min(self.beat_seconds(), _LONGEST_LOOK))
        current = self._storage.get_trial(trial_id)
        return not current.state.is_finished() and self._worker_of(current) == self.settings.worker


def make_pruner(settings: Settings) -> BasePruner:
    """Return the pruner of a sweep; see `step_of` for its steps."""
    from optuna import pruners

    if settings.pruner == "median":
        return pruners.MedianPruner(_STARTUP_TRIALS, _WARMUP_STEPS)
    if settings.pruner == "hyperband":
        return pruners.HyperbandPruner(1, STEPS * settings.seeds)
    return pruners.NopPruner()


def step_of(seed_index: int, update: int, num_updates: int) -> int:
    """Return the step of an evaluation for the pruner: tenths of the training of a trial, from 0 up.

    The seeds of a trial train one after the other, and steps go on from seed to seed. At a step all
    trials have trained as many seeds to the same fraction, so a mean over these is compared with
    means over as many, and a step is what a trial has cost so far, as Hyperband takes it. All seeds
    at the same time would give a better mean at each step, but a bad trial would cost all of them;
    so it costs a part of its first seed.
    """
    return seed_index * STEPS + STEPS * update // num_updates


def suggest(trial: optuna.trial.Trial, name: str, search: Range | Choices) -> None:
    """Have Optuna choose the value of a flag."""
    if isinstance(search, Choices):
        trial.suggest_categorical(name, list(search.labels))
    elif isinstance(search.low, int) and isinstance(search.high, int):
        trial.suggest_int(name, search.low, search.high, step=int(search.step or 1), log=search.log)
    else:
        trial.suggest_float(name, search.low, search.high, step=search.step, log=search.log)


def _draws(seed: int, number: int) -> int:
    """Return the seed of a trial's draws."""
    return int.from_bytes(hashlib.sha256(f"{seed} {number}".encode()).digest()[:4], "little")


def _study_id(sweep: Sweep, storage: optuna.storages.BaseStorage) -> int:
    """Return the study of a sweep in the storage, which is made where it is missing; raise as `Sweep`."""
    import optuna

    settings = sweep.settings
    study = optuna.create_study(study_name=settings.study, storage=storage, direction="maximize", load_if_exists=True)
    expected = settings.of_study(sweep.space)
    known: Mapping[str, Any] | None = study.user_attrs.get(_OF_STUDY)
    if known is None and not study.get_trials(deepcopy=False):
        study.set_user_attr(_OF_STUDY, expected)
    elif known != expected:
        differing = [name for name in expected if (known or {}).get(name) != expected[name]]
        where = f"--storage {hide_password(settings.storage)}: its study {settings.study}"
        raise ConfigError(f"{where} has another {', '.join(differing)}; the same or another --study is expected")
    return int(storage.get_study_id_from_name(settings.study))

"""Callbacks: the user's own code, which is called during a run, and may ask it to stop."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fabric_ppo.agents.agent import Agent
from fabric_ppo.agents.policy import Policy
from fabric_ppo.config import Config
from fabric_ppo.config_given import format_given, names_of, python_scalar
from fabric_ppo.process.console import print_from_rank_zero
from fabric_ppo.process.errors import USER_ERRORS, ConfigError
from fabric_ppo.process.failures import mark_callback
from fabric_ppo.process.settings import settings_kept
from fabric_ppo.rollouts.evaluate import TestResult
from fabric_ppo.run.counts import Counts
from fabric_ppo.run.env_attributes import EnvAttributes
from fabric_ppo.run.summary import Summary
from fabric_ppo.seeding import callback_seed

_SETTING = ("on_start", "on_evaluation", "on_update")
"""Methods that may set attributes: the next checkpoint has them."""
_METHODS = (*_SETTING, "on_checkpoint", "on_end")
_ASKING = ("on_update", "on_evaluation")
"""Methods that may ask to stop."""


@dataclass(frozen=True)
class RunView:
    """A run, as callbacks see it.

    Callbacks cannot change it, except for attributes of the environments, with `envs.set`.

    Attributes:
        config: flag -> value, as in `config.yaml`.
        run_dir: the run's folder.
        policy: the agent with its present weights, to act with; its weights cannot be changed.
        update, env_steps: updates and transitions over all ranks so far.
        num_updates: updates of the whole run.
        envs: the training environments of all ranks.

    Example:
        >>> from fabric_ppo import Callback, Config, RunView, train
        >>> class Report(Callback):
        ...     def on_update(self, run: RunView, metrics):
        ...         print(f"update {run.update} of {run.num_updates}: {run.env_steps} transitions")
        >>> tiny = Config(num_steps=32, total_timesteps=128, test_episodes=1)
        >>> _ = train(tiny, verbose=False, callbacks=[Report])
        update 1 of 2: 64 transitions
        update 2 of 2: 128 transitions
    """

    config: Mapping[str, Any]
    run_dir: Path
    policy: Policy
    update: int
    env_steps: int
    num_updates: int
    envs: EnvsView


class EnvsView:
    """The training environments of all ranks, as callbacks see them."""

    def __init__(self, attributes: EnvAttributes, is_settable: bool) -> None:
        """Allow `set` only if `is_settable`."""
        self._attributes, self._is_settable = attributes, is_settable

    @property
    def attributes(self) -> dict[str, Any]:
        """Attributes that callbacks have set so far, name -> value, also before the run was resumed."""
        return self._attributes.values

    def set(self, **values: Any) -> None:
        """Set attributes in all environments on all ranks, such as `set(difficulty=0.5)`.

        When the values take effect:

        - In `on_start` of a new run: before the first episodes. In `on_start` of a resumed run,
          attributes that have a value keep it.
        - Later: all ranks get them with the following update. In the rollout after it (with
          `--overlap` the one after that), each environment takes them at its next reset. An episode
          in progress keeps the values with which it began.

        `env.set_wrapper_attr` sets them in order before each reset: in the outermost wrapper that
        has the attribute, else in the environment itself. Environments of tests and evaluations
        keep their own values.

        Args:
            values: attribute -> value of a JSON type: text, number, true, false, None, and lists
                and mappings of these. Numbers and arrays of NumPy and PyTorch are converted.

        Raises:
            ConfigError: the environment has no such attribute, the value has no JSON type, the
                backend is EnvPool, or the method is `on_checkpoint` or `on_end`.
        """
        if not self._is_settable:
            methods = "on_start, on_evaluation and on_update can set attributes, no other method"
            raise ConfigError(f"envs.set({', '.join(values)}): {methods}")
        self._attributes.set(values)


class Callback:
    """Code that is called on rank 0 while a run trains; a subclass overrides the methods it needs.

    If `on_update` or `on_evaluation` returns True, the run ends after the next update, on all
    ranks. An error ends the run, which can be resumed. Other ranks wait for a callback, but not
    longer than `--timeout`.

    A callback cannot change the weights, bit for bit. Settings of this process that it changes are
    restored after each call, and its draws from the global random generators depend on `--seed`
    and the update alone.

    Example:
        >>> from fabric_ppo import Callback, Config, train
        >>> class StopEarly(Callback):
        ...     def on_update(self, run, metrics):
        ...         return run.env_steps >= 128
        >>> tiny = Config(num_steps=32, total_timesteps=1024, test_episodes=1)
        >>> train(tiny, verbose=False, callbacks=[StopEarly]).summary["ended_by"]
        'callback'
    """

    def on_start(self, run: RunView) -> None:
        """React to the start of a run: before its first update, or the first one after resuming."""

    def on_update(self, run: RunView, metrics: Mapping[str, float]) -> bool | None:
        """React to an update and its scalars, tag -> value; return True to stop the run."""

    def on_evaluation(self, run: RunView, result: Mapping[str, Any]) -> bool | None:
        """React to an evaluation (`--eval-every`); return True to stop the run.

        `result` is as `evaluate --json` prints it.
        """

    def on_checkpoint(self, run: RunView, path: Path) -> None:
        """React to a checkpoint that has been written to `path`, after `on_update`.

        It is not called for a checkpoint in the middle of an update, after a signal or a failure.
        """

    def on_end(self, run: RunView, summary: Mapping[str, Any]) -> None:
        """React to the end of a run; `summary` is as in `summary.json`."""


class Callbacks:
    """The callbacks of a run; each call gets a RunView of its own."""

    def __init__(
        self,
        callbacks: Sequence[Callback],
        config: Config,
        run_dir: Path,
        agent: Agent,
        num_updates: int,
        attributes: EnvAttributes,
    ) -> None:
        """Call `callbacks`, in order, with views of the run of `agent` in `run_dir`."""
        self._callbacks, self._flags, self._run_dir, self._seed = callbacks, config.to_dict(), run_dir, config.seed
        self._agent, self._num_updates, self._attributes = agent, num_updates, attributes
        self._ignored = set[tuple[str, str]]()

    def _view(self, counts: Counts, method: str) -> RunView:
        return RunView(
            config=dict(self._flags),  # a copy, which a callback may change
            run_dir=self._run_dir,
            policy=Policy(self._agent),
            update=counts.updates,
            env_steps=counts.env_steps,
            num_updates=self._num_updates,
            envs=EnvsView(self._attributes, method in _SETTING),
        )

    def _call(self, method: str, counts: Counts, make_argument: Callable[[], Any] | None = None) -> bool:
        """Call a method of each callback, with an argument of its own; return True if one does.

        Raises:
            ConfigError: a method that may ask to stop returns neither True nor False nor None.
        """
        asked = False
        for index, callback in enumerate(self._callbacks):
            if getattr(getattr(callback, method), "__func__", None) is getattr(Callback, method):
                continue  # it is left as it is: keeping the settings would take half a millisecond
            call = index * len(_METHODS) + _METHODS.index(method)
            arguments = () if make_argument is None else (make_argument(),)
            view = self._view(counts, method)
            with settings_kept(callback_seed(self._seed, counts.updates, call)):
                try:
                    answer = getattr(callback, method)(view, *arguments)
                except ConfigError:
                    raise
                except USER_ERRORS as error:
                    mark_callback(error, _name(callback), method)
                    raise
            asked |= answer is not None and self._asks_to_stop(callback, method, answer)
        return asked

    def _asks_to_stop(self, callback: Callback, method: str, answer: Any) -> bool:
        """Return True for an answer that asks to stop; raise a ConfigError for an invalid one."""
        name, value = f"the callback {_name(callback)}", python_scalar(answer)
        if method not in _ASKING:
            if (name, method) not in self._ignored:
                self._ignored.add((name, method))
                ways = f"{' and '.join(_ASKING)} can ask to stop"
                print_from_rank_zero(f"warning: {name}: what {method} returns is ignored; {ways}")
            return False
        if not isinstance(value, bool):
            given = format_given(answer)
            raise ConfigError(f"{name}: {method} returned {given}; True to stop, False or None is expected")
        return value

    def on_start(self, counts: Counts) -> None:
        """See `Callback.on_start`."""
        self._call("on_start", counts)

    def on_update(self, counts: Counts, metrics: Mapping[str, float], evaluation: TestResult | None) -> bool:
        """Call `Callback.on_evaluation`, if there was one, and `Callback.on_update`.

        Returns:
            True if one asks to stop; all are called in any case.
        """
        asked = evaluation is not None and self._call("on_evaluation", counts, evaluation.to_dict)
        return self._call("on_update", counts, lambda: dict(metrics)) or asked

    def on_checkpoint(self, counts: Counts, path: Path) -> None:
        """See `Callback.on_checkpoint`."""
        self._call("on_checkpoint", counts, lambda: path)

    def on_end(self, counts: Counts, summary: Summary) -> None:
        """See `Callback.on_end`."""
        self._call("on_end", counts, lambda: asdict(summary))


def _name(callback: Callback) -> str:
    """Return the name of a callback's class, as `--callback` has it."""
    return names_of(callback) or type(callback).__qualname__
